"""SageAttention 2.2: the entry points, with their real signatures.

Traps kept: unknown keywords are swallowed, an entry point whose binary is not built fails at the call, a head dim that
is neither 64 nor 128 is padded inside and comes back as a slice, a negative scale overflows, only fp16 and bf16, and
two entry points read beyond the last key, which is NaN at its worst.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band
from tests.standins.sageattention_1 import quantised

BINARIES = ("sm80", "sm89", "sm90")
built: frozenset[str] = frozenset(BINARIES)
calls: list[tuple[str, dict[str, Any]]] = []  # the entry points called, and what was handed over beside the tensors


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: str,
    is_causal: bool,
    scale: float | None,
    *,
    block: int,
    smooth_k: bool,
    fp8: bool = False,
    reads_beyond: bool = False,
) -> Tensor:
    assert q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype
    D = q.size(-1)
    if D > 128:
        raise ValueError(f"Unsupported head_dim: {D}")
    wide = 64 if D <= 64 else 128
    q, k, v = (F.pad(x, (0, wide - D)) for x in (q, k, v))
    assert q.stride(-1) == 1 and k.stride(-1) == 1 and v.stride(-1) == 1, "Last dim of qkv must be contiguous."
    scale = D**-0.5 if scale is None else scale
    dtype = q.dtype
    if layout == "HND":
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.shape[2] % k.shape[2]:
        raise ValueError("num_qo_heads must be divisible by num_kv_heads")
    k = k.float() - k.float().mean(1, keepdim=True) if smooth_k else k
    q8, k8, v = quantised(q, 64), quantised(k, block), v.float()
    if fp8:
        step = v.abs().amax(1, keepdim=True).clamp_min(1e-30) / 448
        v = (v / step).to(torch.float8_e4m3fn).float() * step
    right = 0 if is_causal else None
    seen = band(q.shape[1], k.shape[1], None, right, offset=0)  # compares indices: top-left
    out = attention(*(x.half() for x in (q8, k8, v)), scale, seen)[0].to(dtype)
    if reads_beyond:
        out[:, -1] = torch.nan
    return (out if layout == "NHD" else out.transpose(1, 2).contiguous())[..., :D]


def _length(x: Tensor, layout: str) -> int:
    return x.shape[1 if layout == "NHD" else 2]


def sageattn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
    return_lse: bool = False,
    **kwargs: Any,
) -> Tensor:
    raise AssertionError("looks at every GPU at each call; call the entry point")


def sageattn_qk_int8_pv_fp16_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    quantization_backend: str = "triton",
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
    sm_scale: float | None = None,
    smooth_k: bool = True,
    return_lse: bool = False,
    **kwargs: Any,
) -> Tensor:
    calls.append(("triton", kwargs))
    assert attn_mask is None, "a float mask is added in the wrong unit"
    if is_causal:
        assert _length(q, tensor_layout) == _length(k, tensor_layout), "qo_len and kv_len must be equal"
    odd = is_causal and bool(-(-_length(k, tensor_layout) // 64) % 2)
    return _compute(q, k, v, tensor_layout, is_causal, sm_scale, block=64, smooth_k=smooth_k, reads_beyond=odd)


def sageattn_qk_int8_pv_fp16_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    **kwargs: Any,
) -> Tensor:
    assert "sm80" in built, "SM80 kernel is not available. make sure you GPUs with compute capability 8.0 or higher."
    assert pv_accum_dtype in ("fp32", "fp16", "fp16+fp32")
    calls.append(("fp16", {"pv_accum_dtype": pv_accum_dtype, **kwargs}))
    rest = _length(k, tensor_layout) % 64
    return _compute(q, k, v, tensor_layout, is_causal, sm_scale, block=64, smooth_k=smooth_k, reads_beyond=bool(rest))


def sageattn_qk_int8_pv_fp8_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp16",
    smooth_k: bool = True,
    smooth_v: bool = False,
    return_lse: bool = False,
    **kwargs: Any,
) -> Tensor:
    assert "sm89" in built, "SM89 kernel is not available. Make sure you GPUs with compute capability 8.9."
    calls.append(("fp8", {"qk_quant_gran": qk_quant_gran, "pv_accum_dtype": pv_accum_dtype, **kwargs}))
    return _compute(q, k, v, tensor_layout, is_causal, sm_scale, block=64, smooth_k=smooth_k, fp8=True)


def sageattn_qk_int8_pv_fp8_cuda_sm90(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    qk_quant_gran: str = "per_thread",
    sm_scale: float | None = None,
    pv_accum_dtype: str = "fp32+fp32",
    smooth_k: bool = True,
    return_lse: bool = False,
    **kwargs: Any,
) -> Tensor:
    assert "sm90" in built, "SM90 kernel is not available. Make sure you GPUs with compute capability 9.0."
    if pv_accum_dtype == "fp32":
        raise NotImplementedError("Please use pv_accum_dtype='fp32+fp32' for sm90.")
    calls.append(("fp8_sm90", {"pv_accum_dtype": pv_accum_dtype, **kwargs}))
    return _compute(q, k, v, tensor_layout, is_causal, sm_scale, block=128, smooth_k=smooth_k, fp8=True)


ENTRY_POINTS = (
    sageattn,
    sageattn_qk_int8_pv_fp16_triton,
    sageattn_qk_int8_pv_fp16_cuda,
    sageattn_qk_int8_pv_fp8_cuda,
    sageattn_qk_int8_pv_fp8_cuda_sm90,
)


def install(monkeypatch: pytest.MonkeyPatch, binaries: Iterable[str] = BINARIES) -> None:
    """Let ``import sageattention`` find this, with these ``binaries`` built."""
    from attnpass.kernels import sage

    calls.clear()
    uncached = getattr(sage._function, "__wrapped__", sage._function)  # it remembers the function for each device
    monkeypatch.setattr(sage, "_function", uncached)
    monkeypatch.setattr(f"{__name__}.built", frozenset(binaries))
    functions = {function.__name__: function for function in ENTRY_POINTS}
    flags = {f"{name.upper()}_ENABLED": name in built for name in BINARIES}
    module(monkeypatch, "sageattention", **functions)
    module(monkeypatch, "sageattention.core", **functions, **flags)
