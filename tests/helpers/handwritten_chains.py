"""Attention written by hand, generated: every optional part of a chain in every spelling, as one dataclass.

A chain takes q (B, H, Sq, D), k and v (B, Hkv, Sk, D), whatever layout it then works in, and a mask, a bias, sinks and
a scale. The same chain runs in fp64 as the exact answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PARTS: dict[str, tuple[str, ...]] = {
    "product": ("@", "matmul", "method", "bmm", "baddbmm", "einsum bhqd", "einsum bqhd", "einsum ellipsis"),
    "scale": ("none", "mul", "div", "sqrt", "on q", "on k", "both", "tensor", "twice"),
    "softcap": ("none", "none", "none", "tanh"),
    "bias": ("none", "none", "heads", "full", "padding", "-10000", "-inf"),
    "mask": ("none", "none", "masked_fill", "masked_fill_", "min", "-1e9", "where", "where other", "== 0", "two"),
    "order": ("bias first", "mask first"),
    "softmax": ("F", "torch", "method", "float", "dtype", "shifted"),
    "dropout": ("none", "none", "p=0", "eval", "torch"),
    "repeat": ("none", "none", "repeat_interleave", "expand", "unsqueeze", "multi-query"),
    "sinks": ("none", "none", "none", "none", "none", "none", "last", "first"),
    "values": ("@", "bmm", "einsum", "einsum bqhd"),
}


@dataclass(frozen=True)
class Chain:
    """One spelling; the fields are choices among `PARTS`."""

    product: str = "@"
    scale: str = "mul"
    softcap: str = "none"
    bias: str = "none"
    mask: str = "none"
    order: str = "bias first"
    softmax: str = "F"
    dropout: str = "none"
    repeat: str = "none"
    sinks: str = "none"
    values: str = "@"
    shape: tuple[int, int, int, int, int, int] = (2, 4, 2, 9, 11, 16)  # B, H, Hkv, Sq, Sk, D
    empty: bool = False
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        usual = Chain()
        odd = [
            f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)
        ]
        return ", ".join(odd) or "usual"

    @property
    def meaningful(self) -> bool:
        """May the parts stand together? A finite fill beside a bias, which may be lower still, is refused."""
        finite = {"min": torch.finfo(self.dtype).min, "-1e9": -1e9}.get(self.mask, -math.inf)
        beside_bias = finite > -1e30 and self.bias != "none"
        return not beside_bias and not (self.softcap != "none" and self.sinks != "none")

    def tensors(self, grad: bool = False) -> list[Tensor]:
        """q, k, v, mask, bias, sinks, scale."""
        B, H, Hkv, Sq, Sk, D = self.shape
        dtype = self.dtype
        Hkv = H if self.repeat == "none" else 1 if self.repeat == "multi-query" else Hkv
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        made = [normal(B, H, Sq, D), normal(B, Hkv, Sk, D), normal(B, Hkv, Sk, D)]
        mask = torch.rand(B, 1, Sq, Sk, generator=generator) > 0.4
        mask[..., 0] = True
        if self.empty:
            mask[-1, :, -1] = False
        shape = {"heads": (1, H, Sq, Sk), "padding": (B, 1, 1, Sk)}.get(self.bias, (B, H, Sq, Sk))
        bias = normal(*shape)
        if self.bias in ("-10000", "-inf", "padding"):
            value = {"-10000": -10000.0, "-inf": -math.inf, "padding": torch.finfo(dtype).min}[self.bias]
            hidden = torch.rand(bias.shape, generator=generator) > 0.7
            hidden[..., 0] = self.empty
            bias = torch.zeros_like(bias).masked_fill(hidden, value)
        made += [mask, bias, normal(H), torch.tensor(D**-0.5, dtype=dtype)]
        return [t.requires_grad_(grad) if i < 3 else t for i, t in enumerate(made)]

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor, sinks: Tensor, scale: Tensor
    ) -> Tensor:
        k, v = _repeated(self, k), _repeated(self, v)
        q, k = _scaled_before(self, q, k)
        scores = _scores(self, q, k)
        scores = _scaled_after(self, scores, scale)
        if self.softcap == "tanh":
            scores = torch.tanh(scores / 5.0) * 5.0
        for step in (_biased, _masked) if self.order == "bias first" else (_masked, _biased):
            scores = step(self, scores, mask, bias)
        probabilities = _softmax(self, scores, sinks)
        if self.dropout == "p=0":
            probabilities = F.dropout(probabilities, p=0.0, training=True)
        elif self.dropout == "eval":
            probabilities = F.dropout(probabilities, 0.1, False)
        elif self.dropout == "torch":
            probabilities = torch.dropout(probabilities, 0.1, False)
        return _values(self, probabilities, v)


def _repeated(chain: Chain, x: Tensor) -> Tensor:
    B, H, Hkv, _, Sk, D = chain.shape
    if chain.repeat == "repeat_interleave":
        return torch.repeat_interleave(x, H // Hkv, dim=1)
    if chain.repeat == "expand":
        return x[:, :, None, :, :].expand(B, Hkv, H // Hkv, Sk, D).reshape(B, H, Sk, D)
    if chain.repeat == "unsqueeze":
        return x.unsqueeze(2).repeat(1, 1, H // Hkv, 1, 1).flatten(1, 2)
    return x


def _all_heads(chain: Chain, x: Tensor) -> Tensor:
    B, H, _, _, Sk, D = chain.shape
    return x.expand(B, H, Sk, D) if chain.repeat == "multi-query" else x


def _scaled_before(chain: Chain, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    D = chain.shape[-1]
    if chain.scale == "on q":
        return q * D**-0.5, k
    if chain.scale == "on k":
        return q, k / math.sqrt(D)
    if chain.scale == "both":
        return q * D**-0.25, k * D**-0.25
    return q, k


def _scores(chain: Chain, q: Tensor, k: Tensor) -> Tensor:
    B, H, _, Sq, Sk, D = chain.shape
    match chain.product:
        case "matmul":
            return torch.matmul(q, k.transpose(-1, -2))
        case "method":
            return q.matmul(k.permute(0, 1, 3, 2))
        case "bmm":
            k = _all_heads(chain, k)
            return torch.bmm(q.reshape(B * H, Sq, D), k.reshape(B * H, Sk, D).transpose(1, 2)).view(B, H, Sq, Sk)
        case "baddbmm":
            nothing = torch.empty(B * H, Sq, Sk, dtype=chain.dtype)
            keys = _all_heads(chain, k).reshape(B * H, Sk, D).transpose(-1, -2)
            return torch.baddbmm(nothing, q.reshape(B * H, Sq, D), keys, beta=0, alpha=0.5).view(B, H, Sq, Sk)
        case "einsum bhqd":
            return torch.einsum("b h i d, b h j d -> b h i j", q, _all_heads(chain, k))
        case "einsum bqhd":
            keys = _all_heads(chain, k).transpose(1, 2)
            return torch.einsum("bqhd,bkhd->bhqk", q.transpose(1, 2), keys)
        case "einsum ellipsis":
            return torch.einsum("...qd,...kd->...qk", q, k)
    return q @ k.transpose(-1, -2)


def _scaled_after(chain: Chain, scores: Tensor, scale: Tensor) -> Tensor:
    D = chain.shape[-1]
    if chain.scale == "mul":
        return scores * D**-0.5
    if chain.scale == "div":
        return scores / math.sqrt(D)
    if chain.scale == "sqrt":
        scores /= D**0.5
    elif chain.scale == "tensor":
        return scores * scale
    elif chain.scale == "twice":
        return 0.5 * (scores / 2)
    return scores


def _biased(chain: Chain, scores: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    if chain.bias == "none":
        return scores
    return bias + scores if chain.bias == "heads" else scores + bias


def _masked(chain: Chain, scores: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    lowest = torch.finfo(chain.dtype).min
    match chain.mask:
        case "masked_fill":
            return scores.masked_fill(~mask, -math.inf)
        case "masked_fill_":
            scores.masked_fill_(mask.logical_not(), float("-inf"))
        case "min":
            return scores.masked_fill(~mask, lowest)
        case "-1e9":
            return scores.masked_fill(mask == 0, max(-1e9, lowest))
        case "where":
            return torch.where(mask, scores, float("-inf"))
        case "where other":
            return torch.where(~mask, torch.tensor(-math.inf, dtype=chain.dtype), scores)
        case "== 0":
            return torch.masked_fill(scores, mask == 0, float("-inf"))
        case "two":
            causal = torch.ones(chain.shape[3], chain.shape[4], dtype=torch.bool).tril(2)
            return scores.masked_fill(~causal, -math.inf).masked_fill(~mask, -math.inf)
    return scores


def _softmax(chain: Chain, scores: Tensor, sinks: Tensor) -> Tensor:
    B, H, _, Sq, _, _ = chain.shape
    dtype = chain.dtype
    column = sinks.reshape(1, -1, 1, 1).expand(B, H, Sq, 1)
    if chain.sinks != "none":
        parts = [scores, column] if chain.sinks == "last" else [column, scores]
        scores = torch.cat(parts, dim=-1)
    spelled: dict[str, Callable[[Tensor], Tensor]] = {
        "F": lambda s: F.softmax(s, dim=-1),
        "torch": lambda s: torch.softmax(s, 3),
        "method": lambda s: s.softmax(-1),
        "float": lambda s: s.float().softmax(dim=-1).type_as(s) if dtype != torch.float64 else s.softmax(-1),
        "dtype": lambda s: F.softmax(s, dim=-1, dtype=_at_least_fp32(dtype)).to(dtype),
        "shifted": lambda s: torch.softmax(s - s.amax(-1, keepdim=True), -1),
    }
    probabilities = spelled[chain.softmax](scores)
    if chain.sinks == "none":
        return probabilities
    return probabilities[..., :-1] if chain.sinks == "last" else probabilities[..., 1:]


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _values(chain: Chain, probabilities: Tensor, v: Tensor) -> Tensor:
    B, H, _, Sq, Sk, D = chain.shape
    if chain.values == "bmm":
        values = _all_heads(chain, v).reshape(B * H, Sk, D)
        return torch.bmm(probabilities.view(B * H, Sq, Sk), values).view(B, H, Sq, D)
    if chain.values == "einsum":
        return torch.einsum("...ij,...jd->...id", probabilities, v)
    if chain.values == "einsum bqhd":
        values = _all_heads(chain, v).transpose(1, 2)
        return torch.einsum("bhqk,bkhd->bqhd", probabilities, values)
    return probabilities @ v


def exact(chain: Chain, tensors: list[Tensor]) -> Tensor:
    """The chain in fp64 on the same data."""
    return replace(chain, dtype=torch.float64)(*[t.double() if t.is_floating_point() else t for t in tensors])


def random_chain(draw: Callable[[tuple[Any, ...]], Any]) -> Chain:
    """A chain whose parts are drawn."""
    shapes = ((2, 4, 2, 9, 11, 16), (1, 4, 2, 1, 7, 8), (2, 6, 3, 5, 5, 8), (3, 2, 1, 4, 6, 32), (1, 1, 1, 3, 2, 8))
    parts = {name: draw(values) for name, values in PARTS.items()}
    dtype = draw((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    return Chain(**parts, shape=draw(shapes), empty=draw((False, True)), dtype=dtype)


def traced(chain: Chain) -> torch.fx.GraphModule:
    """The chain as a graph of torch functions and methods, as Dynamo would write it."""
    return torch.fx.symbolic_trace(lambda q, k, v, mask, bias, sinks, scale: chain(q, k, v, mask, bias, sinks, scale))
