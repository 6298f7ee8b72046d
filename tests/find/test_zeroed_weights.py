"""Weights made 0 behind the softmax: the mask before it once more, or NaN; such rows give 0, and no other changes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnpass.ir.mask import EmptyRows
from tests.helpers.compiled import codes
from tests.helpers.forms import B, D, H, Program, S, check, found, left, padding, qkv

LOW = -1e9
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def causal() -> Tensor:
    return torch.ones(S, S, dtype=torch.bool).tril()


def espnet(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    mask = keep.eq(0)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(mask, torch.finfo(q.dtype).min)
    return F.dropout(scores.softmax(-1).masked_fill(mask, 0.0), 0.1, False) @ v


def infinity(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1).masked_fill(~keep, 0.0) @ v


def two_masks(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = (
        (q @ k.mT)
        .masked_fill(~keep, torch.finfo(q.dtype).min)
        .masked_fill(~causal(), torch.finfo(q.dtype).min)
        .softmax(-1)
    )
    return weights.masked_fill(~causal(), 0.0).masked_fill(~keep, 0.0) @ v


def wherever(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = torch.where(keep, q @ k.mT, -math.inf).softmax(-1)
    return torch.where(keep.logical_not(), 0.0, weights) @ v


def multiplied(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return ((q @ k.mT).masked_fill(~keep, torch.finfo(q.dtype).min).softmax(-1) * keep.to(q.dtype)) @ v


def beside_a_bias(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = q @ k.mT + torch.arange(S).type_as(q) * 0.1
    return scores.masked_fill(~keep, -math.inf).softmax(-1).masked_fill(~keep, 0.0) @ v


def nan_to_num(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1).nan_to_num(0.0) @ v


def where_nan(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1)
    return torch.where(torch.isnan(weights), torch.zeros_like(weights), weights) @ v


def masked_nan(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = (q @ k.mT).masked_fill(~keep, -math.inf).masked_fill(~causal(), -math.inf).softmax(-1)
    return weights.masked_fill(weights != weights, 0) @ v


PROGRAMS: list[Program] = [espnet, infinity, two_masks, wherever, multiplied, beside_a_bias]
PROGRAMS += [nan_to_num, where_nan, masked_nan]


@pytest.mark.parametrize("kernel", ("native_math", "flex"))
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_rows_without_keys_give_zero(program: Program, kernel: str) -> None:
    for empty in (True, False):
        report = found(program, *qkv(grad=False), padding(empty), kernel=kernel)
    (decision,) = report.decisions
    assert (decision.kernel, decision.call.mask.empty) == (kernel, EmptyRows.ZERO)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_gradients(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype), padding())


def added(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (q @ k.mT + bias).softmax(-1).nan_to_num(0.0) @ v


def added_zeros(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT + torch.zeros(S).masked_fill(~keep, -math.inf)).softmax(-1).nan_to_num(0.0) @ v


def learned_behind(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~keep, -math.inf)
    return (scores + v.mean((1, 3))[:, None, None]).softmax(-1).masked_fill(~keep, 0.0) @ v


def test_infinity_added_and_nan_made_zero() -> None:
    """Eager's gradients of such a row are NaN, which no kernel gives."""
    bias = torch.zeros(B, 1, S, S).masked_fill(~(causal() & padding()), -math.inf)
    for program, mask in ((added, bias), (added_zeros, padding())):
        found(program, *qkv(grad=False), mask)
        report = check(program, *qkv(), mask)
        assert "empty_rows" in codes(report.decisions[0], "native_math")
        assert not report.decisions[0].rewritten


def test_a_bias_that_learns_behind_the_mask() -> None:
    report = check(learned_behind, *qkv(), padding())
    assert not any(decision.rewritten for decision in report.decisions)


