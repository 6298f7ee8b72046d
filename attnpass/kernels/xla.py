"""xla: Pallas FlashAttention on TPUs, the library ``torch_xla`` (>= 2.7) (https://github.com/pytorch/xla).

Run the program with ``ATTNPASS_COMPILER=openxla``. What the sources say (``torch_xla/experimental/custom_kernel.py``,
2.9.0, and ``jax/experimental/pallas/ops/tpu/flash_attention.py``, 0.7.1, whose own checks torch_xla steps around):

- ``sm_scale`` is 1.0 if not given; the bias ``ab`` is added *before* it, is read as fp32, and is all of (B, H, Sq, Sk);
- -inf in ``ab`` makes NaN where it hides a whole block, so hidden keys get a large finite number;
- k is padded to a multiple of 512 when it is longer, and the zeros are masked only through ``ab`` (or causal, where
  Sq <= Sk): without a mask they would take part;
- causal is top-left; a block counts as above the diagonal by ``>``, so one query and several blocks of keys give 0;
- one key alone does not get through the lowering (``vector.broadcast`` in Mosaic's check);
- the backward wants lengths that its blocks divide: Sq at most 512 or a multiple of 1024, Sk 128, 256 or a multiple of
  512;
- no grouped heads, one head dim for q, k and v: at most 128, or a multiple of it; no dropout;
- under fake tensors its own op wants q, k and v of one shape; the op here has its own fake, and Sq may differ from Sk;
- the autograd function keeps its residuals to itself: training calls the ops below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands, additive_mask, aten
from attnpass.emit.layout import repeated_heads
from attnpass.emit.mask_tensors import (
    before_scale,
    expanded,
    rows_with_keys,
    with_empty_rows_shown,
    with_empty_rows_zero,
)
from attnpass.graph.symbolic import as_int, known, known_equal, known_multiple, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine

TORCH_XLA = Library("torch_xla", "2.7", modules=("torch_xla.experimental.custom_kernel",))
LANES = 128
BLOCK = 512
BLOCK_OF_DQ = 1024
LOWEST = torch.finfo(torch.float32).min
NOT_SHARDED = "None"  # as the library spells a partition and a mesh that are not there
GRADIENTS = [True] * 3 + [False] * 7  # of q, k and v; not of the mask, and the other arguments have none


class Xla(Kernel):
    """Pallas' FlashAttention through torch_xla."""

    name = "xla"
    title = "Pallas FlashAttention on TPU (torch_xla)"
    aliases = ("_native_xla",)
    limits = Limits(
        devices=frozenset({"tpu"}),
        library=TORCH_XLA,
        dtypes=frozenset({torch.bfloat16, torch.float32}),
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        mask_dtype_may_differ=True,
        positive_scale=True,
        last_stride_one=False,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.mask.tensor is not None and call.is_causal:
            yield Rejection(Code.MASK, "mask", str(call.mask), "a rule or a tensor, not both")
        if not (known(call.D <= LANES) or known_multiple(call.D, LANES)):
            yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), f"at most {LANES}, or a multiple of it")
        if call.is_gqa and not (as_int(call.H) and as_int(call.Hkv)):
            yield Rejection(Code.DYNAMIC, "heads", f"{shown(call.H)} on {shown(call.Hkv)}", "numbers")
        yield from _lengths(call)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        k, v = (repeated_heads(emitter, node, call.H, call.Hkv) for node in (args.k, args.v))
        bias, rows = (None, None) if args.mask is None else _bias(emitter, call, args, args.mask)
        out = _attention.emit(emitter, call, args.q, k, v, bias, call.is_causal, args.scale)
        return with_empty_rows_zero(emitter, out, rows)


