"""flash4: FlashAttention-4 (CuTe DSL), the library ``flash-attn-4`` (https://github.com/Dao-AILab/flash-attention).

What the source says (``flash_attn/cute/interface.py``, 4.0.0b36):

- ``flash_attn_func`` only adds autograd, which our op has, to ``_flash_attn_fwd`` (its fourth argument is ``qv``);
- an unbounded side of a window is None; one -1 beside a number would become a real bound;
- ``seqused_k`` is how many keys of each example are read; on sm_10x not at head dim 256;
- causal and windows are bottom-right; a mask function makes both silently ignored, so it says them itself
  (`attnpass.kernels.flash4_masks`);
- ``flash_attn.cute.__version__`` says 0.0.0, and an old copy of ``flash_attn.cute`` lies in flash-attn 2: the
  distribution's version decides;
- a negative scale turns the maximum, taken before the scale, into the minimum: the weights overflow;
- with ``k is v`` and a value head dim of 512 ``flash_attn_func`` computes another formula;
- the GPU generation is read once, from the current device.

Measured (H200, 4.0.0b36): the backward is wrong without any error, or faults, where the head dim is not one of
`TRAINED_DIMS` (16, 40, 48, 72, 80, 112: gradients off by 1 to 3), so the graph pads to the next; and with another head
dim of v, the forward too (16 and 96, 32 and 80: illegal memory access), so that is refused on Hopper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands
from attnpass.emit.layout import bhsd, bshd
from attnpass.emit.padding import by_length
from attnpass.graph.symbolic import as_int, known, known_equal, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import BOTTOM_RIGHT, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels import flash4_masks
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Build, Library, UnusableError
from attnpass.machine.machine import Machine, sm_number


def _read_build() -> Build:
    """Is it flash-attn-4's own ``flash_attn.cute``, and not the old copy that flash-attn 2 brings along?"""
    import inspect

    from flash_attn.cute import interface

    if "learnable_sink" not in inspect.signature(interface.flash_attn_func).parameters:
        raise UnusableError("flash_attn.cute is the old copy of flash-attn 2; install flash-attn-4 after it")
    return {}


FLASH_ATTN_4 = Library(
    "flash-attn-4",
    "4.0.0b36",
    modules=("flash_attn.cute.interface",),
    build=_read_build,
    install="pip install flash-attn-4",
)
TRAINED_DIMS = (32, 64, 96, 128, 192, 256)


class Flash4(Kernel):
    """FlashAttention-4: Hopper and Blackwell, forward and backward; the fastest backward on an H100 for Llama."""

    name = "flash4"
    compiles = True
    title = "FlashAttention-4 (flash-attn-4, CuTe DSL)"
    aliases = ("flash_attention_4",)
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_80", "sm_121"),
        library=FLASH_ATTN_4,
        head_dim_min=8,
        head_dim_max=256,
        head_dim_multiple=8,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW, Term.KEY_PADDING}),
        padding_by_length=True,
        padding_beside_rules=True,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        softcap=True,
        sinks=True,
        log_sum_exp=True,
        vmap=True,
        row_alignment=16,
    )

    def limits_for(self, machine: Machine) -> Limits:
        generation = (sm_number(machine.capability) or 90) // 10
        if generation == 9:
            return self.limits
        if generation in (10, 11):
            return replace(self.limits, value_dim_may_differ=True, padding_beside_rules=False)
        return replace(  # nothing is checked by the library itself there
            self.limits,
            terms=self.limits.terms - {Term.KEY_PADDING},
            padding_by_length=False,
            padding_beside_rules=False,
            head_dim_max=128,
            backward=generation != 8,
            deterministic=generation == 8,
            softcap=False,
            sinks=False,
            log_sum_exp=False,
        )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if (sm_number(machine.capability) or 0) // 10 in (10, 11):
            small = known(call.D <= 128) and known(call.Dv <= 128)
            if not small and (as_int(call.D), as_int(call.Dv)) not in ((192, 128), (256, 256)):
                actual, wanted = f"{shown(call.D)}, {shown(call.Dv)}", "at most 128, (192, 128) or (256, 256)"
                yield Rejection(Code.HEAD_DIM, "head dims of q and v", actual, f"{wanted} on {machine.capability}")
            elif call.mask.has(Term.KEY_PADDING) and not small:
                yield Rejection(Code.MASK, "mask", str(call.mask), f"none or causal at head dim {shown(call.D)}")
        if flash4_masks.has_function(call):
            yield from flash4_masks.refusals(call)
        if call.needs_grad and not known_equal(call.D, call.Dv):
            yield Rejection(Code.VALUE_DIM, "value head_dim", shown(call.Dv), f"{shown(call.D)} in training")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        if flash4_masks.has_function(call):
            return bhsd(emitter, flash4_masks.emit(emitter, call, args), call.Dv)
        args, lengths = by_length(emitter, call, args)
        q, k, v = bshd(emitter, args, _trained_dim(call) if call.needs_grad else None)
        numbers = (args.scale, *call.mask.band(), call.softcap or 0.0)
        own, behind = None, args.sinks
        if args.sinks is not None and not call.needs_grad:
            own, behind = emitter.cast(args.sinks, torch.bfloat16), None
        return bhsd(
            emitter, _attention.emit_more(emitter, call, q, k, v, own, lengths, *numbers, sinks=behind), call.Dv
        )


def _trained_dim(call: AttentionCall) -> int:
    """The next head dim that the backward is right for."""
    return next(dim for dim in TRAINED_DIMS if dim >= int(call.D))


def _shared(scale: float, left: int, right: int, softcap: float) -> dict[str, Any]:
    """The keyword arguments of forward and backward. No bound of a window is None; a causal mask is not a window."""
    causal = left < 0 and right == 0
    return {
        "softmax_scale": scale,
        "causal": causal,
        "window_size_left": None if left < 0 else left,
        "window_size_right": None if right < 0 or causal else right,
        "softcap": softcap,
    }


def _infer(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, lengths: Tensor | None, *numbers: Any) -> Tensor:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, Dv) -> (B, Sq, H, Dv), contiguous.

    ``lengths``: (B,) int32, how many keys are read.
    """
    from flash_attn.cute.interface import _flash_attn_fwd

    how = {"learnable_sink": sinks, "seqused_k": lengths, "num_splits": 1, "return_lse": False}
    out: Tensor = _flash_attn_fwd(q=q, k=k, v=v, **how, **_shared(*numbers))[0]
    return out


def _train(q: Tensor, k: Tensor, v: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    """The output and its log-sum-exp, (B, H, Sq) in fp32."""
    from flash_attn.cute.interface import _flash_attn_fwd

    out, lse, *_ = _flash_attn_fwd(q=q, k=k, v=v, num_splits=1, return_lse=True, **_shared(*numbers))
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    dq, dk, dv, *_ = _flash_attn_bwd(
        q=q,
        k=k,
        v=v,
        out=out,
        dout=grad.contiguous(),
        lse=lse,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        dq=torch.empty_like(q, memory_format=torch.contiguous_format),
        dk=torch.empty_like(k, memory_format=torch.contiguous_format),
        dv=torch.empty_like(v, memory_format=torch.contiguous_format),
        **_shared(*numbers),
    )
    return dq, dk, dv


_attention = ops.attention(
    "flash4(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? lengths, "
    "float scale, SymInt left, SymInt right, float softcap)",
    _infer,
    _train,
    _backward,
    inference_only=("sinks", "lengths"),
    vmap=True,
)
