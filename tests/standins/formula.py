"""Attention as fused kernels compute it: what the stand-ins share. BSHD, grouped heads, in the operands' own dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def band(Sq: int, Sk: int, left: int | None, right: int | None, offset: int | None = None) -> Tensor:
    """True where a key takes part: from ``left`` keys before the diagonal to ``right`` behind it, None for no bound.

    The diagonal is bottom-right unless ``offset`` says where it starts.
    """
    diagonal = torch.arange(Sq)[:, None] + (Sk - Sq if offset is None else offset)
    key = torch.arange(Sk)[None]
    seen = torch.ones(Sq, Sk, dtype=torch.bool)
    if left is not None:
        seen &= key >= diagonal - left
    if right is not None:
        seen &= key <= diagonal + right
    return seen


def used(seen: Tensor, lengths: Tensor, B: int) -> Tensor:
    """``seen`` (Sq, Sk) for the first ``lengths`` keys of each example: (B, 1, Sq, Sk)."""
    assert lengths.dtype == torch.int32 and lengths.shape == (B,) and lengths.is_contiguous()
    return seen & (torch.arange(seen.shape[1]) < lengths[:, None, None, None])


@dataclass(frozen=True)
class Scores:
    """What a kernel holds between its two products: (B, H, Sq, Sk), fp32.

    Attributes:
        weights: softmax's, before dropout; the rows of queries that see no key are 0.
        rounded: the same in the operands' dtype, as the kernels multiply them with V.
        slope: derivative of the capped scores for the products of q and k.
        lse: log-sum-exp, (B, H, Sq).
    """

    weights: Tensor
    rounded: Tensor
    slope: Tensor
    lse: Tensor

    def times(self, factor: Tensor, dtype: torch.dtype) -> Scores:
        """With other weights."""
        weights = torch.where(self.weights > 0, self.weights * factor, 0.0)
        return replace(self, weights=weights, rounded=weights.to(dtype).float())


def scored(
    q: Tensor, k: Tensor, scale: float, seen: Tensor, softcap: float, sinks: Tensor | None, bias: Tensor | None
) -> Scores:
    """As in the kernels, the maximum is taken before the scale, and the weights are rounded before they are divided.

    So a negative scale turns the maximum into the minimum, and the weights overflow.
    """
    wide = k.repeat_interleave(q.shape[2] // k.shape[2], 2).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), wide)
    slope = torch.full_like(scores, scale)
    if softcap:
        scores, slope, scale = torch.tanh(scores * scale / softcap), slope, softcap
        slope = slope * (1 - scores * scores)
    if bias is not None:
        scores, scale = scores * scale + bias.float(), 1.0
    scores = scores.masked_fill(~seen, -math.inf)
    largest = scores.amax(-1, keepdim=True) if k.shape[1] else scores.new_zeros((*scores.shape[:3], 1))
    largest = largest.masked_fill(largest == -math.inf, 0.0)
    weights = torch.exp((scores - largest) * scale).masked_fill(scores == -math.inf, 0.0)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.float()[:, None, None] - largest * scale)
    lse = (total.log() + largest * scale).squeeze(-1)
    total = total.where(total > 0, 1.0)
    return Scores(weights / total, _as_multiplied(weights, q.dtype) / total, slope, lse)


def _as_multiplied(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights from 0 to 1 in ``dtype``; FlashAttention-3's numbers of 8 bits are counted in 256ths (``softmax.h``)."""
    step = 256.0 if dtype.itemsize == 1 else 1.0
    return (weights * step).to(dtype).float() / step


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    seen: Tensor,
    *,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output (contiguous; bf16 of fp8) and the log-sum-exp (B, H, Sq) in fp32. ``keep``: dropout's factors."""
    held = scored(q, k, scale, seen, softcap, sinks, bias)
    wide = v.repeat_interleave(q.shape[2] // v.shape[2], 2).float()
    out = torch.einsum("bhqk,bkhd->bqhd", held.rounded * (1.0 if keep is None else keep), wide)
    return out.to(torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype).contiguous(), held.lse


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    seen: Tensor,
    given: tuple[Tensor, Tensor],
    *,
    softcap: float = 0.0,
    keep: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attention` for its operands, contiguous; written out, since ops run below autograd.

    As in the kernels, of the forward there is only what is ``given``: the output, and the log-sum-exp (B, H, >= Sq).
    """
    held = scored(q, k, scale, seen, softcap, None, bias)
    out, lse = given
    found = held.lse.where(held.lse > -math.inf, 0.0)
    held = held.times(torch.exp(found - lse[..., : q.shape[1]]).unsqueeze(-1), q.dtype)
    delta = (grad.float() * out.float()).sum(-1).transpose(1, 2).unsqueeze(-1)
    group = q.shape[2] // k.shape[2]
    wide_k, wide_v = (x.repeat_interleave(group, 2).float() for x in (k, v))
    kept = 1.0 if keep is None else keep
    dv = torch.einsum("bhqk,bqhd->bkhd", held.rounded * kept, grad.float())
    into = torch.einsum("bqhd,bkhd->bhqk", grad.float(), wide_v) * kept
    into = held.weights * (into - delta) * held.slope
    into = into.to(q.dtype).float()
    dq = torch.einsum("bhqk,bkhd->bqhd", into, wide_k)
    dk = torch.einsum("bhqk,bqhd->bkhd", into, q.float())
    dk, dv = (x.unflatten(2, (-1, group)).sum(3) for x in (dk, dv))
    return dq.to(q.dtype).contiguous(), dk.to(q.dtype).contiguous(), dv.to(q.dtype).contiguous()


def is_aligned(x: Tensor, step: int = 8) -> bool:
    """Do all rows start at multiples of ``step`` elements, as vector loads of 16 bytes want it?"""
    strides = [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    return x.stride(-1) == 1 and all(stride % step == 0 for stride in (*strides, x.storage_offset()))
