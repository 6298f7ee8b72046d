"""Models of `benchmarks.ground` as programs write them by hand: no call of ``scaled_dot_product_attention`` in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention behind a norm, and a feed-forward behind another, as nearly every program has them."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), *more)
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class Stack(nn.Module):
    """Blocks in a row: (B, S, width) to the same. What comes besides goes to each."""

    def __init__(self, width: int, layers: int, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, attention()) for _ in range(layers))

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, *more)
        return x


class XAttention(nn.Module):
    """As x-transformers writes it: einsum, ALiBi or not, ``triu`` and ``masked_fill``, softmax in fp32."""

    def __init__(self, width: int, heads: int, alibi: bool) -> None:
        super().__init__()
        self.heads, self.alibi = heads, alibi
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, S, E = x.shape
        q, k, v = (to(x).view(B, S, self.heads, -1).transpose(1, 2) for to in (self.to_q, self.to_k, self.to_v))
        dots = torch.einsum("b h i d, b h j d -> b h i j", q, k) * (E // self.heads) ** -0.5
        i = torch.arange(S, device=x.device)
        if self.alibi:
            slopes = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1, device=x.device) / self.heads)
            dots = dots - (slopes[:, None, None] * (i[None] - i[:, None]).abs()).to(dots.dtype)
        hidden = torch.ones(S, S, dtype=torch.bool, device=x.device).triu(1)
        dots = dots.masked_fill(hidden, -torch.finfo(dots.dtype).max)
        weights = dots.softmax(dim=-1, dtype=torch.float32).to(dots.dtype)
        out = torch.einsum("b h i j, b h j d -> b h i d", weights, v)
        result: Tensor = self.to_out(out.transpose(1, 2).reshape(B, S, E))
        return result


class RelativeAttention(nn.Module):
    """As ESPnet's Conformer writes it: scores by content and by distance, both masked before and after the softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.pos = nn.Linear(width, width, bias=False)
        self.bias_u, self.bias_v = (nn.Parameter(torch.randn(heads, width // heads) * 0.1) for _ in range(2))

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, S, width), ``places`` (1, 2 S - 1, width), ``mask`` (B, 1, S), bool."""
        B, S, E = x.shape
        q, k, v, p = (
            linear(y).view(y.shape[0], -1, self.heads, E // self.heads)
            for linear, y in ((self.q, x), (self.k, x), (self.v, x), (self.pos, places))
        )
        with_u, with_v = ((q + bias).transpose(1, 2) for bias in (self.bias_u, self.bias_v))
        matrix_ac = torch.matmul(with_u, k.transpose(1, 2).transpose(-2, -1))
        matrix_bd = _shifted(torch.matmul(with_v, p.transpose(1, 2).transpose(-2, -1)))
        scores = (matrix_ac + matrix_bd) / (E // self.heads) ** 0.5
        hidden = mask.unsqueeze(1).eq(0)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)
        out = torch.matmul(weights, v.transpose(1, 2)).transpose(1, 2).reshape(B, S, E)
        result: Tensor = self.out(out)
        return result


def _shifted(x: Tensor) -> Tensor:
    """(B, H, S, 2 S - 1) by distance to (B, H, S, S) by key: a column in front, read in other rows."""
    zero = torch.zeros((*x.shape[:3], 1), device=x.device, dtype=x.dtype)
    padded = torch.cat([zero, x], dim=-1).view(*x.shape[:2], x.shape[3] + 1, x.shape[2])
    return padded[:, :, 1:].view_as(x)[:, :, :, : x.shape[-1] // 2 + 1]


class LatentAttention(nn.Module):
    """As DeepSeek-V2 and V3 have it: scores of the parts without and with a place, keys of the latter for all heads.

    The turning of those parts is left out: it stands in front of the attention.
    """

    def __init__(self, width: int, heads: int, D: int, places: int) -> None:
        super().__init__()
        self.heads, self.D, self.places, self.latent = heads, D, places, 4 * D
        self.wq = nn.Linear(width, heads * (D + places), bias=False)
        self.wkv_a, self.norm = nn.Linear(width, self.latent + places, bias=False), nn.RMSNorm(self.latent)
        self.wkv_b, self.wo = nn.Linear(self.latent, heads * 2 * D, bias=False), nn.Linear(heads * D, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, S, _ = x.shape
        q_nope, q_pe = self.wq(x).view(B, S, self.heads, -1).split([self.D, self.places], dim=-1)
        kv, k_pe = self.wkv_a(x).split([self.latent, self.places], dim=-1)
        k_nope, v = self.wkv_b(self.norm(kv)).view(B, S, self.heads, -1).chunk(2, dim=-1)
        scores = torch.einsum("bshd,bthd->bsht", q_nope, k_nope) + torch.einsum("bshr,btr->bsht", q_pe, k_pe)
        scores = scores * (self.D + self.places) ** -0.5
        mask = torch.full((S, S), float("-inf"), device=x.device).triu_(1)
        weights = (scores + mask[None, :, None]).softmax(dim=-1, dtype=torch.float32).type_as(x)
        out: Tensor = self.wo(torch.einsum("bsht,bthd->bshd", weights, v).flatten(2))
        return out
