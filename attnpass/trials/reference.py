"""How far an attention result is from the reference. Used by ATTNPASS_VERIFY, by ``attnpass.testing`` and the tests.

An error is never judged by a magic number: the yardstick is the error that PyTorch's own attention makes on the same
data in the same dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

CHUNK = 1 << 28  # scores held at once by the reference, in elements (1 GiB of fp32)


@dataclass(frozen=True, slots=True)
class Difference:
    """How two tensors of equal shape differ.

    Attributes:
        max_abs: largest absolute difference.
        mean_abs: mean absolute difference.
        cosine: cosine of the angle between both, 1.0 for equal directions.
        nan: elements that are NaN or infinite in the result but not in the reference.
        largest: largest absolute value of the reference, the scale of the errors.
        relative: norm of the difference over the norm of the reference.
    """

    max_abs: float
    mean_abs: float
    cosine: float
    nan: int
    largest: float
    relative: float = 0.0

    def __str__(self) -> str:
        text = f"max error {self.max_abs:.2e}, mean {self.mean_abs:.2e}, cosine {self.cosine:.6f}"
        return f"{text}, {self.nan} NaN" if self.nan else text


def difference(result: Tensor, reference: Tensor) -> Difference:
    """Compare ``result`` with ``reference`` in fp64."""
    if result.numel() == 0:
        return Difference(0.0, 0.0, 1.0, 0, 0.0)
    left, right = result.detach().double(), reference.detach().double()
    broken = ~left.isfinite() & right.isfinite()
    gap = torch.where(left == right, 0.0, (left - right).abs()).nan_to_num(nan=0.0, posinf=0.0)
    gap = torch.where(broken, float("inf"), gap)
    cosine = torch.nn.functional.cosine_similarity(left.flatten(), right.flatten(), dim=0)
    same = bool((right == 0).all() and (left == 0).all())
    return Difference(
        max_abs=gap.max().item(),
        mean_abs=gap.mean().item(),
        cosine=1.0 if same else cosine.item(),
        nan=int(broken.sum().item()),
        largest=right.abs().nan_to_num(posinf=0.0).max().item(),
        relative=(gap.norm() / right.nan_to_num().norm().clamp_min(torch.finfo(right.dtype).tiny)).item(),
    )


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    softcap: float | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """What attention means: PyTorch's composite attention in fp32, or fp64 where the operands are fp32 or fp64.

    Args:
        q: (..., H, Sq, D).
        k: (..., Hkv, Sk, D).
        v: (..., Hkv, Sk, Dv).
        mask: bool (True = take part) or additive, broadcastable to (..., H, Sq, Sk).
        sinks: (H,), one more logit for each head, that gives nothing.
        is_causal: top-left causal.
        scale: factor on the scores, 1/sqrt(D) if None.
        enable_gqa: Hkv may divide H.
        softcap: scores become ``softcap * tanh(scores / softcap)``.
        seen: (Sq, Sk) bool, one mask more: True where a key takes part.
    """
    exact = torch.float64 if q.dtype in (torch.float32, torch.float64) else torch.float32
    q, k, v = (x.to(exact) for x in (q, k, v))
    mask = additive(_both(mask, seen), exact)
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    if q.ndim == 4 and q.shape[0] > 1 and q.shape[:3].numel() * k.shape[-2] > CHUNK and k.shape[0] == q.shape[0]:
        rows = []
        for b in range(q.shape[0]):
            row = mask[b : b + 1] if mask is not None and mask.ndim == 4 and mask.shape[0] > 1 else mask
            one = [x[b : b + 1] for x in (q, k, v)]
            rows.append(reference_attention(one[0], one[1], one[2], row, sinks, **options, softcap=softcap))
        return torch.cat(rows)
    if softcap is not None or sinks is not None:
        return written_out(q, k, v, mask, sinks, **options, softcap=softcap)
    composite = torch.ops.aten._scaled_dot_product_attention_math.default
    result: Tensor = composite(q, k, v, mask, 0.0, is_causal, None, scale=scale, enable_gqa=enable_gqa)[0]
    return result


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    softcap: float | None,
) -> Tensor:
    """Attention with softcap and sinks, which SDPA does not have, in the operands' own dtype; arguments as above."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (scale if scale is not None else q.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if is_causal:
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -math.inf)
    bias = additive(mask, scores.dtype)
    if bias is not None:
        scores = scores + bias
    if sinks is not None:
        extra = sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1).nan_to_num()
    return weights @ v


def additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A bool mask (True = take part) as 0 and -inf, or an additive one, in ``dtype``."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -math.inf)


def _both(mask: Tensor | None, seen: Tensor | None) -> Tensor | None:
    """A key takes part where both let it."""
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)


def own_results(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    sinks: Tensor | None = None,
    *,
    softcap: float | None = None,
    seen: Tensor | None = None,
    **options: Any,
) -> list[Tensor]:
    """What PyTorch itself makes of the call in its own dtype: its default choice, and its composite attention."""
    mask = _both(mask, seen)
    if softcap is not None or sinks is not None:
        written = {"is_causal": False, "scale": None, "enable_gqa": False, **options}
        return [written_out(q, k, v, mask, sinks, softcap=softcap, **written)]
    default = F.scaled_dot_product_attention(q, k, v, mask, **options)
    with sdpa_kernel(SDPBackend.MATH):
        return [default, F.scaled_dot_product_attention(q, k, v, mask, **options)]


def allowed_error(own: Iterable[Difference], dtype: torch.dtype, tolerance: float, largest: float = 0.0) -> float:
    """The error that a kernel may make: ``tolerance`` times the worst of PyTorch's own, at least two rounding steps.

    Args:
        own: how PyTorch's own results (its default choice, its composite attention) differ from the reference.
        dtype: in which they were computed.
        tolerance: the kernel's, from its `Limits`.
        largest: largest value that went into the result, where that is more than the result's own (a gradient that
            cancels to 0 carries the rounding of what cancelled).
    """
    finfo = torch.finfo(dtype)
    errors = [
        error
        for d in own
        for error in (d.max_abs, 2 * finfo.eps * max(d.largest, largest, finfo.tiny))
        if error < math.inf
    ]
    return tolerance * max(errors, default=0.0)
