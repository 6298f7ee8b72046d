"""xFormers 0.0.35: ``xformers.ops.fmha`` with its operators ``flash`` and ``cutlass``.

Traps kept: a bias has exactly (B, H, Sq, Sk) and aligned rows, LowerTriangularMask is top-left and flash takes it only
for Sq == Sk, grouped heads are a fifth dimension without backward, cutlass misreads stride 0 at Sk % 32 == 1 and wants
aligned strides of single rows too, the log-sum-exp of cutlass has padded rows, and a binary that does not load leaves
every operator unsupported.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band, gradients

loaded = True


class LowerTriangularMask:
    """Causal, top-left."""


@dataclass
class Inputs:
    query: Tensor
    key: Tensor
    value: Tensor
    attn_bias: Any = None
    p: float = 0.0
    scale: float | None = None

    def validate(self) -> None:
        q, k, v = self.query, self.key, self.value
        if q.ndim not in (4, 5) or q.shape[0] != k.shape[0] or k.shape != (*v.shape[:-1], q.shape[-1]):
            raise ValueError("Incompatible shapes for attention inputs")
        if q.shape[2:-1] != k.shape[2:-1]:
            raise ValueError("We don't support broadcasting, please use `expand` yourself")
        if q.dtype != k.dtype or q.dtype != v.dtype:
            raise ValueError("Query/Key/Value should either all have the same dtype")
        wanted = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if isinstance(self.attn_bias, Tensor) and q.ndim == 4 and self.attn_bias.shape != wanted:
            raise ValueError(f"Invalid shape for attention bias: {self.attn_bias.shape} (expected {wanted})")

    def flat(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Four dimensions: grouped heads folded, as the kernels read them."""
        q, k, v, bias = self.query, self.key, self.value, self.attn_bias
        if q.ndim == 5:
            assert k.stride(3) == 0 or k.shape[3] == 1, "K and V of a group are one, expanded"
            q, k, v = q.flatten(2, 3), k[:, :, :, 0], v[:, :, :, 0]
            bias = bias.flatten(1, 2) if isinstance(bias, Tensor) else bias
        return q, k, v, bias if isinstance(bias, Tensor) else None


