"""The attention of well-known models as their authors write it by hand, in our own words and small.

``VERBATIM[name]`` is (function, shapes): the function takes tensors of these shapes, ``"bool"`` in front of a shape
means a mask. Every function holds exactly one attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

B, S, H, D = 2, 12, 4, 16
E = H * D


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], x.shape[1], H, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().view(x.shape[0], x.shape[2], -1)


def nanogpt(qkv: Tensor, tril: Tensor) -> Tensor:
    q, k, v = (heads(part) for part in qkv.split(E, dim=2))
    att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    att = att.masked_fill(tril[:, :, :S, :S] == 0, float("-inf"))
    att = F.softmax(att, dim=-1)
    att = F.dropout(att, 0.0)
    return merged(att @ v)


def llama(xq: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    def repeat_kv(x: Tensor, n: int) -> Tensor:
        b, s, n_kv, d = x.shape
        return x[:, :, :, None, :].expand(b, s, n_kv, n, d).reshape(b, s, n_kv * n, d)

    keys, values = repeat_kv(keys, 2), repeat_kv(values, 2)
    xq, keys, values = xq.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(D)
    scores = scores + mask
    scores = F.softmax(scores.float(), dim=-1).type_as(xq)
    return torch.matmul(scores, values).transpose(1, 2).contiguous().view(B, S, -1)


def vit(qkv: Tensor) -> Tensor:
    q, k, v = qkv.reshape(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    q = q * D**-0.5
    attn = q @ k.transpose(-2, -1)
    attn = attn.softmax(dim=-1)
    return (attn @ v).transpose(1, 2).reshape(B, S, E)


def swin(qkv: Tensor, table: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    windows, n = 4, 9
    qkv = qkv.reshape(2 * windows, n, 3, H, D).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    q = q * D**-0.5
    attn = q @ k.transpose(-2, -1)
    bias = table[index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
    attn = attn + bias.unsqueeze(0)
    attn = attn.view(2, windows, H, n, n) + mask.unsqueeze(1).unsqueeze(0)
    attn = attn.view(-1, H, n, n)
    attn = nn.Softmax(dim=-1)(attn)
    return (attn @ v).transpose(1, 2).reshape(2 * windows, n, E)


def beit(q: Tensor, k: Tensor, v: Tensor, relative: Tensor, shared: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores / math.sqrt(D)
    scores = scores + relative.unsqueeze(0)
    scores = scores + shared
    return merged(torch.matmul(nn.functional.softmax(scores, dim=-1), v))


def t5(q: Tensor, k: Tensor, v: Tensor, position_bias: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(3, 2))
    scores += position_bias + mask
    weights = nn.functional.softmax(scores.float(), dim=-1).type_as(scores)
    return merged(torch.matmul(nn.functional.dropout(weights, p=0.1, training=False), v))


def gptj(q: Tensor, k: Tensor, v: Tensor, causal: Tensor, mask: Tensor) -> Tensor:
    q, k = q.to(torch.float32), k.to(torch.float32)
    weights = torch.matmul(q, k.transpose(-1, -2))
    lowest = torch.tensor(torch.finfo(weights.dtype).min, dtype=weights.dtype)
    weights = torch.where(causal, weights, lowest)
    weights = weights / math.sqrt(D)
    weights = weights + mask
    weights = nn.functional.softmax(weights, dim=-1).to(v.dtype)
    return merged(torch.matmul(weights, v))


def bloom(q: Tensor, k: Tensor, v: Tensor, alibi: Tensor, mask: Tensor) -> Tensor:
    q, v = q.reshape(B * H, S, D), v.reshape(B * H, S, D)
    k = k.reshape(B * H, S, D).transpose(-1, -2)
    scores = alibi.baddbmm(batch1=q, batch2=k, beta=1.0, alpha=D**-0.5).view(B, H, S, S)
    scores = scores + mask
    probs = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype).view(B * H, S, S)
    return torch.bmm(probs, v).view(B, H, S, D).permute(0, 2, 1, 3).reshape(B, S, E)


def falcon(q: Tensor, k: Tensor, v: Tensor, alibi: Tensor, mask: Tensor) -> Tensor:
    """Multi-query, ALiBi added before the scale."""
    scores = (q @ k.transpose(-1, -2)).view(B, H, S, S)
    logits = scores + alibi.view(B, H, 1, -1)
    logits *= 1.0 / math.sqrt(D)
    probs = F.softmax(logits + mask, dim=-1, dtype=q.dtype)
    return (probs.view(B, H, S, S) @ v).transpose(1, 2).reshape(B, S, E)


def dit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = q * D**-0.5
    attn = torch.einsum("bnhd,bmhd->bhnm", q, k)
    return torch.einsum("bhnm,bmhd->bnhd", attn.softmax(-1), v).flatten(2)


def unet(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads folded into the batch, ``baddbmm`` that adds nothing."""

    def to_batch(x: Tensor) -> Tensor:
        b, s, _ = x.shape
        return x.reshape(b, s, H, D).permute(0, 2, 1, 3).reshape(b * H, s, D)

    q, k, v = to_batch(q), to_batch(k), to_batch(v)
    empty = torch.empty(q.shape[0], q.shape[1], k.shape[1], dtype=q.dtype, device=q.device)
    scores = torch.baddbmm(empty, q, k.transpose(-1, -2), beta=0, alpha=D**-0.5)
    probs = scores.softmax(dim=-1).to(v.dtype)
    out = torch.bmm(probs, v)
    return out.reshape(B, H, -1, D).permute(0, 2, 1, 3).reshape(B, -1, E)