@pytest.mark.parametrize("zeroes", (True, False))
def test_rows_give_zero_beside_sinks(zeroes: bool) -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, sinks: Tensor) -> Tensor:
        scores = (q @ k.mT).masked_fill(~keep, LOW)
        weights = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(B, H, S, 1)], -1).softmax(-1)[..., :-1]
        return (weights.masked_fill(~keep, 0.0) if zeroes else weights) @ v

    report = check(program, *qkv(grad=False), padding(), torch.randn(H))
    assert report.decisions[0].call.mask.empty is EmptyRows.ZERO


def other_mask(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, LOW).softmax(-1).masked_fill(~causal(), 0.0) @ v


def the_seen_ones(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, LOW).softmax(-1).masked_fill(keep, 0.0) @ v


def one_of_two(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~keep, LOW).masked_fill(~causal(), LOW)
    return scores.softmax(-1).masked_fill(~keep, 0.0) @ v


def over_the_queries(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, LOW).softmax(-1).masked_fill(~keep.mT, 0.0) @ v


def drawn_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    hidden = [torch.rand_like(q[:, :1, :, :S]) > 0.0 for _ in range(2)]
    return (q @ k.mT).masked_fill(hidden[0], LOW).softmax(-1).masked_fill(hidden[1], 0.0) @ v


def written_in_between(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    hidden = ~keep
    weights = (q @ k.mT).masked_fill(hidden, LOW).softmax(-1)
    hidden[..., 0] = True
    return weights.masked_fill(hidden, 0.0) @ v


def beside_any_bias(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    bias = (q[:, :1, :, :S].detach() * 2).exp().log()
    return (q @ k.mT + bias).masked_fill(~keep, -math.inf).softmax(-1).masked_fill(~keep, 0.0) @ v


def another_number(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, LOW).softmax(-1).masked_fill(~keep, 0.5) @ v


def nan_is_one(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1).nan_to_num(1.0) @ v


def the_test_is_read(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    weights = (q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1)
    nan = weights.isnan()
    return weights.masked_fill(nan, 0.0) @ v + nan.any()


def numbers_as_a_mask(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    soft = keep * 0.5
    return ((q @ k.mT).masked_fill(soft == 0, LOW).softmax(-1) * soft) @ v


LOOK_ALIKES: dict[Program, str] = {
    other_mask: "not known to hide the same keys",
    the_seen_ones: "not known to hide the same keys",
    one_of_two: "by one of several masks",
    over_the_queries: "not known to hide the same keys",
    drawn_twice: "not known to hide the same keys",
    written_in_between: "not known to hide the same keys",
    beside_any_bias: "beside a bias that may hide rows",
    another_number: "`masked_fill` changes",
    nan_is_one: "`nan_to_num` changes",
    the_test_is_read: "`any` reads",
    numbers_as_a_mask: "`mul` changes",
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    left(program, LOOK_ALIKES[program], *qkv(grad=program is not written_in_between), padding())


def test_infinity_times_a_mask_stays_nan() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return ((q @ k.mT).masked_fill(~keep, -math.inf).softmax(-1) * keep) @ v

    report = found(program, *qkv(), padding())
    assert report.decisions[0].call.mask.empty is EmptyRows.NAN


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.sampled_from((-math.inf, LOW)), st.integers(0, 3))
def test_any_masks(before: int, behind: int, fill: float, kind: int) -> None:
    """Two masks over four keys and queries, before and behind; none, one or both of them are the same."""
    masks = [torch.tensor([bits >> i & 1 for i in range(16)], dtype=torch.bool).view(4, 4) for bits in (before, behind)]

    def program(q: Tensor, k: Tensor, v: Tensor, one: Tensor, other: Tensor) -> Tensor:
        weights = (q @ k.mT).masked_fill(one, fill).masked_fill(other, fill).softmax(-1)
        for bit, hidden in ((1, one), (2, other)):
            weights = weights.masked_fill(hidden, 0.0) if kind & bit else weights
        return weights @ v

    check(program, *(torch.randn(2, 4, 8) for _ in range(3)), *masks)
