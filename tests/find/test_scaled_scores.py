"""Scores that are multiplied by a tensor: a factor of q or of k, unless it differs over both."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.forms import Program, check, found, left

B, H, S, D = 2, 4, 6, 8
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def qkv(dtype: torch.dtype = torch.float32, grad: bool = True, heads: int = H) -> list[Tensor]:
    return [torch.randn(B, n, S, D, dtype=dtype, requires_grad=grad) for n in (H, heads, heads)]


def factor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape, dtype=dtype) + 0.5).requires_grad_()


def xcit(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Over channels: the heads' D takes the place of the sequence."""
    q, k, v = (x.transpose(-2, -1) for x in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return ((q @ k.transpose(-2, -1)) * t).softmax(dim=-1) @ v


def swin2(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    scores = scores * torch.clamp(t, max=math.log(100.0)).exp()
    return (scores + torch.arange(S).type_as(q) * 0.25).softmax(-1) @ v


def divided(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return (q @ k.mT * 0.3 / t).softmax(-1) @ v


def from_the_left(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return (t * (q @ k.mT)).softmax(-1) @ v


def folded(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).view(B, H, S, S)
    return torch.bmm((scores * t).softmax(-1).flatten(0, 1), v.flatten(0, 1)).view(B, H, S, D)


def capped(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    hidden = torch.ones(S, S, dtype=torch.bool).triu(1)
    return ((q @ k.mT) * t).masked_fill(hidden, -math.inf).softmax(-1) @ v


def behind_a_bias(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return ((q @ k.mT + torch.arange(S).type_as(q) * 0.25) * t * 0.5 + torch.eye(S).type_as(q)).softmax(-1) @ v


def behind_any_bias(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Where a low number hides a whole row, the factor's gradient would be nothing but rounding."""
    bias = torch.zeros(S, S).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(), -1e38)
    return ((q @ k.mT + bias) * t).softmax(-1) @ v


def behind_another_tensor(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return ((q @ k.mT + t.mT) / t).softmax(-1) @ v


def shifted(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    scores = q @ k.mT
    return ((scores - scores.amax(-1, keepdim=True)) * t).softmax(-1) @ v


PROGRAMS: list[Program] = [xcit, swin2, divided, from_the_left, folded, capped, shifted]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_learned_temperature_for_each_head(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype), factor(H, 1, 1, dtype=dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("program", (behind_a_bias, behind_another_tensor), ids=lambda program: program.__name__)
def test_a_bias_is_scaled_too(program: Program, dtype: torch.dtype) -> None:
    """In fp16 a low one would round the scores away before they are scaled."""
    learns = program is behind_a_bias
    found(program, *qkv(dtype), factor(H, 1, 1, dtype=dtype).detach().requires_grad_(learns))


@pytest.mark.parametrize("shape", [(), (1,), (B, 1, 1, 1), (B, H, 1, 1), (S, 1), (H, S, 1), (1, S), (B, 1, 1, S), (S,)])
def test_a_factor_that_differs_over_queries_or_over_keys(shape: tuple[int, ...]) -> None:
    found(from_the_left, *qkv(), factor(*shape))


def test_a_factor_of_a_wider_dtype_makes_no_wider_q() -> None:
    q, k, v = qkv(torch.bfloat16)

    def program(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        return ((q @ k.mT) * t).softmax(-1).to(v.dtype) @ v

    found(program, q, k, v, factor(H, 1, 1))


def test_under_autocast() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return ((q @ k.mT) * t).softmax(-1) @ v

    tensors = [*qkv(grad=False), factor(H, 1, 1).detach()]
    report = check(lambda *x: program(*x).to(torch.bfloat16), *tensors)
    assert [decision.rewritten for decision in report.decisions] == [True]


def test_a_factor_of_repeated_keys() -> None:
    """It differs over the repeated heads, so it is no factor of the keys before the repeat."""

    def program(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        return ((q @ k.mT) * t).softmax(-1) @ v

    for shape in ((H, 1, 1), (H, 1, S), (1, S)):
        found(program, *qkv(heads=H // 2), factor(*shape))


@pytest.mark.parametrize("training", (False, True))
def test_symbolic_lengths(training: bool) -> None:
    found(divided, *qkv(grad=training), factor(H, 1, 1).detach().requires_grad_(training), dynamic=True)


def over_both(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return (q @ k.mT * t).softmax(-1) @ v


def behind_a_mask(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return ((q @ k.mT).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -1e9) * t).softmax(-1) @ v


def shifted_before_keys_differ(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    scores = q @ k.mT
    return ((scores - scores.amax(-1, keepdim=True)) * t).softmax(-1) @ v


def made_of_the_scores(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    scores = q @ k.mT
    return (scores * t * scores.mean(-1, keepdim=True)).softmax(-1) @ v


def written_in_between(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    t = t.detach() * 2
    scores = q @ k.mT * t
    t.zero_()
    return scores.softmax(-1) @ v


def divided_by_the_scores(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return (t / (q @ k.mT)).softmax(-1) @ v


def times_a_mask(q: Tensor, k: Tensor, v: Tensor, t: Tensor) -> Tensor:
    return (q @ k.mT * (t > 1)).softmax(-1) @ v


LOOK_ALIKES: dict[Program, tuple[tuple[int, ...], str]] = {
    over_both: ((S, S), "by what differs over q and k both"),
    behind_a_mask: ((H, 1, 1), "after a mask, a bias"),
    behind_any_bias: ((H, 1, 1), "after a mask, a bias"),
    shifted_before_keys_differ: ((S,), "whose maximum was taken away"),
    made_of_the_scores: ((H, 1, 1), "`mean` reads the attention scores"),
    written_in_between: ((H, 1, 1), "`zero_` writes"),
    divided_by_the_scores: ((H, 1, 1), "divides by the scores"),
    times_a_mask: ((S,), "by bool, which is no factor"),
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    shape, reason = LOOK_ALIKES[program]
    trains = program is not written_in_between
    left(program, reason, *qkv(grad=trains), factor(*shape).detach().requires_grad_(trains))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from((B, H, S, 1)), max_size=4), st.booleans())
def test_any_factor_is_right(shape: list[int], divides: bool) -> None:
    """Whatever broadcasts; where it cannot be a factor of q or k, nothing is rewritten."""
    own = [min(n, full) if n in (1, full) else 1 for n, full in zip(shape[::-1], (S, S, H, B), strict=False)][::-1]
    check(divided if divides else from_the_left, *qkv(), factor(*own))
