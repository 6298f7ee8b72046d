"""torch_xla 2.9: ``torch_xla.experimental.custom_kernel`` around JAX's Pallas kernel, block by block as that computes.

Traps kept: the scale is 1.0 and comes behind the bias, k is padded with zeros that only ``ab`` masks, a block that is
-inf throughout makes NaN, a block is above the diagonal by ``>``, no grouped heads, the backward's blocks have to
divide the lengths, residuals only if a gradient is asked for, and q, k and v of one shape under fake tensors.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from tests.standins import module

MASK_VALUE = -0.7 * torch.finfo(torch.float32).max
Shapes = list[int]


def _check(q: Tensor, k: Tensor, v: Tensor, ab: Tensor | None) -> None:
    D = q.shape[-1]
    assert not any(map(is_fake, (q, k, v))) or q.shape == k.shape == v.shape
    assert k.shape == v.shape == (*q.shape[:2], k.shape[2], D), "Head count mismatch"
    assert D <= 128 or D % 128 == 0, f"{D=} should be a multiple of 128 if larger"
    assert ab is None or ab.shape == (*q.shape[:3], k.shape[2]), "Attention bias shape mismatch"


def _padded(x: Tensor, dim: int, block: int, value: float = 0.0) -> Tensor:
    shape = list(x.shape)
    shape[dim] = -shape[dim] % block
    return torch.cat([x, x.new_full(shape, value)], dim)


def _scores(q: Tensor, k: Tensor, ab: Tensor | None, scale: float, causal: bool, row: int, column: int) -> Tensor:
    s = q.float() @ k.float().mT
    s = (s if ab is None else s + ab.float()) * scale
    if causal:
        rows, columns = torch.arange(q.shape[2])[:, None] + row, torch.arange(k.shape[2])[None] + column
        s = s + torch.where(columns <= rows, 0.0, MASK_VALUE)
    return s


def _rows(
    q: Tensor, k: Tensor, v: Tensor, ab: Tensor | None, causal: bool, scale: float, row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One block of queries: its output, and sum and maximum of its softmax."""
    Sk, block = k.shape[2], min(512, k.shape[2])
    if block == Sk:
        s = _scores(q, k, ab, scale, causal, row, 0)
        m = s.amax(-1, keepdim=True)
        p = torch.exp(s - m)
        return (p / p.sum(-1, keepdim=True)).to(v.dtype).float() @ v.float(), p.sum(-1, keepdim=True), m
    m, total = q.new_full((*q.shape[:3], 1), -math.inf).float(), q.new_zeros((*q.shape[:3], 1)).float()
    out = q.new_zeros((*q.shape[:3], v.shape[-1])).float()
    for start in range(0, Sk, block):
        if causal and not row + min(512, q.shape[2]) - 1 > start:
            continue
        some = slice(start, start + block)
        s = _scores(q, k[:, :, some], None if ab is None else ab[..., some], scale, causal, row, start)
        m_next = torch.maximum(m, s.amax(-1, keepdim=True))
        p = torch.exp(s - m_next)
        corrected = torch.exp(m - m_next) * total
        both = p.sum(-1, keepdim=True) + corrected
        inverse = torch.where(both == 0, 1.0, 1 / both)
        out = out * corrected * inverse + p.to(v.dtype).float() @ v[:, :, some].float() * inverse
        m, total = m_next, both
    return out, total, m


def _forward(q: Tensor, k: Tensor, v: Tensor, ab: Tensor | None, causal: bool, scale: float) -> list[Tensor]:
    _check(q, k, v, ab)
    block = min(512, k.shape[2])
    k, v = (_padded(x, 2, block) for x in (k, v))
    ab = None if ab is None else _padded(ab, 3, block, torch.finfo(ab.dtype).min)
    rows = [
        _rows(q[:, :, some], k, v, None if ab is None else ab[:, :, some], causal, scale, some.start)
        for some in (slice(start, start + 512) for start in range(0, q.shape[2], 512))
    ]
    out, total, m = (torch.cat(parts, 2) for parts in zip(*rows, strict=True))
    return [out.to(q.dtype), total[..., 0], m[..., 0]]


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    q_segment_ids: Tensor | None = None,
    kv_segment_ids: Tensor | None = None,
    sm_scale: float = 1.0,
    *,
    ab: Tensor | None = None,
    partition_spec: Any = None,
    mesh: Any = None,
) -> Tensor:
    return _forward(q, k, v, ab, causal, sm_scale)[0]


def fa_custom_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    q_segment_ids: Tensor | None,
    kv_segment_ids: Tensor | None,
    sm_scale: float,
    ab: Tensor | None,
    partition_spec: str,
    mesh: str,
    ctx_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    assert partition_spec == mesh == "None" and q_segment_ids is kv_segment_ids is None
    assert len(ctx_grad) == 10 and ctx_grad[-3] is False
    out, total, m = _forward(q, k, v, ab, causal, sm_scale)
    full = [q.clone(), k.clone(), v.clone()]
    residuals = [total, m] if any(ctx_grad[:3]) else [None, None]
    return (out, *full, *residuals, None if ab is None else ab.clone())


def fa_custom_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    l: Tensor,  # noqa: E741
    m: Tensor,
    q_segment_ids: Tensor | None,
    kv_segment_ids: Tensor | None,
    ab: Tensor | None,
    causal: bool,
    sm_scale: float,
    partition_spec: str,
    mesh: str,
    q_full_shape: Shapes,
    kv_full_shape: Shapes,
    ab_full_shape: Shapes | None,
    ctx_grad: list[bool],
) -> tuple[Tensor | None, ...]:
    _check(q, k, v, ab)
    Sq, Sk = q.shape[2], k.shape[2]
    for size, block in ((Sq, 1024), (Sq, 512), (Sk, 512), (Sk, 256)):
        if size % min(size, block):
            raise ValueError(f"{size} should be divisible by {block}")
    assert min(Sk, 256) % 128 == 0, "repeating 128 lanes gives no block of keys"
    assert q_full_shape == list(q.shape) and kv_full_shape == list(k.shape) and len(ctx_grad) == 10
    assert ab_full_shape == (None if ab is None else list(ab.shape))
    p = torch.exp(_scores(q, k, ab, sm_scale, causal, 0, 0) - m[..., None]) / l[..., None]
    do = grad_output.float()
    di = (o.float() * do).sum(-1, keepdim=True)
    ds = (do @ v.float().mT - di) * p * sm_scale
    dv = p.to(do.dtype).mT @ do
    dq, dk = (ds.to(q.dtype).float() @ k.float(), ds.to(q.dtype).float().mT @ q.float())
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import torch_xla`` find this."""
    functions = (flash_attention, fa_custom_forward, fa_custom_backward)
    module(monkeypatch, "torch_xla.experimental.custom_kernel", **{each.__name__: each for each in functions})
