"""What looks like attention and is not: never rewritten, and the near miss names the culprit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from tests.helpers.compiled import run

B, H, S, D = 2, 4, 6, 8
MASK = torch.ones(S, S, dtype=torch.bool).tril()
BIAS = torch.rand(H, S, S)
MIX = torch.rand(H, H)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(D)


def probs(q: Tensor, k: Tensor) -> Tensor:
    return scores(q, k).softmax(-1)


def returned_scores(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    s = scores(q, k)
    return s.softmax(-1) @ v, s


def returned_probabilities(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    p = probs(q, k)
    return p @ v, p


def summed_probabilities(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = probs(q, k)
    return p @ v + p.mean()


def two_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = probs(q, k)
    return p @ v + p @ k


def renormalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = probs(q, k) * MASK
    return (p / p.sum(-1, keepdim=True)) @ v


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = torch.exp(scores(q, k))
    return (e / (e.sum(-1, keepdim=True) + 1e-6)) @ v


def written_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.tanh(), k.tanh(), v.tanh()
    s = q @ k.transpose(-1, -2)
    k.mul_(2.0)
    return s.softmax(-1) @ v + k


def written_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = ~MASK & True
    s = scores(q, k).masked_fill(hidden, -math.inf)
    hidden.fill_(False)
    return s.softmax(-1) @ v


def detached_in_between(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        p = probs(q, k)
    return p @ v


def top_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return s.masked_fill(s < s.topk(2, dim=-1).values[..., -1:], -math.inf).softmax(-1) @ v


def two_sinks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = torch.cat([scores(q, k), torch.zeros(B, H, S, 2)], -1)
    return s.softmax(-1)[..., :-2] @ v


def hidden_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k).masked_fill(~MASK, -math.inf)
    return s.masked_fill(~MASK.T, -1e9).softmax(-1) @ v


def talking_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("gh,bhqk->bgqk", MIX, probs(q, k)) @ v


def talking_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("gh,bhqk->bgqk", MIX, scores(q, k)).softmax(-1) @ v


def added_to_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return torch.baddbmm(v, torch.bmm(q, k.mT).softmax(-1), v)


LOOK_ALIKES: dict[str, tuple[Callable[..., object], str]] = {
    "scores returned": (returned_scores, "scores are returned"),
    "probabilities returned": (returned_probabilities, "probabilities are returned"),
    "probabilities summed": (summed_probabilities, "`mean` reads the attention probabilities"),
    "probabilities used twice": (two_values, "`matmul` reads the attention probabilities"),
    "softmax over the queries": (lambda q, k, v: scores(q, k).softmax(-2) @ v, "over the keys"),
    "softmax over the heads": (lambda q, k, v: scores(q, k).softmax(1) @ v, "over the keys"),
    "nan_to_num": (lambda q, k, v: probs(q, k).nan_to_num(1.0) @ v, "`nan_to_num` changes the attention probabilities"),
    "renormalised": (renormalised, "`sum` reads the attention probabilities"),
    "second softmax": (lambda q, k, v: probs(q, k).softmax(-1) @ v, "`softmax`"),
    "masked behind": (lambda q, k, v: probs(q, k).masked_fill(~MASK, 0.0) @ v, "not known to hide the same keys"),
    "threshold": (lambda q, k, v: torch.where(MASK, probs(q, k), 0.0) @ v, "not known to hide the same keys"),
    "scaled behind": (lambda q, k, v: (probs(q, k) * 2) @ v, "`mul` changes"),
    "squared": (lambda q, k, v: probs(q, k).square() @ v, "`square` changes"),
    "sigmoid": (lambda q, k, v: scores(q, k).sigmoid() @ v, "sigmoid instead of softmax"),
    "relu": (lambda q, k, v: F.relu(scores(q, k)) @ v, "relu instead of softmax"),
    "log_softmax": (lambda q, k, v: scores(q, k).log_softmax(-1) @ v, "log_softmax instead of softmax"),
    "exp": (by_hand, "divides exponentials by something other than their sum"),
    "clamped": (lambda q, k, v: scores(q, k).clamp(min=-1.0).softmax(-1) @ v, "`clamp` raises scores to -1"),
    "rounded": (lambda q, k, v: scores(q, k).round().softmax(-1) @ v, "`round` changes the scores"),
    "multiplied by the mask": (lambda q, k, v: (scores(q, k) * MASK).softmax(-1) @ v, "by bool, which is no factor"),
    "number added": (lambda q, k, v: (scores(q, k) + 1.0).softmax(-1) @ v, "other than a tensor"),
    "int added": (lambda q, k, v: (scores(q, k) + MASK.int()).softmax(-1) @ v, "a mask of int32"),
    "-10000": (lambda q, k, v: scores(q, k).masked_fill(~MASK, -1e4).softmax(-1) @ v, "writes -10000"),
    "0": (lambda q, k, v: scores(q, k).masked_fill(~MASK, 0.0).softmax(-1) @ v, "writes 0"),
    "-1e9 beside a bias": (
        lambda q, k, v: (scores(q, k) + BIAS).masked_fill(~MASK, -1e9).softmax(-1) @ v,
        "`masked_fill`: scores are hidden by -1e+09",
    ),
    "two fills": (hidden_twice, "hides scores with -1e+09"),
    "tanh behind a bias": (lambda q, k, v: (scores(q, k) + BIAS).tanh().softmax(-1) @ v, "`tanh` caps"),
    "two sinks": (two_sinks, "`getitem`"),
    "a part of the keys": (
        lambda q, k, v: scores(q, k)[..., 1:].softmax(-1) @ v[:, :, 1:],
        "`getitem` changes the scores",
    ),
    "summed over the queries": (lambda q, k, v: probs(q, k).mT @ v, "does not sum over the keys"),
    "the same, as PyTorch 2.14 traces it": (
        lambda q, k, v: torch.ops.aten.mT(probs(q, k)) @ v,
        "does not sum over the keys",
    ),
    "dropped twice": (
        lambda q, k, v: F.dropout(F.dropout(probs(q, k), 1e-9), 1e-9) @ v,
        "dropped twice",
    ),
    "talking heads": (talking_heads, "`einsum`"),
    "talking heads before": (talking_before, "`einsum`"),
    "added to the product": (added_to_product, "`baddbmm` adds to the product with V"),
    "top k": (top_scores, "the attention scores"),
    "v written in between": (written_values, "`mul_` writes"),
    "mask written in between": (written_mask, "`fill_` writes"),
    "grad mode changes": (detached_in_between, "grad mode"),
    "inside vmap": (lambda q, k, v: torch.vmap(lambda a, b, c: probs(a, b) @ c)(q, k, v), "inside vmap"),
    "detached": (lambda q, k, v: probs(q, k).detach() @ v, "`detach` changes"),
}


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_a_look_alike_is_left_alone_with_the_reason(name: str) -> None:
    fn, culprit = LOOK_ALIKES[name]
    q, k, v = (torch.randn(B, H, S, D, requires_grad="written" not in name) for _ in range(3))
    got = run(fn, q, k, v, kernel="native_flash,native_math")
    torch.testing.assert_close(got, fn(q, k, v))
    report = attnpass.last_report()
    assert not report.error, report.error
    assert not report.decisions
    reasons = [miss.reason for miss in report.near_misses]
    assert any(culprit in reason for reason in reasons), reasons
    assert all(miss.source.file.endswith("test_handwritten_lookalikes.py") for miss in report.near_misses)
    assert all(miss.node for miss in report.near_misses)


def test_there_are_many_look_alikes() -> None:
    assert len(LOOK_ALIKES) >= 25


@pytest.mark.parametrize(
    "fn",
    (
        lambda x, w: torch.softmax(F.linear(x, w), -1),
        lambda x, w: F.linear(F.relu(F.linear(x, w)), w.T),
        lambda x, w: F.linear(torch.softmax(F.linear(x, w), -1), w.T),
        lambda x, w: torch.relu(x @ w.T) @ w,
    ),
    ids=("classifier", "perceptron", "mixture", "perceptron with matmul"),
)
def test_what_nobody_takes_for_attention_is_no_near_miss(fn: Callable[..., Tensor]) -> None:
    run(fn, torch.randn(2, 5, 8), torch.randn(16, 8))
    assert not attnpass.last_report().near_misses


def test_heads_that_are_mixed_get_a_sentence() -> None:
    """Talking heads: a product with a small weight stands on both sides of the softmax."""
    mix = torch.randn(4, 4, 1, 1)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.nn.functional.conv2d(q @ k.mT, mix).softmax(-1)
        return torch.nn.functional.conv2d(weights, mix) @ v

    with torch.no_grad():
        run(model, *[torch.randn(2, 4, 8, 16) for _ in range(3)], kernel="native_math")
    report = attnpass.reports()[-1]
    assert not report.decisions
    assert "conv2d" in report.near_misses[0].reason
