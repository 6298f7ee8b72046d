"""sageattention 1.0.6: ``sageattn``, and the ``forward`` of its four kernels, as the source computes them.

Traps kept: ``sageattn`` smooths K in place and swallows unknown keywords; head dims are exactly 64, 96 and 128, and 96
has kernels of its own; Dv is not checked; causal asserts Sq == Sk and reads one factor too many if the number of key
blocks is odd; and without causal the last block's keys beyond the end take part with score 0.
"""

from __future__ import annotations

from collections.abc import Callable
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
    out = _attended(quantised(q * scale, QUERIES), quantised(k, KEYS), v.half(), is_causal, q.dtype)
    return out if tensor_layout == "NHD" else out.transpose(1, 2).contiguous()


def _attended(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, dtype: torch.dtype) -> Tensor:
    """What the kernels make of rounded q and k, BSHD."""
    Sq, Sk = q.shape[1], k.shape[1]
    if is_causal:
        assert Sq == Sk, "qo_len and kv_len must be equal for causal attention"
        seen = band(Sq, Sk, None, 0)
    else:
        missing = -Sk % KEYS
        k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) for x in (k, v))
        seen = band(Sq, Sk + missing, None, None)
    out = attention(q, k, v.float(), 1.0, seen)[0].to(dtype)
    if is_causal and -(-Sk // KEYS) % 2:
        out[:, -1] = torch.nan  # what lies behind the factors, at its worst
    return out.contiguous()


def _times_steps(x: Tensor, steps: Tensor, block: int) -> Tensor:
    return x.float() * steps.transpose(1, 2).repeat_interleave(block, 1)[:, : x.shape[1]]


def _kernel(is_causal: bool, head_dims: tuple[int, ...]) -> Callable[..., Tensor]:
    """The ``forward`` of one of the four modules."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_scale: Tensor,
        k_scale: Tensor,
        tensor_layout: str = "HND",
        output_dtype: torch.dtype = torch.float16,
    ) -> Tensor:
        assert q.shape[-1] in head_dims and q.dtype == k.dtype == torch.int8 and v.dtype == torch.float16
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "the kernels assume it"
        if tensor_layout == "HND":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        for x, steps, block in ((q, q_scale, QUERIES), (k, k_scale, KEYS)):
            blocks = -(-x.shape[1] // block)
            assert steps.shape == (x.shape[0], x.shape[2], blocks, 1), "read by their place, without strides"
            assert steps.dtype == torch.float32 and steps.is_contiguous()
        natural = _times_steps(q, q_scale, QUERIES) / 1.44269504  # the kernels' softmax is one of powers of 2
        out = _attended(natural, _times_steps(k, k_scale, KEYS), v, is_causal, output_dtype)
        return out if tensor_layout == "NHD" else out.transpose(1, 2).contiguous()

    return forward


KERNELS = {
    "attn_qk_int8_per_block": _kernel(False, (64, 128)),
    "attn_qk_int8_per_block_causal": _kernel(True, (64, 128)),
    "attn_qk_int8_per_block_h96": _kernel(False, (96,)),
    "attn_qk_int8_per_block_h96_causal": _kernel(True, (96,)),
}


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import sageattention`` find this."""
    module(monkeypatch, "sageattention", sageattn=sageattn)
    for name, kernel in KERNELS.items():
        module(monkeypatch, f"sageattention.{name}", forward=kernel)
