"""Gradients that the program cuts, by ``no_grad`` around a part of the attention or by ``detach``: they stay cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.forms import Program, check

B, H, S, D = 2, 4, 6, 8


def hidden() -> Tensor:
    return torch.ones(S, S, dtype=torch.bool).triu(1)


def scores_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.mT
    with torch.no_grad():
        s = s * 0.5
    return s.softmax(-1) @ v


def bias_made(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        bias = k @ q.mT
    return (q @ k.mT + bias).softmax(-1) @ v


def sums_made(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.mT
    e = (s - s.amax(-1, keepdim=True)).exp()
    with torch.no_grad():
        total = e.sum(-1, keepdim=True)
    return (e / total) @ v


def sums_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (q @ k.mT).exp()
    return (e @ v) / e.sum(-1, keepdim=True).detach()


def logarithm_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.mT
    return (s - s.logsumexp(-1, keepdim=True).detach()).exp() @ v


def maximum_made(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = q @ k.mT
    with torch.no_grad():
        highest = s.amax(-1, keepdim=True)
    return (s - highest).softmax(-1) @ v


def weights_zeroed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).masked_fill(hidden(), -1e9).softmax(-1)
    with torch.no_grad():
        weights = weights.masked_fill(hidden(), 0.0)
    return weights @ v


def product_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT + (q[..., :3] @ k[..., :3].mT).detach()).softmax(-1) @ v


def part_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        q2, k2 = q[..., :3] * 0.5, k[..., :3].contiguous()
    return (q @ k.mT + q2 @ k2.mT).softmax(-1) @ v


def factor_detached(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.mean(-1, keepdim=True).detach()).softmax(-1) @ v


def queries_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        q = q * 0.5
    return (q @ k.mT).softmax(-1) @ v


def keys_turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        turned = k.transpose(-1, -2).contiguous()
    return (q @ turned).softmax(-1) @ v


def keys_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = k[:, :2] * 1, v[:, :2] * 1
    with torch.no_grad():
        k = k.repeat_interleave(2, 1)
    return (q @ k.mT).softmax(-1) @ v.repeat_interleave(2, 1)


def repeated_before_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = k[:, :2] * 1, v[:, :2] * 1
    with torch.no_grad():
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v)


PROGRAMS: list[Program] = [scores_scaled, bias_made, sums_made, sums_detached, logarithm_detached, maximum_made]
PROGRAMS += [weights_zeroed, product_detached, part_detached, factor_detached]
PROGRAMS += [queries_scaled, keys_turned, keys_repeated, repeated_before_sdpa]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_gradients_that_are_cut(program: Program) -> None:
    check(program, *(torch.randn(B, H, S, D, requires_grad=True) for _ in range(3)))
