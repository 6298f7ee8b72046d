"""FlashAttention-3: `flash_attn_func` and `_flash_attn_backward` with their real signatures.

Traps kept: the fourth positional argument is the scale, a head dim that is no multiple of 8 is an error, what a build
left out raises at the call, bottom-right causal and windows, Dv != D computes something else, the output is contiguous
whatever q is, variable lengths are int32 and read K and V up to them only, sinks are bf16 and only in some builds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band, gradients, is_aligned, used

# the flags of the wheel tokenspeed-fa3
FORWARD_ONLY = ("BACKWARD", "SOFTCAP", "HDIM96", "SM8x")
disabled: frozenset[str] = frozenset()
E4M3 = torch.float8_e4m3fn
Worth = tuple[Tensor | None, Tensor | None, Tensor | None]  # the descales of q, k and v


def _seen(q: Tensor, k: Tensor, causal: bool, left: int, right: int) -> Tensor:
    right = 0 if causal else right
    return band(q.shape[1], k.shape[1], None if left < 0 else left, None if right < 0 else right)


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool, left: int, right: int, softcap: float) -> None:
    D = q.shape[-1]
    assert q.dtype in (torch.float16, torch.bfloat16, E4M3) and q.dtype == k.dtype == v.dtype
    assert not (q.dtype == E4M3 and "FP8" in disabled), "This flash attention build does not support FP8."
    assert not (q.dtype == torch.float16 and "FP16" in disabled), "This flash attention build does not support FP16."
    step = 16 // q.dtype.itemsize
    assert D % step == 0 and D <= 256, f"head_size should be a multiple of {step}"
    assert max(d for d in (64, 96, 128, 192, 256) if f"HDIM{d}" not in disabled) >= D, "no kernel for this head_size"
    assert v.shape[-1] == D, "computes with q's head dim what has v's"
    assert q.shape[2] % k.shape[2] == 0 and q.shape[0] == k.shape[0]
    assert all(is_aligned(x, step) for x in (q, k, v)), "TMA wants aligned strides"
    assert not (softcap and "SOFTCAP" in disabled), "This flash attention build does not support tanh softcapping."
    local = (left >= 0 or right >= 0) and not (left < 0 and right == 0)
    assert not (local and "LOCAL" in disabled), "This flash attention build does not support local attention."


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    worth = (q_descale, k_descale, v_descale)
    more = (softcap, num_splits, return_attn_probs, None, None, worth)
    return _forward(q, k, v, softmax_scale, causal, window_size, *more)


def flash_attn_func_with_sinks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    sinks: Tensor | None = None,
) -> Any:
    worth = (q_descale, k_descale, v_descale)
    more = (softcap, num_splits, return_attn_probs, sinks, None, worth)
    return _forward(q, k, v, softmax_scale, causal, window_size, *more)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    causal: bool,
    window: tuple[int, int],
    softcap: float,
    num_splits: int,
    with_lse: bool,
    sinks: Tensor | None,
    seqused_k: Tensor | None = None,
    worth: Worth = (None, None, None),
) -> Any:
    _check(q, k, v, causal, *window, softcap)
    assert num_splits in (0, 1), "one part, or as many as the library chooses"
    seen = _seen(q, k, causal, *window)
    if seqused_k is not None:
        assert not (causal or window != (-1, -1)), "bottom-right of the used length, which is not stood in for"
        assert "VARLEN" not in disabled, "This flash attention build does not support varlen."
        seen = used(seen, seqused_k, q.shape[0])
    if sinks is not None:
        assert sinks.dtype == torch.bfloat16 and sinks.is_contiguous() and sinks.shape == (q.shape[2],)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.dtype == E4M3:
        assert sinks is None, "not stood in for"
        k, v = _scaled(k, v, worth)
    out, lse = attention(q, k, v, scale, seen, softcap=softcap, sinks=sinks)
    return (out, lse) if with_lse else out


def _scaled(k: Tensor, v: Tensor, worth: Worth) -> tuple[Tensor, Tensor]:
    """K and V as the numbers that they stand for; what those of q are worth goes into K."""
    for each in worth:
        assert each is None or (each.dtype == torch.float32 and each.shape == (k.shape[0], k.shape[2])), "(B, Hkv)"
    of_q, of_k, of_v = (1.0 if each is None else each[:, None, :, None] for each in worth)
    both = torch.as_tensor(of_k * of_q)
    both = torch.where(both == 0.0, math.nan, both)  # the scores of keys past the end are -inf times it (`softmax.h`)
    return k.float() * both, v.float() * of_v


class RawOp:
    """The C++ op ``fwd`` behind the Python functions, with the names of its arguments that matter here."""

    _schema = torch._C.parse_schema(
        "fwd(Tensor q, Tensor k, Tensor v, Tensor? out=None, Tensor? seqused_q=None, "
        "Tensor? seqused_k=None, Tensor? page_table=None, Tensor? q_descale=None, Tensor? k_descale=None, "
        "Tensor? v_descale=None, float? softmax_scale=None, bool is_causal=False, "
        "int window_size_left=-1, int window_size_right=-1, float softcap=0.0, int num_splits=0, int sm_margin=0, "
        "Tensor? sinks=None) -> (Tensor, Tensor, Tensor?, Tensor?)"
    )
    calls = 0

    def __call__(
        self,
        *,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float,
        is_causal: bool = False,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        num_splits: int = 0,
        sinks: Tensor | None = None,
        out: Tensor | None = None,
        seqused_k: Tensor | None = None,
        seqused_q: Tensor | None = None,
        page_table: Tensor | None = None,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None, None]:
        RawOp.calls += 1
        assert num_splits == (0 if q.shape[1] < 64 else 1), "few queries leave most of the GPU idle in one part"
        assert out is None or out.stride(-1) == 1, "Output tensor must have contiguous last dimension"
        assert {q.stride(-1), k.stride(-1), v.stride(-1)} == {1}, "Input tensor must have contiguous last dimension"
        if page_table is not None:
            k, v = (_looked_up(x, page_table) for x in (k, v))
        window = (window_size_left, window_size_right)
        more = (softcap, num_splits, True, sinks, seqused_k, (q_descale, k_descale, v_descale))
        result, lse = _forward(q, k, v, softmax_scale, is_causal, window, *more)
        if seqused_q is not None:  # the rows of the other queries are not written
            assert seqused_q.dtype == torch.int32 and seqused_q.is_contiguous() and out is not None
            written = (torch.arange(q.shape[1]) < seqused_q[:, None])[..., None, None]
            result = torch.where(written, result, out)
        return (result if out is None else out.copy_(result)), lse, None, None


def _looked_up(x: Tensor, page_table: Tensor) -> Tensor:
    """Pages (count, size, Hkv, D) as each example's keys: (B, Sk, Hkv, D)."""
    assert "PAGEDKV" not in disabled, "This flash attention build does not support paged KV."
    assert page_table.dtype == torch.int32 and page_table.stride(-1) == 1
    return x[page_table.long()].flatten(1, 2)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    sequed_q: Tensor | None = None,
    sequed_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    if "BACKWARD" in disabled:
        raise RuntimeError("This flash attention build does not support backward.")
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    assert is_aligned(dout) and softmax_scale is not None and dq is not None and dk is not None and dv is not None
    assert not (deterministic and q.shape[-1] == 256), "deterministic backward is not supported for head dim 256"
    window = (window_size_left, window_size_right)
    _check(q, k, v, is_causal, *window, softcap)
    assert out is not None and softmax_lse is not None
    seen = _seen(q, k, is_causal, *window)
    results = gradients(dout, q, k, v, softmax_scale, seen, (out, softmax_lse), softcap=softcap)
    for buffer, grad in zip((dq, dk, dv), results, strict=True):
        buffer.copy_(grad)
    return softmax_lse


