"""native_cudnn: cuDNN's fused attention inside PyTorch (``aten::_scaled_dot_product_cudnn_attention``).

Measured without these rules (H200, torch 2.11, cuDNN 9.19): rows or pointers that are not 16-byte aligned are read
wrongly without any error (off by 1.05), fp32 gives garbage, a negative scale gives NaN, an fp32 bias beside bf16 gives
NaN, the backward at Sk = 1 is off, Sq = Sk = 1 raises, and with ``use_deterministic_algorithms`` gradients differ from
run to run.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.emit import Emitter, additive_mask, aten
from attnpass.kernel import Kernel, Operands
from attnpass.limits import Code, Limits, Rejection
from attnpass.machine import Machine
from attnpass.masks import Term
from attnpass.symbolic import known, known_equal, shown

OLDEST_CUDNN = 90000
NAN_ISSUE = "pytorch/pytorch#196678"


class NativeCudnn(Kernel):
    """PyTorch's cuDNN attention, named explicitly instead of left to its dispatch."""

    name = "native_cudnn"
    title = "PyTorch's cuDNN attention"
    aliases = ("_native_cudnn",)
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_80", "sm_121"),
        head_dim_max=256,
        head_dim_multiple=8,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        positive_scale=True,
        dropout=True,
        deterministic=False,
        row_alignment=16,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if "cudnn" not in machine.sdp_enabled:
            yield Rejection(Code.DISABLED, "torch.backends.cuda.cudnn_sdp_enabled()", False, "True")
        if machine.cudnn is None or machine.cudnn < OLDEST_CUDNN:
            yield Rejection(Code.LIBRARY, "cuDNN", machine.cudnn or "not there", f">= {OLDEST_CUDNN}")
        if machine.capability != "sm_90":
            for name, size in (("head_dim", call.D), ("value head_dim", call.Dv)):
                if not known(size <= 128):
                    yield Rejection(Code.HEAD_DIM, name, shown(size), f"at most 128 on {machine.capability}")
        if not known(call.Sk >= 2):
            yield Rejection(Code.LENGTH, "Sk", shown(call.Sk), "at least 2")
        if call.dropout_p and (call.dropout_p * 16) % 1:
            yield Rejection(Code.DROPOUT, "dropout_p", call.dropout_p, "a multiple of 1/16")
        if call.needs_grad and call.mask.tensor is not None:
            yield from _nan_in_backward(call)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        mask = None if args.mask is None else additive_mask(emitter, args.mask, call.dtype)
        results = emitter(
            aten._scaled_dot_product_cudnn_attention.default,
            args.q,
            args.k,
            args.v,
            mask,
            call.needs_grad,  # compute_log_sumexp
            call.dropout_p,
            call.is_causal,
            False,  # return_debug_mask
            scale=args.scale,
        )
        return emitter.item(results, 0)


def _nan_in_backward(call: AttentionCall) -> Iterator[Rejection]:
    """NaN in grad_q where L % 128 == 64 with a mask."""
    for name, size in (("Sq", call.Sq), ("Sk", call.Sk)):
        remainder = size % 128
        safe = (not known_equal(remainder, 64)) if isinstance(size, int) else known(remainder != 64)
        if not safe:
            wanted = f"{name} % 128 known not to be 64 in training with a mask, {NAN_ISSUE}"
            yield Rejection(Code.KNOWN_BUG, name, shown(size), wanted)
