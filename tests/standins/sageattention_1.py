"""sageattention 1.0.6: ``sageattn`` as its source computes it.

Traps kept: K is smoothed in place, unknown keywords are swallowed, head dims are exactly 64, 96 and 128, Dv is not
checked, causal asserts Sq == Sk and reads one factor too many if the number of key blocks is odd, and without causal
the last block's keys beyond the end take part with score 0.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band

KEYS, QUERIES = 64, 128


def quantised(x: Tensor, block: int) -> Tensor:
    """BSHD rounded to whole steps, one factor for each ``block`` positions of each head.

    The steps are finer than int8's: how exact the library is, is not what a stand-in shows.
    """
    parts = []
    for part in x.float().split(block, 1):
        step = part.abs().amax((1, 3), keepdim=True).clamp_min(1e-30) / 511
        parts.append((part / step).round() * step)
    return torch.cat(parts, 1)


def sageattn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    smooth_k: bool = True,
    **kwargs: Any,
) -> Tensor:
    assert q.dtype in (torch.float16, torch.bfloat16, torch.float32) and q.dtype == k.dtype == v.dtype
    assert q.size(-1) in (64, 96, 128), "headdim should be in [64, 96, 128]."
    assert q.stride(-1) == 1 and k.stride(-1) == 1 and v.stride(-1) == 1, "Last dim of qkv must be contiguous."
    if smooth_k:
        k -= k.mean(dim=1 if tensor_layout == "NHD" else 2, keepdim=True)
    scale = q.size(-1) ** -0.5 if sm_scale is None else sm_scale
    if tensor_layout == "HND":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    dtype, Sq, Sk = q.dtype, q.shape[1], k.shape[1]
    q8, k8 = quantised(q * scale, QUERIES), quantised(k, KEYS)
    if is_causal:
        assert Sq == Sk, "qo_len and kv_len must be equal for causal attention"
        seen = band(Sq, Sk, None, 0)
    else:
        missing = -Sk % KEYS
        k8, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) for x in (k8, v))
        seen = band(Sq, Sk + missing, None, None)
    out = attention(q8, k8, v.half().float(), 1.0, seen)[0].to(dtype)
    if is_causal and -(-Sk // KEYS) % 2:
        out[:, -1] = torch.nan  # what lies behind the factors, at its worst
    return out.contiguous() if tensor_layout == "NHD" else out.transpose(1, 2).contiguous()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import sageattention`` find this."""
    module(monkeypatch, "sageattention", sageattn=sageattn)
