"""native_cudnn: cuDNN's fused attention inside PyTorch (``aten::_scaled_dot_product_cudnn_attention``).

Measured without these rules (H200, torch 2.11, cuDNN 9.19): rows or pointers that are not 16-byte aligned are read
wrongly without any error (off by 1.05), fp32 gives garbage, a negative scale gives NaN, an fp32 bias beside bf16 gives
NaN, the backward at Sk = 1 is off, Sq = Sk = 1 raises, and with ``use_deterministic_algorithms`` gradients differ from
run to run.

PyTorch keeps cuDNN's plans under a key that has the strides of q, k and v, but not those of the output and of its
gradient. In the same process, a second backward with the same q, k, v and another layout of the gradient reuses the
first plan and is wrong without any error (off by 1.4), and a Flux-like training step, whose layers differ in this, gets
NaN gradients or an illegal memory access from eager PyTorch itself. So the backward is an op of ours that hands cuDNN
the gradient in the output's layout, always. Other cuDNN calls in the process can still leave a wrong plan behind. The
forward stays PyTorch's op, which checkpoints and FLOP counters know by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands, additive_mask, aten
from attnpass.emit.layout import dense_rows
from attnpass.graph.symbolic import known, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine

OLDEST_CUDNN = 90000
NAN_ISSUE = "pytorch/pytorch#196678"


class NativeCudnn(Kernel):
    """PyTorch's cuDNN attention, named explicitly instead of left to its dispatch."""

    name = "native_cudnn"
    backend = "CUDNN_ATTENTION"
    title = "PyTorch's cuDNN attention"
    aliases = ("_native_cudnn",)
    expensive = (aten._scaled_dot_product_cudnn_attention.default,)
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
        if call.dropout_p and call.needs_grad:
            yield Rejection(Code.DROPOUT, "dropout_p in training", call.dropout_p, "0")
        if call.needs_grad and call.mask.tensor is not None:
            yield from _nan_in_backward(call)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        mask = None if args.mask is None else dense_rows(emitter, additive_mask(emitter, args.mask, call.dtype))
        if call.needs_grad:
            return emitter.item(emitter(_train, args.q, args.k, args.v, mask, call.is_causal, args.scale), 0)
        results = emitter(
            aten._scaled_dot_product_cudnn_attention.default,
            args.q,
            args.k,
            args.v,
            mask,
            False,  # compute_log_sumexp
            call.dropout_p,
            call.is_causal,
            False,  # return_debug_mask
            scale=args.scale,
        )
        return emitter.item(results, 0)


def _nan_in_backward(call: AttentionCall) -> Iterator[Rejection]:
    """NaN in grad_q where L % 128 == 64 with a mask, as reported upstream (not met on an H200 with cuDNN 9.19)."""
    for name, size in (("Sq", call.Sq), ("Sk", call.Sk)):
        if not known(size % 128 != 64):
            wanted = f"{name} % 128 known not to be 64 in training with a mask, {NAN_ISSUE}"
            yield Rejection(Code.KNOWN_BUG, name, shown(size), wanted)


class _Attention(torch.autograd.Function):
    """PyTorch's forward, and our backward.

    The state of random numbers, which PyTorch's op gives as well, is not filled in without dropout.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        fused = aten._scaled_dot_product_cudnn_attention.default
        out, lse, *_ = fused(q, k, v, bias, True, 0.0, is_causal, False, scale=scale)
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.numbers = is_causal, scale
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward_op(grad, *ctx.saved_tensors, *ctx.numbers), None, None, None)


def _forward(*operands: Any) -> Any:
    """(B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv) -> (B, H, Sq, Dv) in q's layout, and its log-sum-exp."""
    return _Attention.apply(*operands)  # type: ignore[no-untyped-call]


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. ``grad`` is brought into the layout of ``out`` first."""
    if grad.stride() != out.stride():
        grad = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device).copy_(grad)
    fused = aten._scaled_dot_product_cudnn_attention_backward.default
    lengths = (None, None, q.shape[2], k.shape[2])
    unused = q.new_empty((), dtype=torch.int64)  # the state of random numbers: there is no dropout
    grads: tuple[Tensor, Tensor, Tensor] = fused(
        grad, q, k, v, out, lse, unused, unused, bias, *lengths, 0.0, is_causal, scale=scale
    )
    return grads


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? bias"
_train = ops.compose(f"cudnn_attention({_TENSORS}, bool is_causal, float scale) -> (Tensor out, Tensor lse)", _forward)
_backward_op = ops.define(
    f"cudnn_attention_backward(Tensor grad, {_TENSORS}, Tensor out, Tensor lse, bool is_causal, float scale) "
    "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v)",
    _backward,
    ops.gradients_like_operands,
    layout="BHSD",
)
