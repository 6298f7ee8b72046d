"""Single calls for `benchmarks.ground`: masks that are inputs, padding that the graph shows, softcap by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.forms import repeat
from benchmarks.subjects import Inputs

SOFTCAP = 50.0
DOCUMENT = 700  # tokens
LAST = 64  # rows that are compared where padding on the left leaves the first ones nothing to see
Sdpa = F.scaled_dot_product_attention
Built = tuple[nn.Module, Inputs]


@dataclass(frozen=True, slots=True)
class Ground:
    """A model or a call, and what it is called with.

    Attributes:
        group: the rows that are told of together.
        build: makes the module and the keyword arguments of a call on a device, of these sizes.
        sizes: the real ones.
        small: what replaces some of them, to try the script.
        kernels: asked for by name besides.
        beside: the form that a call is timed beside, compiled by plain Inductor.
        layers: the submodule whose children are compiled one by one as well.
        train: time a training step.
        last: compare only so many rows (dim -2) of the output.
    """

    group: str
    build: Callable[..., Built]
    sizes: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    beside: str = ""
    layers: str = ""
    train: bool = False
    last: int = 0

    def built(self, device: str, small: bool, **more: Any) -> Built:
        return self.build(device, **{**self.sizes, **(self.small if small else {}), **more})


class Call(nn.Module):
    """One attention call in a form; ``mask`` is whatever that form takes."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form  # a name, which Dynamo guards; of a bound method it guards nothing (PyTorch 2.11)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = getattr(self, self.form)(q, k, v, mask)
        return out

    def unmasked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return Sdpa(q, k, v, enable_gqa=q.shape[1] != k.shape[1])

    def fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return Sdpa(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])

    def given(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B or 1, 1, Sq, Sk), bool."""
        return Sdpa(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])

    def padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B, Sk), bool."""
        shown = mask[:, None, None, :].expand(-1, 1, q.shape[2], -1)
        return Sdpa(q, k, v, shown, enable_gqa=q.shape[1] != k.shape[1])

    def causal_and_padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """``mask`` (B, Sk), bool."""
        i = torch.arange(q.shape[2], device=q.device)
        shown = (i[None] <= i[:, None]) & mask[:, None, None, :]
        return Sdpa(q, k, v, shown, enable_gqa=q.shape[1] != k.shape[1])

    def softcap(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ repeat(k, q).transpose(2, 3) * q.shape[-1] ** -0.5
        scores = torch.tanh(scores / SOFTCAP) * SOFTCAP
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
        return weights @ repeat(v, q)


def call(device: str, form: str, shape: tuple[int, ...], mask: str) -> Built:
    """A call of (B, H, Hkv, S, D), its operands stored as (B, S, H, D), and the mask by its name."""
    B, H, Hkv, S, D = shape
    stored = (torch.randn(B, S, heads, D, device=device, dtype=torch.bfloat16) for heads in (H, Hkv, Hkv))
    q, k, v = (x.transpose(1, 2) for x in stored)
    return Call(form), {"q": q, "k": k, "v": v, "mask": _mask(mask, B, S).to(device)}


def shown(B: int, S: int, left: bool = False) -> Tensor:
    """(B, S), bool: from all tokens of the first sequence to half of those of the last, a quarter is padding."""
    lengths = torch.linspace(S, S // 2, B).long()
    right = torch.arange(S) < lengths[:, None]
    return right.flip(1) if left else right


def _mask(name: str, B: int, S: int) -> Tensor:
    if name in ("left", "right"):
        return shown(B, S, name == "left")
    i = torch.arange(S)
    causal, distance = i[None] <= i[:, None], i[:, None] - i[None]
    made = {
        "causal": causal,
        "window": causal & (distance < min(1024, S // 4)),
        "documents": causal & (i[None] // DOCUMENT == i[:, None] // DOCUMENT),
    }
    return made[name][None, None]


def _row(group: str, form: str, mask: str, shape: tuple[int, ...], **more: Any) -> Ground:
    B, H, Hkv, _, _ = shape
    sizes = {"form": form, "mask": mask, "shape": shape}
    return Ground(group, call, sizes, {"shape": (B, H // min(Hkv, 4), max(Hkv // 4, 1), 128, 32)}, **more)


def _masks(mask: str, *shape: int) -> Ground:
    return _row("masks", "given", mask, shape, kernels=("native_cudnn",), beside="fused")


def _padding(mask: str, *shape: int) -> Ground:
    return _row("padding", "padded", mask, shape, kernels=("native_cudnn",), beside="unmasked")


def _softcap(*shape: int) -> Ground:
    return _row("softcap", "softcap", "causal", shape, beside="fused")


CALLS = {
    "causal_d128": _masks("causal", 2, 32, 8, 4096, 128),
    "window_d128": _masks("window", 2, 32, 8, 4096, 128),
    "documents_d128": _masks("documents", 2, 32, 8, 4096, 128),
    "causal_d64": _masks("causal", 8, 16, 16, 2048, 64),
    "causal_4608": _masks("causal", 1, 24, 24, 4608, 128),
    "padding_d64": _padding("right", 8, 16, 16, 2048, 64),
    "padding_d128": _padding("right", 3, 20, 5, 3001, 128),
    "padding_d96": _padding("right", 2, 16, 16, 3072, 96),
    "causal_right": _row("padding", "causal_and_padded", "right", (8, 16, 16, 2048, 64), beside="fused"),
    "causal_left": _row("padding", "causal_and_padded", "left", (8, 16, 16, 2048, 64), beside="fused", last=LAST),
    "softcap_d128": _softcap(2, 32, 16, 2048, 128),
    "softcap_d256": _softcap(2, 8, 4, 4096, 256),
}