def ldm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head over the pixels of an image; the values stand left of the weights."""
    b, c, h, w = q.shape
    q = q.reshape(b, c, h * w).permute(0, 2, 1)
    k = k.reshape(b, c, h * w)
    weights = torch.bmm(q, k) * (int(c) ** (-0.5))
    weights = torch.nn.functional.softmax(weights, dim=2)
    v = v.reshape(b, c, h * w)
    return torch.bmm(v, weights.permute(0, 2, 1)).reshape(b, c, h, w)


def perceiver(latents: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Latents that are the same for the whole batch, and another head dim for the values."""
    q = latents.expand(B, -1, -1)
    q, k, v = heads(q), heads(k), heads(v)
    probs = nn.Softmax(dim=-1)(torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D))
    return merged(torch.matmul(probs, v))


def detr(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """Sequence first, as nn.MultiheadAttention works inside."""
    q = q.contiguous().view(S, B * H, D).transpose(0, 1) * D**-0.5
    k, v = (x.contiguous().view(-1, B * H, D).transpose(0, 1) for x in (k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).view(B, H, S, S)
    weights = weights.masked_fill(padding.unsqueeze(1).unsqueeze(2), float("-inf")).view(B * H, S, S)
    weights = F.dropout(F.softmax(weights, dim=-1), p=0.0, training=False)
    return torch.bmm(weights, v).transpose(0, 1).contiguous().view(S, B, E)


def wav2vec2(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    shape = (B * H, -1, D)
    q = (q * D**-0.5).view(B, S, H, D).transpose(1, 2).contiguous().view(*shape)
    k, v = (x.view(B, -1, H, D).transpose(1, 2).contiguous().view(*shape) for x in (k, v))
    weights = torch.bmm(q, k.transpose(1, 2)).view(B, H, S, S) + mask
    weights = F.softmax(weights.view(B * H, S, S), dim=-1)
    out = torch.bmm(weights, v).view(B, H, S, D)
    return out.transpose(1, 2).reshape(B, S, E)


def esm(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q = heads(q) * D**-0.5
    scores = torch.matmul(q, heads(k).transpose(-1, -2))
    probs = nn.functional.softmax(scores + mask, dim=-1).to(q.dtype)
    context = torch.matmul(probs.to(v.dtype), heads(v)).permute(0, 2, 1, 3).contiguous()
    return context.view((*context.size()[:-2], E))


def sam(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
    """Positions relative along both axes of the image, made from q itself."""
    h, w = 3, 4
    q, k, v = qkv.reshape(B, h * w, 3, H, D).permute(2, 0, 3, 1, 4).reshape(3, B * H, h * w, D).unbind(0)
    attn = (q * D**-0.5) @ k.transpose(-2, -1)
    image = q.reshape(B * H, h, w, D)
    by_h, by_w = torch.einsum("bhwc,hkc->bhwk", image, rel_h), torch.einsum("bhwc,wkc->bhwk", image, rel_w)
    attn = attn.view(B * H, h, w, h, w) + by_h[:, :, :, :, None] + by_w[:, :, :, None, :]
    attn = attn.view(B * H, h * w, h * w).softmax(dim=-1)
    return (attn @ v).view(B, H, h, w, D).permute(0, 2, 3, 1, 4).reshape(B, h, w, E)


def openclip(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (x.contiguous().view(S, B * H, -1).transpose(0, 1) for x in (q, k, v))
    attn = torch.baddbmm(mask, q * D**-0.5, k.transpose(-1, -2))
    return torch.bmm(attn.softmax(dim=-1), v).transpose(0, 1).reshape(S, B, E)


def x_transformers(q: Tensor, k: Tensor, v: Tensor, causal: Tensor, padding: Tensor) -> Tensor:
    sim = torch.einsum("b h i d, b h j d -> b h i j", q, k) * D**-0.5
    value = -torch.finfo(sim.dtype).max
    sim = sim.masked_fill(~padding[:, None, None, :], value)
    sim = sim.masked_fill(causal, value)
    attn = F.softmax(sim, dim=-1, dtype=torch.float32).type(sim.dtype)
    return torch.einsum("b h i j, b h j d -> b h i d", attn, v).permute(0, 2, 1, 3).reshape(B, S, E)


def multi_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One key and value head without a dimension for it."""
    attn = (torch.einsum("b h i d, b j d -> b h i j", q, k) * D**-0.5).softmax(dim=-1)
    return torch.einsum("b h i j, b j d -> b h i d", attn, v)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Grouped queries as a dimension of their own."""
    attn = (torch.einsum("bngqd,bnkd->bngqk", q, k) * D**-0.5).softmax(-1)
    return torch.einsum("bngqk,bnkd->bngqd", attn, v)


def maxvit(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    dot = torch.einsum("B G H I D, B G H J D -> B G H I J", q, k * D**-0.5)
    dot = F.softmax(dot + bias, dim=-1)
    out = torch.einsum("B G H I J, B G H J D -> B G H I D", dot, v)
    return out.permute(0, 1, 3, 2, 4).reshape(2, 3, 5, E)


def bert(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    extended = (1.0 - mask[:, None, None, :].to(q.dtype)) * -10000.0
    scores = torch.matmul(heads(q), heads(k).transpose(-1, -2)) / math.sqrt(D)
    probs = nn.Softmax(dim=-1)(scores + extended)
    return merged(torch.matmul(probs, heads(v)))


def annotated(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(D)
    scores = scores.masked_fill(mask.unsqueeze(1) == 0, -6e4)
    scores = scores.masked_fill(mask.unsqueeze(1) == 0, float("-inf"))
    return merged(torch.matmul(scores.softmax(dim=-1), v))


BHSD, BSE = (B, H, S, D), (B, S, E)
VERBATIM: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "nanoGPT": (nanogpt, ((B, S, 3 * E), ("tril", 1, 1, 16, 16))),
    "LLaMA": (llama, ((B, S, H, D), (B, S, H // 2, D), (B, S, H // 2, D), ("causal -inf", S, S))),
    "ViT": (vit, ((B, S, 3 * E),)),
    "Swin": (swin, ((8, 9, 3 * E), (25, H), ("index", 9, 9), ("-100", 4, 9, 9))),
    "BEiT": (beit, (BHSD, BHSD, BHSD, (H, S, S), (1, H, S, S))),
    "T5": (t5, (BHSD, BHSD, BHSD, (1, H, S, S), ("min", B, 1, S, S))),
    "GPT-J": (gptj, (BHSD, BHSD, BHSD, ("tril bool", 1, 1, S, S), ("min", B, 1, 1, S))),
    "Bloom": (bloom, (BHSD, BHSD, BHSD, ("const", B * H, 1, S), ("min", B, 1, S, S))),
    "Falcon": (falcon, (BHSD, (B, 1, S, D), (B, 1, S, D), ("const", B * H, 1, S), ("min", B, 1, S, S))),
    "DiT": (dit, ((B, S, H, D),) * 3),
    "UNet": (unet, (BSE, (B, 7, E), (B, 7, E))),
    "LDM": (ldm, ((B, 32, 4, 4),) * 3),
    "Perceiver": (perceiver, ((1, 5, E), BSE, (B, S, H * 8))),
    "DETR": (detr, ((S, B, E), (S, B, E), (S, B, E), ("bool", B, S))),
    "Wav2Vec2": (wav2vec2, (BSE, BSE, BSE, ("min", B, 1, S, S))),
    "ESM": (esm, (BSE, BSE, BSE, ("min", B, 1, 1, S))),
    "SAM": (sam, ((B, 12, 3 * E), (3, 3, D), (4, 4, D))),
    "OpenCLIP": (openclip, ((S, B, E), (S, B, E), (S, B, E), ("causal -inf", S, S))),
    "x-transformers": (x_transformers, (BHSD, BHSD, BHSD, ("triu bool", S, S), ("not bool", B, S))),
    "multi-query": (multi_query, (BHSD, (B, S, D), (B, S, D))),
    "grouped": (grouped, ((B, 2, 3, S, D), (B, 2, S, D), (B, 2, S, D))),
    "MaxViT": (maxvit, ((2, 3, H, 5, D),) * 3 + ((1, H, 5, 5),)),
    "BERT": (bert, (BSE, BSE, BSE, ("ones", B, S))),
}


def inputs(shapes: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
    """Tensors for a function of `VERBATIM`; those without a word in front of their shape need gradients."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        kind, sizes = (shape[0], shape[1:]) if isinstance(shape[0], str) else ("", shape)
        random = torch.randn(sizes, generator=generator)
        some = random > 0.8
        some[..., 0] = False
        lowest = -math.inf if "inf" in kind else -100.0 if kind == "-100" else torch.finfo(dtype).min
        square = torch.ones(sizes[-2:], dtype=torch.bool) if len(sizes) > 1 else some
        tensors = {
            "": lambda r=random: r.to(dtype).requires_grad_(),
            "const": lambda r=random: r.to(dtype),
            "tril": lambda s=square, z=sizes: s.tril().float().view(z),
            "tril bool": lambda s=square, z=sizes: s.tril().view(z),
            "triu bool": lambda s=square, z=sizes: s.triu(1).view(z),
            "causal -inf": lambda s=square, low=lowest: torch.zeros(s.shape, dtype=dtype).masked_fill(s.triu(1), low),
            "index": lambda z=sizes: torch.randint(0, 25, z, generator=generator),
            "bool": lambda s=some: s,
            "not bool": lambda s=some: ~s,
            "ones": lambda s=some: (~s).long(),
        }
        masked = lambda s=some, low=lowest: torch.zeros(s.shape, dtype=dtype).masked_fill(s, low)  # noqa: E731
        made.append(tensors.get(kind, masked)())
    return made
