"""SageAttention 3: ``sageattn3_blackwell``.

Traps kept: K is smoothed in place, a mask and a scale are swallowed, no grouped heads, other head dims than 64 and 128
run something else, BHSD only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band

LEVELS = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))  # what 4 bits with 2 of exponent can hold


def quantised(x: Tensor, group: int = 16) -> Tensor:
    """The last dimension rounded to 4 bits, with one factor for each ``group`` elements."""
    parts = x.float().unflatten(-1, (-1, group))
    step = parts.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 6
    nearest = (parts / step).abs().unsqueeze(-1).sub(LEVELS).abs().argmin(-1)
    return (LEVELS[nearest] * parts.sign() * step).flatten(-2)


def sageattn3_blackwell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    per_block_mean: bool = True,
    **kwargs: Any,
) -> Tensor:
    assert q.size(-1) in (64, 128), "runs something else, or fails"
    assert q.shape[:2] == k.shape[:2] == v.shape[:2] and q.shape[-1] == v.shape[-1]
    k -= k.mean(dim=-2, keepdim=True)
    operands = (quantised(q).transpose(1, 2), quantised(k).transpose(1, 2), v.float().transpose(1, 2))
    seen = band(q.shape[2], k.shape[2], None, 0 if is_causal else None, offset=0)
    return attention(*operands, q.size(-1) ** -0.5, seen)[0].to(q.dtype).transpose(1, 2).contiguous()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import sageattn3`` find this."""
    module(monkeypatch, "sageattn3", sageattn3_blackwell=sageattn3_blackwell)
