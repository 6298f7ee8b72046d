"""The zoo counts attention calls by itself: what is one, what is none, and what the table makes of a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.eager_calls import AttentionCount
from benchmarks.zoo.numbers import judge, seeded
from benchmarks.zoo.stranger import Ready
from benchmarks.zoo.summary import Tally, meaning

Q = torch.randn(2, 4, 8, 16)
MIX = nn.Parameter(torch.randn(4, 4))
GATE = nn.Parameter(torch.randn(16, 5))


def by_exp(q: Tensor) -> Tensor:
    weights = (q @ q.mT).exp()
    return weights / weights.sum(-1, keepdim=True) @ q


def talking_heads(q: Tensor) -> Tensor:
    mixed = torch.einsum("bhij,hg->bgij", q @ q.mT, MIX).softmax(-1)
    return torch.einsum("bhij,hg->bgij", mixed, MIX) @ q


def without_products(q: Tensor) -> Tensor:
    scores = (q[:, :, :, None] * q[:, :, None]).sum(-1)
    return (scores.softmax(-1)[..., None] * q[:, :, None]).sum(-2)


CALLS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "sdpa": (lambda q: F.scaled_dot_product_attention(q, q, q), 1),
    "sdpa with a mask": (lambda q: F.scaled_dot_product_attention(q, q, q, torch.ones(8, 8).tril() > 0), 1),
    "by hand": (lambda q: (q @ q.mT).softmax(-1) @ q, 1),
    "einsum": (lambda q: torch.einsum("bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, q).softmax(-1), q), 1),
    "one key": (lambda q: torch.einsum("bhij,bhjd->bhid", (q @ q[:, :, :1].mT).softmax(-1), q[:, :, :1]), 1),
    "exp over sum": (by_exp, 1),
    "no product": (without_products, 1),
    "talking heads": (talking_heads, 1),
    "weights read twice": (lambda q: [(w := (q @ q.mT).softmax(-1)) @ q, w @ q], 1),
    "two": (lambda q: ((q @ q.mT).softmax(-1) @ q @ q.mT).softmax(-1) @ q, 2),
    "gates of experts": (lambda q: (q @ GATE).softmax(-1) @ torch.randn(5, 16), 0),
    "softmax of q": (lambda q: q.softmax(-1) @ (q.mT @ q), 0),
    "no softmax": (lambda q: (q @ q.mT).sigmoid() @ q, 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_count(name: str) -> None:
    program, calls = CALLS[name]
    with torch.no_grad(), AttentionCount([MIX, GATE]) as count:
        program(Q)
    assert count.tally.total == calls


def test_layers_of_pytorch() -> None:
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, batch_first=True), 3).eval()
    with torch.no_grad(), AttentionCount(layers.parameters()) as count:
        layers(torch.randn(2, 8, 32))
    assert count.tally.total == 3


def line(**changed: Any) -> dict[str, Any]:
    usual = {"eager": 6, "captured": 5, "found": 3, "rewritten": 2, "near_misses": {}, "wrong": ""}
    return {**usual, **changed}


def test_what_is_neither_found_nor_rightly_left_is_missed() -> None:
    tally = Tally()
    tally.add(
        line(near_misses={"but `add` reads the attention scores too, so they have to be materialised": 1, "other": 1})
    )
    assert (tally.not_captured, tally.found, tally.left, tally.missed) == (1, 3, 1, 1)
    assert tally.sentences == {"other": 1}


def test_more_is_not_found_than_there_is() -> None:
    tally = Tally()
    tally.add(line(eager=2, captured=2))
    assert (tally.found, tally.missed) == (2, 0)
    assert not meaning("`masked_fill` writes -10000 into the scores, which need not hide a key")


def test_a_wrong_number_shows() -> None:
    model = nn.Linear(16, 16)
    subject = Ready(model, (torch.randn(4, 16),), {})
    eager = seeded(subject)
    assert not judge(subject, eager, [eager[0].clone()]).problem
    assert judge(subject, eager, [eager[0] * 1.001]).problem
    assert judge(subject, eager, [torch.where(eager[0] > 0, eager[0], torch.nan)]).problem
    assert judge(subject, eager, [eager[0][:2]]).problem