def install(
    monkeypatch: pytest.MonkeyPatch,
    without: Iterable[str] = (),
    sinks: bool = False,
    config: bool = True,
    raw: bool = False,
) -> None:
    """Let ``import flash_attn_interface`` find this, built ``without`` some features; ``raw``: with its C++ op."""
    monkeypatch.setattr(f"{__name__}.disabled", frozenset(without))
    forward = flash_attn_func_with_sinks if sinks else flash_attn_func
    module(monkeypatch, "flash_attn_3._C")
    functions: dict[str, Any] = {"flash_attn_func": forward, "_flash_attn_backward": _flash_attn_backward}
    if raw:
        functions["flash_attn_3_gpu"] = SimpleNamespace(fwd=SimpleNamespace(default=RawOp()))
    module(monkeypatch, "flash_attn_interface", **functions)
    if config:
        names = (
            "VARLEN",
            "PAGEDKV",
            "BACKWARD",
            "SOFTCAP",
            "LOCAL",
            "FP16",
            "FP8",
            "HDIM64",
            "HDIM96",
            "HDIM128",
            "HDIM192",
            "HDIM256",
            "SM8x",
        )
        flags = {f"FLASHATTENTION_DISABLE_{name}": name in disabled for name in names}
        module(monkeypatch, "flash_attn_config", CONFIG={"build_flags": flags})
