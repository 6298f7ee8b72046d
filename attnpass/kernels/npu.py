"""npu: Ascend's fused attention, ``npu_fusion_attention_v3`` of ``torch_npu`` (https://github.com/Ascend/op-plugin).

v3 is the version that graphs can hold (the seed of dropout is a tensor). What its documentation and source say
(``_op_plugin_docs.py`` and ``FlashAttentionKernelNpuOpApi.cpp``, 2.13.0):

- the formula is ``softmax(mask(scale * (pse + q k^T)))``: a bias is added *before* the scale, 1.0 if not given;
- ``atten_mask`` is True where a key is masked *out*; without it ``sparse_mode`` is ignored, and causal silently lost:
  modes 2 (top-left), 3 (bottom-right) and 4 (a band, bottom-right) want one fixed triangle of 2048 x 2048 beside them;
- a row that sees no key loses precision unless ``inner_precise=2``, which is slow, and what comes out is not said; so
  the mask that is handed over has no such row;
- ``keep_prob`` is 1 - dropout_p, in (0, 1]; ``head_num`` is that of q; k and v have the same shape, Dv included;
- a mask has one head or all, a bias has all heads; at most 256 heads; head dims up to 768; no empty length;
- graph capture wants the layout BNSD, which is BHSD; whether strided operands are read right is not said: they are
  copied;
- Ascend 950 is refused by v3; whether the backward is deterministic is not said.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands, aten
from attnpass.emit.mask_tensors import (
    before_scale,
    expanded,
    rows_with_keys,
    with_empty_rows_shown,
    with_empty_rows_zero,
)
from attnpass.graph.symbolic import known, known_equal, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import FLOATS, Alignment, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Build, Library, UnusableError
from attnpass.machine.machine import Machine


def _read_build() -> Build:
    import torch_npu

    if not hasattr(torch_npu, "npu_fusion_attention_v3"):
        raise UnusableError("it has no npu_fusion_attention_v3, which came with torch_npu 2.6")
    return {}


TORCH_NPU = Library("torch_npu", modules=("torch_npu",), build=_read_build)
NO_BOUND = 2**31 - 1
FULL, TOP_LEFT_CAUSAL, BOTTOM_RIGHT_CAUSAL, BAND = 0, 2, 3, 4
TRIANGLE = 2048
MAX_HEADS = 256


class Npu(Kernel):
    """Ascend's FlashAttention."""

    name = "npu"
    title = "Ascend fused attention (torch_npu)"
    aliases = ("_native_npu",)
    limits = Limits(
        devices=frozenset({"npu"}),
        library=TORCH_NPU,
        dtypes=FLOATS,
        head_dim_max=768,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW}),
        mask_tensor=True,
        alignments=frozenset(Alignment),
        positive_scale=True,
        dropout=True,
        last_stride_one=False,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        banded = [term for term in call.mask.terms if term.term in (Term.CAUSAL, Term.WINDOW)]
        if banded and call.mask.tensor is not None:
            yield Rejection(Code.MASK, "mask", str(call.mask), "a rule or a tensor, not both")
        for term in banded:
            top_left = known_equal(term.offset, 0)
            if call.mask.has(Term.WINDOW) and top_left and not known_equal(call.Sq, call.Sk):
                yield Rejection(Code.CAUSAL_ALIGNMENT, "offset of a window", 0, f"Sk - Sq, {shown(call.Sk - call.Sq)}")
            if not (top_left and term.term is Term.CAUSAL) and not known(call.Sq <= call.Sk):
                yield Rejection(Code.EMPTY_ROWS, "Sq", shown(call.Sq), f"at most Sk, {shown(call.Sk)}, for this mask")
        if not known(call.H <= MAX_HEADS):
            yield Rejection(Code.GQA, "number of heads", shown(call.H), f"at most {MAX_HEADS}")
        if call.dropout_p is not None and call.dropout_p >= 1:
            yield Rejection(Code.DROPOUT, "dropout_p", call.dropout_p, "less than 1")
        if call.needs_grad and machine.deterministic:
            yield Rejection(Code.DETERMINISTIC, "torch.use_deterministic_algorithms", "on", "off, for its backward")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        rows, pse, (sparse_mode, left, right) = None, None, _mode(call)
        hidden = None if sparse_mode == FULL else _triangle(emitter, call)
        if args.mask is not None:
            rows = rows_with_keys(emitter, args.mask)
            pse, hidden = _mask(emitter, call, args, with_empty_rows_shown(emitter, args.mask, rows))
        operands = (args.q, args.k, args.v, pse, hidden)
        out = _attention.emit(emitter, call, *operands, args.scale, sparse_mode, left, right, call.dropout_p)
        return with_empty_rows_zero(emitter, out, rows)


