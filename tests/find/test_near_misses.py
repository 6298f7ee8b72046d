"""What is told of as "instead of softmax": what stands between two products of activations, and no norm of a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attnpass

B, H, S, D = 2, 3, 8, 16


def weight(*shape: int) -> nn.Parameter:
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(*shape))


W, PER_HEAD, GAIN = weight(D, D), weight(H, D, D), weight(D)


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * GAIN


def l2(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def layer(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred**2).mean(-1, keepdim=True).sqrt() * GAIN


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / D**0.5).softmax(-1) @ v


NORMS: dict[str, Callable[[Tensor], Tensor]] = {"rms": rms, "l2": l2, "layer": layer}
PLACES: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    "between layers": lambda norm, x: norm(x @ W) @ W,
    "between layers of each head": lambda norm, x: norm(x @ PER_HEAD) @ PER_HEAD,
    "between layers as einsum": lambda norm, x: torch.einsum("bhsd,hde->bhse", norm(x @ PER_HEAD), PER_HEAD),
    "behind attention": lambda norm, x: norm(attend(x, x, x)) @ W,
    "behind attention, before a layer of each head": lambda norm, x: norm(attend(x, x, x)) @ PER_HEAD,
    "of queries and keys": lambda norm, x: attend(norm(x @ PER_HEAD), norm(x @ PER_HEAD), x),
    "of queries, behind attention": lambda norm, x: attend(norm(attend(x, x, x)), x, x),
    "between attention, with layers": lambda norm, x: attend(norm(attend(x, x, x) @ W + x), x, x),
}


def told(program: Callable[[Tensor], Tensor]) -> list[str]:
    (report,) = attnpass.explain(program, torch.randn(B, H, S, D))
    return [miss.reason for miss in report.near_misses if "instead of" in miss.reason]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_of_a_layer_is_no_near_miss(norm: str, place: str) -> None:
    assert told(lambda x: PLACES[place](NORMS[norm], x)) == []


def scores(x: Tensor) -> Tensor:
    return x @ x.mT


MISSES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "divided by their norm": (lambda x: l2(scores(x)) @ x, "a norm instead of softmax"),
    "relu squared": (lambda x: scores(x).relu().pow(2) @ x, "relu instead of softmax"),
    "relu squared and normalised": (
        lambda x: ((r := scores(x).relu() ** 2) / (r.sum(-1, keepdim=True) + 1e-6)) @ x,
        "relu instead of softmax",
    ),
    "a power": (lambda x: scores(x).pow(2) @ x, "a power instead of softmax"),
    "sigmoid of masked scores": (lambda x: scores(x).tril().sigmoid() @ x, "sigmoid instead of softmax"),
    "beside a softmax of the same scores": (
        lambda x: scores(x).relu() @ x + scores(x).softmax(-1) @ x,
        "relu instead of softmax",
    ),
    "scores of an attention's output": (lambda x: l2(scores(attend(x, x, x))) @ x, "a norm instead of softmax"),
    "normalised queries as well": (lambda x: l2(rms(x) @ rms(x).mT) @ x, "a norm instead of softmax"),
    "layers around it": (lambda x: l2(scores(rms(x @ W))) @ (x @ W) @ W, "a norm instead of softmax"),
}


@pytest.mark.parametrize("name", MISSES)
def test_what_stands_for_a_softmax_is_told(name: str) -> None:
    program, reason = MISSES[name]
    assert [each.partition(" between")[0] for each in told(program)] == [reason]


def test_a_layer_with_a_squared_relu_is_no_near_miss() -> None:
    assert told(lambda x: (x @ W).relu().pow(2) @ W.T @ x.mT @ (x @ W).relu().pow(2)) == []
