"""Attention written out, with everything that a call can hold: the reference that shares no line with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def brute_force(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """BHSD in the operands' own dtype; ``seen`` is (Sq, Sk), True where a key takes part; an empty row is 0."""
    B, H, Sq, D = q.shape
    out = torch.zeros(B, H, Sq, v.shape[-1], dtype=q.dtype)
    rows = []
    for h in range(H):
        kv = h // (H // k.shape[1])
        scores = q[:, h] @ k[:, kv].transpose(1, 2) * (D**-0.5 if scale is None else scale)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.where(seen, scores.exp(), 0)
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks[h].exp()
        rows.append(weights / total.where(total > 0, 1) @ v[:, kv])
    return out + torch.stack(rows, 1)
