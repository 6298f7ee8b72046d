"""flash-attn 2.8: `_flash_attn_forward` and `_flash_attn_backward` with their real signatures; 2.6's on request.

Traps kept: bottom-right causal and windows, BSHD, a head dim that is no multiple of 8 and an empty query are refused,
no mask, rows are read 16 bytes at a time, softcap excludes dropout, the backward writes into the buffers given,
and leaves them unwritten for large head dims with dropout on GPUs with little shared memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band, gradients, is_aligned, used

little_shared_memory = False


def _seen(q: Tensor, k: Tensor, causal: bool, left: int, right: int) -> Tensor:
    right = 0 if causal else right
    return band(q.shape[1], k.shape[1], None if left < 0 else left, None if right < 0 else right)


def _check(*tensors: Tensor) -> None:
    q, k, v, *_ = tensors
    B, Sq, H, D = q.shape
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert B > 0 and Sq > 0, "batch size must be positive"
    assert D <= 256 and D % 8 == 0, "query, key, value, and out_ must have a head_size that is a multiple of 8"
    assert H % k.shape[2] == 0, "Number of heads in key/value must divide number of heads in query"
    assert k.shape == v.shape == (B, k.shape[1], k.shape[2], D) and {x.dtype for x in tensors} == {q.dtype}
    assert all(is_aligned(x) for x in tensors), "a misaligned address"


def _keep(q: Tensor, k: Tensor, dropout_p: float, rng_state: Tensor) -> Tensor | None:
    if not dropout_p:
        return None
    generator = torch.Generator().manual_seed(int(rng_state[0]))
    chance = torch.rand(q.shape[0], q.shape[2], q.shape[1], k.shape[1], generator=generator)
    return (chance >= dropout_p).float() / (1 - dropout_p)


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(q, k, v)
    assert not (softcap and dropout_p), "Softcapping does not support dropout for now"
    assert alibi_slopes is None and not return_softmax
    rng_state = torch.randint(1 << 40, (2,)) if dropout_p else torch.zeros(2, dtype=torch.int64)
    seen = _seen(q, k, causal, window_size_left, window_size_right)
    out, lse = attention(q, k, v, softmax_scale, seen, softcap=softcap, keep=_keep(q, k, dropout_p, rng_state))
    return torch.empty_like(q).copy_(out), lse, q.new_empty(0), rng_state


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    num_splits: int = 0,
) -> Tensor:
    """Without new keys: attention to the first ``cache_seqlens`` ones of each example."""
    _check(q, k_cache, v_cache)
    assert k is None and v is None and not causal and window_size == (-1, -1) and num_splits == 1
    assert softmax_scale is not None and isinstance(cache_seqlens, Tensor)
    seen = used(_seen(q, k_cache, False, -1, -1), cache_seqlens, q.shape[0])
    return torch.empty_like(q).copy_(attention(q, k_cache, v_cache, softmax_scale, seen, softcap=softcap)[0])


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    _check(q, k, v, dout, out)
    assert softmax_lse.dtype == torch.float32 and softmax_lse.shape == (q.shape[0], q.shape[2], q.shape[1])
    assert rng_state is not None or not dropout_p
    if dropout_p and q.shape[-1] > 192 and little_shared_memory:
        return softmax_lse  # nothing is launched
    keep = None if rng_state is None else _keep(q, k, dropout_p, rng_state)
    seen = _seen(q, k, causal, window_size_left, window_size_right)
    results = gradients(dout, q, k, v, softmax_scale, seen, (out, softmax_lse), softcap=softcap, keep=keep)
    for buffer, grad in zip((dq, dk, dv), results, strict=True):
        buffer.copy_(grad)
    return softmax_lse


def _forward_26(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, ...]:
    """2.6: the window is one tuple, and the operands come back too."""
    rest = (dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes, return_softmax)
    out, lse, weights, rng_state = _flash_attn_forward(q, k, v, *rest)
    return out, q, k, v, out, lse, weights, rng_state


def _backward_26(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> tuple[Tensor, ...]:
    rest: Any = (dropout_p, softmax_scale, causal, *window_size, softcap, alibi_slopes, deterministic, rng_state)
    _flash_attn_backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, *rest)
    return dq, dk, dv, softmax_lse


def install(monkeypatch: pytest.MonkeyPatch, version: str = "2.8.3", little_memory: bool = False) -> None:
    """Let ``import flash_attn`` find this."""
    old = version.startswith("2.6")
    functions = {
        "_flash_attn_forward": _forward_26 if old else _flash_attn_forward,
        "_flash_attn_backward": _backward_26 if old else _flash_attn_backward,
        "flash_attn_with_kvcache": flash_attn_with_kvcache,
    }
    monkeypatch.setattr(f"{__name__}.little_shared_memory", little_memory)
    module(monkeypatch, "flash_attn", __version__=version)
    module(monkeypatch, "flash_attn.flash_attn_interface", **functions)
    module(monkeypatch, "flash_attn_2_cuda")