class Operator:
    """What both operators check before they run."""

    NAME = ""
    DTYPES: tuple[torch.dtype, ...] = (torch.float16, torch.bfloat16)
    SUPPORTS_BMGHK = True
    FLASH = True

    @classmethod
    def not_supported_reasons(cls, call: Inputs) -> list[str]:
        q, k, v, bias = call.query, call.key, call.value, call.attn_bias
        reasons = [] if loaded else ["operator wasn't built - see `python -m xformers.info` for more info"]
        step = 4 if q.dtype == torch.float32 else 8
        if q.dtype not in cls.DTYPES:
            reasons.append(f"dtype={q.dtype} (supported: {cls.DTYPES})")
        if q.ndim == 5 and not cls.SUPPORTS_BMGHK:
            reasons.append("bmghk format not supported")
        for name, x in (("query", q),) if cls.FLASH else (("query", q), ("key", k), ("value", v)):
            if x.shape[-1] % step or x.stride(-2) % step or x.stride(-1) > 1:
                reasons.append(f"{name}.stride(-2) % {step} != 0 ({name}.stride() = {x.stride()})")
        if cls.FLASH and (q.shape[-1] > 256 or q.shape[-1] != v.shape[-1] or isinstance(bias, Tensor)):
            reasons.append("max(query.shape[-1], value.shape[-1]) > 256, or attn_bias type is Tensor")
        if cls.FLASH and isinstance(bias, LowerTriangularMask) and q.shape[1] != k.shape[1]:
            reasons.append("Only support custom_mask_type=from_top_left for equal lengths")
        if isinstance(bias, Tensor):
            step = 128 // torch.finfo(bias.dtype).bits
            if any(stride % step for stride in bias.stride()[:-1]) or bias.stride(-1) > 1:
                reasons.append(f"attn_bias.stride(-2) % {step} != 0 (attn_bias.stride() = {bias.stride()})")
        return reasons

    @classmethod
    def check(cls, call: Inputs) -> None:
        call.validate()
        reasons = cls.not_supported_reasons(call)
        if reasons:
            raise ValueError(f"Operator `{cls.NAME}` does not support inputs: " + "; ".join(reasons))

    @classmethod
    def check_rows(cls, call: Inputs) -> None:
        """What cutlass's kernel itself wants of K and V, which the operator does not check."""
        for name, x in (("key", call.key), ("value", call.value)):
            if x.stride(1) % (16 // x.dtype.itemsize):
                raise RuntimeError(f"{name} is not correctly aligned (strideM)")
            expanded = any(step == 0 and size > 1 for step, size in zip(x.stride(), x.shape, strict=True))
            assert not (expanded and x.shape[1] % 32 == 1), f"{name} is misread, pytorch/pytorch#191937"

    @classmethod
    def arguments(cls, call: Inputs) -> tuple[Any, dict[str, Any]]:
        q, k, v, bias = call.flat()
        scale = q.shape[-1] ** -0.5 if call.scale is None else call.scale
        causal = isinstance(call.attn_bias, LowerTriangularMask)
        seen = band(q.shape[1], k.shape[1], None, 0 if causal else None, offset=0)
        if bias is None and not cls.FLASH:  # cutlass scales before it takes the maximum
            bias = torch.zeros((), dtype=q.dtype)
        return (q, k, v, scale, seen), {"bias": bias}

    @classmethod
    def apply(cls, call: Inputs, needs_gradient: bool) -> tuple[Tensor, Tensor]:
        """The real one checks nothing: what it refuses here would be a crash or a wrong result there."""
        cls.check(call)
        assert call.p == 0.0 and cls.NAME[-3:] == "-pt", "the library's dispatch could take FlashAttention-3"
        if not cls.FLASH:
            cls.check_rows(call)
        operands, more = cls.arguments(call)
        out, lse = attention(*operands, **more)
        if not cls.FLASH:
            lse = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
        return out.reshape(*call.query.shape[:-1], call.value.shape[-1]), lse


class FlashFwOp(Operator):
    NAME = "fa2F@2.5.7-pt"


class FlashBwOp(Operator):
    NAME = "fa2B@2.5.7-pt"
    SUPPORTS_BMGHK = False


class CutlassFwOp(Operator):
    NAME = "cutlassF-pt"
    DTYPES = (torch.float32, torch.float16, torch.bfloat16)
    FLASH = False


class CutlassBwOp(CutlassFwOp):
    NAME = "cutlassB-pt"
    SUPPORTS_BMGHK = False


def memory_efficient_attention_forward_requires_grad(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[Operator] | None = None,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    if p != 0.0:
        raise NotImplementedError("dropout is not supported on the non-autograd API.")
    assert op is not None
    return op.apply(Inputs(query, key, value, attn_bias, p, scale), needs_gradient=True)


def memory_efficient_attention_backward(
    grad: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: Any = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: type[Operator] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert op is not None and p == 0.0
    call = Inputs(query, key, value, attn_bias, p, scale)
    op.check(call)
    assert grad.shape == output.shape and grad.dtype == query.dtype
    assert lse.ndim == query.ndim - 1 and lse.shape[1] == query.shape[2] and lse.shape[2] >= query.shape[1]
    operands, more = op.arguments(call)
    out = output.reshape(*operands[0].shape[:3], -1)
    return gradients(grad, *operands, (out, lse), **more)


def install(monkeypatch: pytest.MonkeyPatch, broken: BaseException | None = None) -> None:
    """Let ``import xformers.ops`` find this; ``broken``: what loading its binary raised."""
    from attnpass.kernels import xformers as kernel

    for name in ("_causal", "_operators"):  # they remember what they found in the library
        monkeypatch.setattr(kernel, name, getattr(getattr(kernel, name), "__wrapped__", getattr(kernel, name)))
    monkeypatch.setattr(f"{__name__}.loaded", broken is None)
    cause = None
    if broken is not None:
        cause = RuntimeError("xFormers can't load C++/CUDA extensions. xFormers was built for: PyTorch 2.10.0+cu128")
        cause.__cause__ = broken
    functions: dict[str, Any] = {
        "Inputs": Inputs,
        "memory_efficient_attention_forward_requires_grad": memory_efficient_attention_forward_requires_grad,
        "memory_efficient_attention_backward": memory_efficient_attention_backward,
        "flash": SimpleNamespace(FwOp=FlashFwOp, BwOp=FlashBwOp),
        "cutlass": SimpleNamespace(FwOp=CutlassFwOp, BwOp=CutlassBwOp),
    }
    module(monkeypatch, "xformers._cpp_lib", _cpp_library_load_exception=cause)
    module(monkeypatch, "xformers.ops", LowerTriangularMask=LowerTriangularMask)
    module(monkeypatch, "xformers.ops.fmha", **functions)