def _lengths(call: AttentionCall) -> Iterator[Rejection]:
    """One block of keys needs no more; several have rules."""
    Sq, Sk = call.Sq, call.Sk
    one_block = known(Sk <= BLOCK)
    if not known(Sk >= 2):
        yield Rejection(Code.KNOWN_BUG, "Sk", shown(Sk), "at least 2 (one key is not lowered for a TPU)")
    hidden = call.mask.tensor is not None or (call.is_causal and known(Sq <= Sk))
    if not (one_block or known_multiple(Sk, BLOCK) or hidden):
        wanted = f"at most {BLOCK} or a multiple of it (zeros that pad k would count), a mask, or causal with Sq <= Sk"
        yield Rejection(Code.LENGTH, "Sk", shown(Sk), wanted)
    if call.is_causal and not one_block and not known(Sq >= 2):
        yield Rejection(Code.KNOWN_BUG, "Sq", shown(Sq), f"at least 2 in causal calls with more than {BLOCK} keys")
    if call.needs_grad and not (known(Sq <= BLOCK) or known_multiple(Sq, BLOCK_OF_DQ)):
        yield Rejection(Code.LENGTH, "Sq in training", shown(Sq), f"at most {BLOCK}, or a multiple of {BLOCK_OF_DQ}")
    if call.needs_grad and not (known_equal(Sk, 128) or known_equal(Sk, 256) or known_multiple(Sk, BLOCK)):
        yield Rejection(Code.LENGTH, "Sk in training", shown(Sk), f"128, 256, or a multiple of {BLOCK}")


def _bias(emitter: Emitter, call: AttentionCall, args: Operands, mask: Node) -> tuple[Node, Node]:
    """``ab``: fp32, finite, for all batches and heads, without empty rows; and which rows were not empty.

    A hidden key gets half of the lowest number, a finite value no less than a quarter: the one has no weight beside the
    other, and neither overflows behind the scale.
    """
    scale = args.scale or 1.0
    lowest = LOWEST / max(1.0, scale)
    rows = rows_with_keys(emitter, mask)
    bias = additive_mask(emitter, with_empty_rows_shown(emitter, mask, rows), torch.float32)
    hidden = emitter(aten.eq.Scalar, bias, float("-inf"))
    finite = before_scale(emitter, bias, scale, lowest / 4)
    bias = emitter(aten.where.ScalarSelf, hidden, lowest / 2, finite)
    return expanded(emitter, call, args, bias, batch=True, heads=True), rows


def _infer(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float) -> Tensor:
    """(B, H, Sq, D), (B, H, Sk, D), (B, H, Sk, D) -> (B, H, Sq, D), contiguous."""
    from torch_xla.experimental.custom_kernel import flash_attention

    bias = None if bias is None else bias.contiguous()
    q, k, v = (x.contiguous() for x in (q, k, v))
    out: Tensor = flash_attention(q=q, k=k, v=v, causal=is_causal, sm_scale=scale, ab=bias)
    return out


def _shared(bias: Tensor | None, is_causal: bool, scale: float) -> dict[str, Any]:
    """The keyword arguments that forward and backward share."""
    return {
        "causal": is_causal,
        "q_segment_ids": None,
        "kv_segment_ids": None,
        "sm_scale": scale,
        "ab": None if bias is None else bias.contiguous(),
        "partition_spec": NOT_SHARDED,
        "mesh": NOT_SHARDED,
        "ctx_grad": GRADIENTS,
    }


def _train(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and sum and maximum of the softmax, (B, H, Sq) in fp32."""
    from torch_xla.experimental.custom_kernel import fa_custom_forward

    q, k, v = (x.contiguous() for x in (q, k, v))
    out, _q, _k, _v, total, largest, _ab = fa_custom_forward(q=q, k=k, v=v, **_shared(bias, is_causal, scale))
    return out, total, largest


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    total: Tensor,
    largest: Tensor,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from torch_xla.experimental.custom_kernel import fa_custom_backward

    dq, dk, dv, _dab = fa_custom_backward(
        grad_output=grad.contiguous(),
        q=q.contiguous(),
        k=k.contiguous(),
        v=v.contiguous(),
        o=out,
        l=total.contiguous(),
        m=largest.contiguous(),
        q_full_shape=list(q.shape),
        kv_full_shape=list(k.shape),
        ab_full_shape=None if bias is None else list(bias.shape),
        **_shared(bias, is_causal, scale),
    )
    return dq, dk, dv


_attention = ops.attention(
    "xla(Tensor q, Tensor k, Tensor v, Tensor? bias, bool is_causal, float scale)",
    _infer,
    _train,
    _backward,
    saved={"total": ops.log_sum_exp, "largest": ops.log_sum_exp},
    layout="BHSD",
)
