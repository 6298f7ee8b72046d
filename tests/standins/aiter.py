"""amd-aiter 0.1.7: ``aiter.ops.mha`` with its real signatures; those of 0.1.16 on request.

Traps kept: bottom-right causal and windows, one (Sq, Sk) bias, which is multiplied by log2(e), NaN in a row whose bias
is -inf throughout, the log-sum-exp only if asked for, the assertion of the autograd function, the assembly backward
whose causal is top-left, head dims that only the public function pads, and more arguments in later versions.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band, gradients, is_aligned

calls: list[dict[str, Any]] = []  # what each forward and backward was asked for


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> None:
    B, Sq, H, D = q.shape
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only support fp16 and bf16 data type"
    assert q.dtype == k.dtype == v.dtype, "query, key and value must have the same dtype"
    assert B > 0 and Sq > 0, "batch size must be positive"
    assert D <= 256 and v.shape[-1] <= 256, "CK only supports head dimension at most 256"
    assert D % 8 == 0 and v.shape[-1] % 8 == 0, "head_size must be a multiple of 8"
    assert H % k.shape[2] == 0, "Number of heads in key/value must divide number of heads in query"
    assert k.shape == (B, k.shape[1], k.shape[2], D) and v.shape[:3] == k.shape[:3]
    assert all(is_aligned(x) for x in (q, k, v)), "a misaligned address"
    if bias is not None:
        assert bias.shape == (Sq, k.shape[1]), "bias shape should be [sq, sk]"
        assert bias.stride(-1) == 1 and bias.dtype == q.dtype, "bias tensor must have contiguous last dimension"


def _seen(q: Tensor, k: Tensor, causal: bool, left: int, right: int, top_left: bool = False) -> Tensor:
    Sq, Sk = q.shape[1], k.shape[1]
    left, right = (-1 if bound >= Sk else bound for bound in (left, right))
    right = 0 if causal and Sq > 1 else right
    return band(Sq, Sk, None if left < 0 else left, None if right < 0 else right, offset=0 if top_left else None)


def _as_computed(bias: Tensor | None) -> Tensor | None:
    """The kernel works with powers of 2."""
    return None if bias is None else (bias.float() * math.log2(math.e)) / math.log2(math.e)


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
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    return_lse: bool,
    return_softmax: bool,
    how_v3_bf16_cvt: int | None = 1,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    calls.append({"causal": causal, "window": (window_size_left, window_size_right), "return_lse": return_lse})
    _check(q, k, v, bias)
    assert alibi_slopes is None and not return_softmax
    rng_state = torch.randint(1 << 40, (2,)) if dropout_p else torch.zeros(2, dtype=torch.int64)
    seen, bias = _seen(q, k, causal, window_size_left, window_size_right), _as_computed(bias)
    keep = _keep(q, k, dropout_p, rng_state)
    out, lse = attention(q, k, v, softmax_scale, seen, keep=keep, bias=bias)
    if bias is not None and seen.all():  # without causal nothing guards the division by a sum of 0
        out = out.masked_fill((bias == -math.inf).all(-1)[:, None, None], math.nan)
    return out, lse if return_lse else q.new_empty(0), q.new_empty(0), rng_state


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dbias: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    is_v3_atomic_fp32: bool | None = True,
    how_v3_bf16_cvt: int | None = 1,
) -> Tensor:
    calls.append({"deterministic": deterministic})
    _check(q, k, v, bias)
    assert dq is not None and dk is not None and dv is not None and rng_state is not None and dbias is None
    assert dout.shape == out.shape and dout.dtype == q.dtype and dout.stride(-1) == 1
    assert softmax_lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and softmax_lse.dtype == torch.float32
    assembly = not deterministic and bias is None and not dropout_p
    seen = _seen(q, k, causal, window_size_left, window_size_right, top_left=assembly)
    keep = _keep(q, k, dropout_p, rng_state)
    results = gradients(dout, q, k, v, softmax_scale, seen, (out, softmax_lse), keep=keep, bias=_as_computed(bias))
    spread = 0.0 * (dout.float() * out.float()).sum()  # NaN in a row of the output is in every gradient
    for buffer, grad in zip((dq, dk, dv), results, strict=True):
        buffer.copy_(grad + spread)
    return softmax_lse


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, ...] = (-1, -1),
    bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = True,
    return_lse: bool = False,
    return_attn_probs: bool = False,
    how_v3_bf16_cvt: int = 1,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
) -> Any:
    assert return_lse or not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
    sizes = (q.shape[-1], q.shape[-1], v.shape[-1])
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    q, k, v = (torch.nn.functional.pad(x, (0, -D % 8)) for x, D in zip((q, k, v), sizes, strict=True))
    left, right = window_size[:2]
    results = _flash_attn_forward(
        q, k, v, dropout_p, scale, causal, left, right, bias, alibi_slopes, return_lse, return_softmax=False
    )
    out = results[0][..., : sizes[2]]
    return (out, results[1]) if return_lse else out


def _forward_later(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    sink_size: int,
    bias: Tensor | None,
    alibi_slopes: Tensor | None,
    q_descale: Tensor | None,
    k_descale: Tensor | None,
    v_descale: Tensor | None,
    return_lse: bool,
    return_softmax: bool,
    how_v3_bf16_cvt: int | None = 1,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_kv: Tensor | None = None,
    sink_ptr: Tensor | None = None,
    out: Tensor | None = None,
    num_splits: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """0.1.16: sinks and fp8 came, without defaults."""
    assert sink_size == 0 and q_descale is k_descale is v_descale is None
    window = (window_size_left, window_size_right)
    rest: Any = (dropout_p, softmax_scale, causal, *window, bias, alibi_slopes, return_lse, return_softmax)
    return _flash_attn_forward(q, k, v, *rest)


def install(monkeypatch: pytest.MonkeyPatch, version: str = "0.1.7") -> None:
    """Let ``import aiter`` find this."""
    calls.clear()
    functions = {
        "flash_attn_func": flash_attn_func,
        "_flash_attn_forward": _forward_later if version == "0.1.16" else _flash_attn_forward,
        "_flash_attn_backward": _flash_attn_backward,
    }
    module(monkeypatch, "aiter.ops.mha", **functions)
