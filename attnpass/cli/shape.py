"""One attention call described on the command line, for ``attnpass explain`` and ``attnpass tune``."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from attnpass.graph.tensor import DTYPE_NAMES, TensorSpec
from attnpass.ir.call import AttentionCall, Kind
from attnpass.ir.mask import MaskSpec
from attnpass.machine.machine import Machine

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point}
DEVICE_TYPES = {"rocm": "cuda", "tpu": "xla", "npu": "privateuseone"}
BSHD, BHSD = "bshd", "bhsd"


def add_shape(command: argparse.ArgumentParser, title: str) -> None:
    """Declare the arguments."""
    shape = command.add_argument_group(title)
    shape.add_argument("--shape", type=sizes, metavar="B,H,Sq,D", help="shape of q")
    shape.add_argument("--kv-shape", type=sizes, metavar="B,Hkv,Sk,Dv", help="shape of v, if it is not that of q")
    shape.add_argument("--dtype", choices=DTYPES, default="bf16", help="default: bf16")
    shape.add_argument("--causal", action="store_true", help="is_causal=True")
    shape.add_argument("--mask", choices=("bool", "float"), help="with a mask tensor of this kind, (B, 1, Sq, Sk)")
    shape.add_argument("--training", action="store_true", help="gradients flow through the call")
    shape.add_argument("--dropout", type=float, default=0.0, metavar="P", help="dropout_p")
    shape.add_argument("--kind", choices=[kind.value for kind in Kind], default="unknown", help="default: unknown")
    shape.add_argument("--module", default="", metavar="PATH", help="path of the module that makes the call")
    help = "how q, k and v are stored; models store (B, S, H, D)"
    shape.add_argument("--layout", choices=(BSHD, BHSD), default=BSHD, help=f"{help}; default: {BSHD}")


def sizes(text: str) -> tuple[int, int, int, int]:
    """``"2,24,4096,128"`` as numbers."""
    try:
        B, H, S, D = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers such as 2,24,4096,128") from None
    if min(B, H, S, D) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} has a negative size")
    return B, H, S, D


def make_call(args: argparse.Namespace, machine: Machine) -> AttentionCall:
    """The call that the arguments describe; its operands are dense."""
    B, H, Sq, D = args.shape
    Bk, Hkv, Sk, Dv = args.kv_shape or args.shape
    device = torch.device(DEVICE_TYPES.get(machine.kind, machine.kind))
    dtype = DTYPES[args.dtype]

    def operand(b: int, heads: int, S: int, dim: int) -> TensorSpec:
        shape = (b, heads, S, dim) if args.layout == BHSD else (b, S, heads, dim)
        stored = torch.empty(shape, dtype=dtype, device="meta")
        there = TensorSpec.of(stored if args.layout == BHSD else stored.transpose(1, 2))
        return replace(there, device=device, requires_grad=args.training)

    mask = MaskSpec.causal() if args.causal else MaskSpec()
    if args.mask:
        tensor = torch.empty(B, 1, Sq, Sk, dtype=torch.bool if args.mask == "bool" else dtype, device="meta")
        mask = MaskSpec.from_tensor(replace(TensorSpec.of(tensor), device=device))
    return AttentionCall(
        q=operand(B, H, Sq, D),
        k=operand(Bk, Hkv, Sk, D),
        v=operand(Bk, Hkv, Sk, Dv),
        out=operand(B, H, Sq, Dv),
        mask=mask,
        dropout_p=args.dropout,
        enable_gqa=Hkv != H,
        needs_grad=args.training,
        mask_and_causal=bool(args.mask and args.causal),
        kind=Kind(args.kind),
        module=args.module,
    )