def _mode(call: AttentionCall) -> tuple[int, Any, Any]:
    """``sparse_mode``, ``pre_tockens`` and ``next_tockens``: the mask's rule in the library's words."""
    left, right = (NO_BOUND if isinstance(bound, int) and bound < 0 else bound for bound in call.mask.band())
    if call.mask.has(Term.WINDOW):
        return BAND, left, right
    if call.is_causal:
        top_left = any(term.term is Term.CAUSAL and known_equal(term.offset, 0) for term in call.mask.terms)
        return (TOP_LEFT_CAUSAL if top_left else BOTTOM_RIGHT_CAUSAL), NO_BOUND, NO_BOUND
    return FULL, NO_BOUND, NO_BOUND


def _triangle(emitter: Emitter, call: AttentionCall) -> Node:
    """The fixed mask that makes the library look at ``sparse_mode``: True above the diagonal, whatever the lengths."""
    ones = emitter(aten.ones.default, [TRIANGLE, TRIANGLE], dtype=torch.bool, device=call.device)
    return emitter(aten.triu.default, ones, 1)


def _mask(emitter: Emitter, call: AttentionCall, args: Operands, mask: Node) -> tuple[Node | None, Node]:
    """``pse`` (None for a bool mask) and ``atten_mask``. What is -inf in a bias is masked out, the rest is added."""
    spec = emitter.spec(mask)
    if spec.dtype == torch.bool:
        pse, hidden = None, emitter(aten.logical_not.default, mask)
    else:
        scale = args.scale or 1.0
        hidden = emitter(aten.eq.Scalar, mask, float("-inf"))
        finite = emitter(aten.where.ScalarSelf, hidden, 0.0, mask)
        divided = before_scale(emitter, finite, scale, 0.5 * torch.finfo(call.dtype).min / max(1.0, scale))
        bias = emitter.cast(divided, call.dtype)
        pse = expanded(emitter, call, args, bias, batch=False, heads=True)
    heads = not known_equal(spec.shape[1], 1)
    return pse, expanded(emitter, call, args, hidden, batch=heads, heads=False)


def _shared(
    q: Tensor,
    pse: Tensor | None,
    hidden: Tensor | None,
    sparse_mode: int,
    left: int,
    right: int,
    dropout_p: float,
) -> dict[str, Any]:
    """The keyword arguments that forward and backward share."""
    return {
        "head_num": q.shape[1],
        "input_layout": "BNSD",
        "pse": None if pse is None else pse.contiguous(),
        "atten_mask": None if hidden is None else hidden.contiguous(),
        "keep_prob": 1.0 - dropout_p,
        "sparse_mode": sparse_mode,
        "pre_tockens": left,
        "next_tockens": right,
    }


def _forward(
    q: Tensor, k: Tensor, v: Tensor, pse: Tensor | None, hidden: Tensor | None, scale: float, *numbers: Any
) -> tuple[Tensor, ...]:
    """(B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, D) -> (B, H, Sq, D), contiguous.

    And maximum and sum of the softmax (B, H, Sq, 8) in fp32, and the seed and offset of dropout.
    """
    import torch_npu

    call = _shared(q, pse, hidden, *numbers)
    q, k, v = (x.contiguous() for x in (q, k, v))
    results = torch_npu.npu_fusion_attention_v3(query=q, key=k, value=v, scale=scale, **call)
    out, largest, total, _, seed, offset = results
    return out, largest, total, seed, offset


def _each_row(q: Tensor, *_: object) -> Tensor:
    return q.new_empty((*q.shape[:3], 8), dtype=torch.float32)


def _one_number(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(1, dtype=torch.int64)  # on q's device, as in the library's own fake


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pse: Tensor | None,
    hidden: Tensor | None,
    out: Tensor,
    largest: Tensor,
    total: Tensor,
    seed: Tensor,
    offset: Tensor,
    scale: float,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    import torch_npu

    call = _shared(q, pse, hidden, *numbers)
    dq, dk, dv, *_ = torch_npu.npu_fusion_attention_grad_v3(
        query=q.contiguous(),
        key=k.contiguous(),
        value=v.contiguous(),
        dy=grad.contiguous(),
        softmax_max=largest,
        softmax_sum=total,
        attention_in=out,
        scale_value=scale,
        seed=seed,
        offset=offset,
        **call,
    )
    return dq, dk, dv


_attention = ops.attention(
    "npu(Tensor q, Tensor k, Tensor v, Tensor? pse, Tensor? hidden, "
    "float scale, int sparse_mode, SymInt left, SymInt right, float dropout_p)",
    train=_forward,
    backward=_backward,
    saved={"largest": _each_row, "total": _each_row, "seed": _one_number, "offset": _one_number},
    layout="BHSD",
    random=True,
)
