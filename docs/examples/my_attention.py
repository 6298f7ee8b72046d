"""my_attention: an example of a kernel. Its library is a few lines of PyTorch below, so it runs anywhere.

What its source says:

- (B, S, H, D) in and out, the output always contiguous; causal is bottom-right;
- the head dim is a multiple of 8, at most 128; V has the same;
- the maximum is taken before the scale, so the scale is positive;
- no mask tensor, no dropout; forward and backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.plugin import (
    BOTTOM_RIGHT,
    FLOATS,
    AttentionCall,
    Code,
    Emitter,
    Kernel,
    Limits,
    Machine,
    Operands,
    Rejection,
    Term,
    attention,
    bhsd,
    bshd,
    known,
    multiple_of,
    shown,
)


class MyAttention(Kernel):
    """Attention in the plainest form: a model for kernels of your own."""

    name = "my_attention"
    title = "My attention (an example)"
    limits = Limits(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=FLOATS,
        head_dim_max=128,
        head_dim_padding=8,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        vmap=True,
        row_alignment=16,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.needs_grad and call.is_gqa and not known(call.Sk <= 8192):
            yield Rejection(Code.LENGTH, "Sk of a grouped call", shown(call.Sk), "at most 8192 in training")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        q, k, v = bshd(emitter, args, multiple_of(8, call.D))
        out = _attention.emit(emitter, call, q, k, v, args.scale, call.is_causal)
        return bhsd(emitter, out, call.Dv)


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, D) -> (B, Sq, H, D), contiguous.

    And its log-sum-exp, (B, H, Sq) in fp32.
    """
    return library_forward(q=q, k=k, v=v, scale=scale, causal=causal)  # a real library is imported here


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any) -> Any:
    scale, causal = rest
    return library_backward(grad=grad, q=q, k=k, v=v, out=out, lse=lse, scale=scale, causal=causal)


_attention = attention(
    "my_attention(Tensor q, Tensor k, Tensor v, float scale, bool causal)",
    train=_forward,
    backward=_backward,
    vmap=True,
)


# What follows stands for the library.


def library_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp."""
    scores = _scores(q, k, scale, causal)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.unsqueeze(-1))
    out = torch.einsum("bhqk,bkhd->bqhd", weights, _for_each_head(v, q))
    return out.to(q.dtype).contiguous(), lse


def library_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    weights = torch.exp(_scores(q, k, scale, causal) - lse.unsqueeze(-1))
    wide = grad.float()
    dv = torch.einsum("bhqk,bqhd->bkhd", weights, wide)
    inner = torch.einsum("bqhd,bkhd->bhqk", wide, _for_each_head(v, q))
    delta = (wide * out.float()).sum(-1).transpose(1, 2).unsqueeze(-1)
    inner = weights * (inner - delta) * scale
    dq = torch.einsum("bhqk,bkhd->bqhd", inner, _for_each_head(k, q))
    dk = torch.einsum("bhqk,bqhd->bkhd", inner, q.float())
    dk, dv = (x.unflatten(2, (k.shape[2], -1)).sum(3) for x in (dk, dv))
    return dq.to(q.dtype).contiguous(), dk.to(q.dtype).contiguous(), dv.to(q.dtype).contiguous()


def _scores(q: Tensor, k: Tensor, scale: float, causal: bool) -> Tensor:
    assert scale > 0 and q.shape[-1] % 8 == 0
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), _for_each_head(k, q)) * scale
    if not causal:
        return scores
    seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
    return scores.masked_fill(~seen, -math.inf)


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[2] // x.shape[2], 2).float()
