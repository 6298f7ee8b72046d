"""torch_npu 2.13: ``npu_fusion_attention_v3`` and its gradient with their real signatures.

Traps kept: the scale is 1.0 and comes behind the bias, ``atten_mask`` hides where it is True, without it
``sparse_mode`` means nothing, modes 2 to 4 want the fixed triangle, a row that is hidden throughout is the average of
all values unless ``inner_precise=2``, ``keep_prob``, and the shapes of masks and biases that the documentation lists.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import band

UNBOUNDED = 2147483647
calls: list[dict[str, Any]] = []  # the numbers of each forward


def _check(query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str, keep_prob: float) -> None:
    B, N, _, D = query.shape
    assert input_layout == "BNSD" and head_num == N <= 256
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.float16, torch.bfloat16, torch.float32)
    assert key.shape == value.shape and key.shape[0] == B and key.shape[3] == D <= 768 and N % key.shape[1] == 0
    assert all(x.is_contiguous() for x in (query, key, value)) and query.numel() and key.numel()
    assert 0 < keep_prob <= 1, "The keep_prob value must be in range of (0, 1]"


def _hidden(
    query: Tensor, key: Tensor, atten_mask: Tensor | None, sparse_mode: int, before: int, after: int
) -> Tensor | None:
    """True where a key is masked out."""
    B, N, Sq, _ = query.shape
    Sk = key.shape[2]
    if atten_mask is None:
        return None
    assert atten_mask.dtype == torch.bool and atten_mask.is_contiguous()
    if sparse_mode == 0:
        assert atten_mask.shape in ((B, N, Sq, Sk), (B, 1, Sq, Sk), (1, 1, Sq, Sk), (Sq, Sk))
        return atten_mask
    assert torch.equal(atten_mask, torch.ones(2048, 2048, dtype=torch.bool).triu(1))
    if sparse_mode in (2, 3):
        return ~band(Sq, Sk, None, 0, offset=0 if sparse_mode == 2 else None)
    assert sparse_mode == 4
    return ~band(Sq, Sk, None if before == UNBOUNDED else before, None if after == UNBOUNDED else after)


def _weights(
    query: Tensor, key: Tensor, pse: Tensor | None, hidden: Tensor | None, scale: float, inner_precise: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax, its maximum and its sum; K with as many heads as Q."""
    B, N, Sq, _ = query.shape
    Sk = key.shape[2]
    scores = query.float() @ key.float().mT
    if pse is not None:
        assert pse.dtype == query.dtype and pse.is_contiguous()
        assert pse.shape in ((B, N, Sq, Sk), (B, N, 1, Sk), (1, N, Sq, Sk))
        scores = scores + pse.float()
    scores = scores * scale
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    total = weights.sum(-1, keepdim=True)
    weights = weights / total
    if inner_precise == 2 and hidden is not None:
        weights = weights.masked_fill(hidden.all(-1, keepdim=True), 0.0)
    return weights, largest, total


def _keep(query: Tensor, key: Tensor, keep_prob: float, seed: Tensor) -> Tensor:
    if keep_prob == 1:
        return torch.ones(())
    generator = torch.Generator().manual_seed(int(seed))
    return (torch.rand(*query.shape[:3], key.shape[2], generator=generator) < keep_prob).float() / keep_prob


def npu_fusion_attention_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    head_num: int,
    input_layout: str,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    scale: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNBOUNDED,
    next_tockens: int = UNBOUNDED,
    inner_precise: int = 0,
    prefix: list[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    calls.append({"sparse_mode": sparse_mode, "tockens": (pre_tockens, next_tockens), "keep_prob": keep_prob})
    _check(query, key, value, head_num, input_layout, keep_prob)
    assert padding_mask is None and sink is None
    seed = torch.randint(1 << 40, (1,)) if keep_prob < 1 else torch.empty(1, dtype=torch.int64)
    hidden = _hidden(query, key, atten_mask, sparse_mode, pre_tockens, next_tockens)
    group = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    weights, largest, total = _weights(query, key, pse, hidden, scale, inner_precise)
    weights = weights.to(query.dtype).float() * _keep(query, key, keep_prob, seed)
    out = (weights @ value.float()).to(query.dtype)
    eight = (*query.shape[:3], 8)
    saved = largest.expand(eight).contiguous(), total.expand(eight).contiguous()
    return out, *saved, query.new_empty(0), seed, torch.zeros(1, dtype=torch.int64)


def npu_fusion_attention_grad_v3(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dy: Tensor,
    head_num: int,
    input_layout: str,
    *,
    pse: Tensor | None = None,
    padding_mask: Tensor | None = None,
    atten_mask: Tensor | None = None,
    softmax_max: Tensor | None = None,
    softmax_sum: Tensor | None = None,
    softmax_in: Tensor | None = None,
    attention_in: Tensor | None = None,
    scale_value: float = 1.0,
    keep_prob: float = 1.0,
    pre_tockens: int = UNBOUNDED,
    next_tockens: int = UNBOUNDED,
    inner_precise: int = 0,
    seed: Tensor | None = None,
    offset: Tensor | None = None,
    prefix: list[int] | None = None,
    actual_seq_qlen: Tensor | None = None,
    actual_seq_kvlen: Tensor | None = None,
    sparse_mode: int = 0,
    gen_mask_parallel: bool = True,
    sync: bool = False,
    softmax_layout: str = "",
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check(query, key, value, head_num, input_layout, keep_prob)
    assert seed is not None and offset is not None and softmax_max is not None and softmax_sum is not None
    assert attention_in is not None and dy.shape == attention_in.shape and dy.is_contiguous()
    hidden = _hidden(query, key, atten_mask, sparse_mode, pre_tockens, next_tockens)
    heads, group = key.shape[1], query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    weights, largest, total = _weights(query, key, pse, hidden, scale_value, inner_precise)
    assert torch.allclose(softmax_max[..., :1], largest) and torch.allclose(softmax_sum[..., :1], total)
    keep, do = _keep(query, key, keep_prob, seed), dy.float()
    dv = (weights.to(query.dtype).float() * keep).mT @ do
    ds = weights * ((do @ value.float().mT) * keep - (do * attention_in.float()).sum(-1, keepdim=True)) * scale_value
    ds = ds.to(query.dtype).float()
    dq, dk = ds @ key.float(), ds.mT @ query.float()
    dk, dv = (x.unflatten(1, (heads, group)).sum(2) for x in (dk, dv))
    return *(x.to(query.dtype) for x in (dq, dk, dv)), query.new_empty(0), query.new_empty(())  # type: ignore[return-value]


def install(monkeypatch: pytest.MonkeyPatch, old: bool = False) -> None:
    """Let ``import torch_npu`` find this; ``old``: from before v3."""
    calls.clear()
    functions = (npu_fusion_attention_v3, npu_fusion_attention_grad_v3)
    module(monkeypatch, "torch_npu", **({} if old else {function.__name__: function for function in functions}))
