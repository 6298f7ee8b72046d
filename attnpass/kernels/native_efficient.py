"""native_efficient: PyTorch's memory-efficient attention (``aten::_scaled_dot_product_efficient_attention``).

The one fused kernel for fp32, for GPUs older than Ampere, and for a mask that needs a gradient. It takes a bias only in
q's dtype, expanded to (B, H, Sq, Sk), its rows aligned; and as many key/value heads as query heads (so K and V are
repeated for GQA, as PyTorch's own fallback would).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands, aten
from attnpass.emit.layout import aligned_bias, repeated_heads
from attnpass.emit.sinks import Sunk
from attnpass.graph.symbolic import as_int, known, known_equal, known_multiple, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import FLOATS, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine, sm_number

STRIDE_0_ISSUE = "pytorch/pytorch#191937"
ALIGNMENT = 16  # bytes


def may_misread_stride_0(call: AttentionCall) -> bool:
    """Can CUTLASS's kernel be wrong where K or V is expanded? Met on an H100: 0.27 off with a mask and Sk = 513."""
    return not known(call.Sk % 32 != 1)


def cutlass_rejections(call: AttentionCall) -> Iterator[Rejection]:
    """What CUTLASS's kernel is wrong with, or raises at; xFormers runs the same one."""
    for name, spec in (("k", call.k), ("v", call.v)):
        expanded = any(
            known_equal(stride, 0) and not known_equal(size, 1)
            for stride, size in zip(spec.stride, spec.shape, strict=True)
        )
        if expanded and may_misread_stride_0(call):
            wanted = f"no stride 0 where Sk % 32 may be 1, {STRIDE_0_ISSUE}"
            yield Rejection(Code.KNOWN_BUG, f"strides of {name}", "with a 0 (expanded)", wanted)
    for name, spec in (("q", call.q), ("k", call.k), ("v", call.v)):
        step = ALIGNMENT // spec.dtype.itemsize
        if known_equal(spec.shape[-2], 1) and not known_multiple(spec.stride[-2], step):
            wanted = f"a known multiple of {step}, of a single row too"
            yield Rejection(Code.ALIGNMENT, f"row stride of {name}", shown(spec.stride[-2]), wanted)


class NativeEfficient(Kernel):
    """PyTorch's memory-efficient attention, named explicitly instead of left to its dispatch."""

    name = "native_efficient"
    backend = "EFFICIENT_ATTENTION"
    title = "PyTorch's memory-efficient attention (CUTLASS)"
    aliases = ("_native_efficient",)
    expensive = (aten._scaled_dot_product_efficient_attention.default,)
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_50", "sm_121"),
        dtypes=FLOATS,
        head_dim_multiple=8,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        hidden_rows_train=False,  # gradients off by 85 on an H200
        mask_grad=True,
        dropout=True,
        log_sum_exp=True,
        row_alignment=ALIGNMENT,
        tolerance=5.0,  # fp32 gradients at large scores: 3.5 times the composite attention's error on an H200
    )
    old_limits = replace(limits, dtypes=FLOATS - {torch.bfloat16})

    def limits_for(self, machine: Machine) -> Limits:
        return self.old_limits if (sm_number(machine.capability) or 80) < 80 else self.limits

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.is_gqa and not (as_int(call.H) and as_int(call.Hkv)):
            yield Rejection(
                Code.DYNAMIC, "heads", f"{shown(call.H)} on {shown(call.Hkv)}", "numbers, to repeat K and V"
            )
        yield from cutlass_rejections(call)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        mask = None if args.mask is None else aligned_bias(emitter, call, args)
        k, v = (repeated_heads(emitter, node, call.H, call.Hkv) for node in (args.k, args.v))
        if args.sinks is not None:
            return emitter(_sunk, args.sinks, args.q, k, v, mask, call.is_causal, args.scale)
        results = emitter(
            _efficient,
            args.q,
            k,
            v,
            mask,
            call.needs_grad or call.lse is not None,  # compute_log_sumexp
            call.dropout_p,
            call.is_causal,
            scale=args.scale,
        )
        out = emitter.item(results, 0)
        return out if call.lse is None else (out, emitter.item(results, 1))


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float) -> Any:
    """(B, H, Sq, D), (B, H, Sk, D), (B, H, Sk, Dv), (B, H, Sq, Sk) -> (B, H, Sq, Dv).

    And its log-sum-exp (B, H, Sq rounded up to 32), inf in the last rows, and the random numbers' state, unused.
    """
    return _efficient(q, k, v, bias, True, 0.0, is_causal, scale=scale)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    out, lse, seed, offset, is_causal, scale = rest
    wanted = [True, True, True, bias is not None and bias.requires_grad]
    backward = aten._scaled_dot_product_efficient_attention_backward.default
    return backward(grad, q, k, v, bias, out, lse, seed, offset, 0.0, wanted, is_causal, scale=scale)


_efficient = aten._scaled_dot_product_efficient_attention.default
_sunk = ops.compose(
    "native_efficient_sunk(Tensor sinks, Tensor q, Tensor k, Tensor v, Tensor? bias, bool is_causal, float scale) "
    "-> Tensor",
    Sunk(_forward, _backward, 4),
)
