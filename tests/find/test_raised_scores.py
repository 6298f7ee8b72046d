"""Scores that are raised to a low number: it stands in the place of -inf, and changes no score that counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attnpass.ir.mask import EmptyRows
from tests.helpers.compiled import codes
from tests.helpers.forms import B, Program, S, check, found, left, padding, qkv


def opt(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~keep, -math.inf)
    return torch.max(scores, torch.tensor(torch.finfo(q.dtype).min, dtype=q.dtype)).softmax(-1) @ v


def clamped(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -math.inf).clamp(min=torch.finfo(q.dtype).min).softmax(-1) @ v


def clamped_twice(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = torch.where(keep, (q @ k.mT).clamp_min(-1e30), -math.inf)
    return (torch.maximum(torch.full_like(scores, -1e9), scores) * 0.5).softmax(-1) @ v


def beside_positions(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = q @ k.mT + torch.arange(S).type_as(q) * 0.1
    return scores.masked_fill(~keep, -math.inf).clamp(min=torch.finfo(torch.float32).min).softmax(-1) @ v


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("program", (opt, clamped), ids=lambda program: program.__name__)
def test_a_number_in_the_place_of_infinity(program: Program, dtype: torch.dtype) -> None:
    for empty in (True, False):
        report = found(program, *qkv(dtype), padding(empty))
    assert report.decisions[0].call.mask.empty is EmptyRows.AVERAGE


@pytest.mark.parametrize("kernel", ("native_math", "flex"))
@pytest.mark.parametrize("program", (opt, clamped_twice), ids=lambda program: program.__name__)
def test_kernels(program: Program, kernel: str) -> None:
    found(program, *qkv(grad=False), padding(), kernel=kernel)


def test_beside_a_bias() -> None:
    """A row is hidden by a number that is written, and has a bias that is not: in training the call is kept."""
    found(beside_positions, *qkv(grad=False), padding())
    assert not check(beside_positions, *qkv(), padding()).decisions[0].rewritten


def xglm(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return torch.max(q @ k.mT + bias, torch.tensor(torch.finfo(torch.float32).min)).softmax(-1) @ v


@pytest.mark.parametrize("low", (-math.inf, torch.finfo(torch.float32).min, -1e4))
def test_an_additive_mask(low: float) -> None:
    """A row that is hidden as a whole gives an average. Which gradients it has only the numbers tell."""
    bias = torch.zeros(B, 1, S, S).masked_fill(~(torch.ones(S, S, dtype=torch.bool).tril() & padding()), low)
    report = found(xglm, *qkv(grad=False), bias)
    assert report.decisions[0].call.mask.empty is EmptyRows.MIXED
    report = check(xglm, *qkv(), bias)
    assert "empty_rows" in codes(report.decisions[0], "native_math")


def too_high(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -math.inf).clamp(min=-1e4).softmax(-1) @ v


def from_above(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).clamp(min=-1e30, max=5.0).softmax(-1) @ v


def another_tensor(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.max(q @ k.mT, v[..., :S]).softmax(-1) @ v


def the_lower_one(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.minimum(q @ k.mT, torch.tensor(-1e30)).softmax(-1) @ v


def behind_any_bias(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT + v.detach()[..., :S].exp().log()).clamp(min=-1e9).softmax(-1) @ v


def scaled_behind(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return ((q @ k.mT + v.detach()[..., :S].exp().log()).clamp(min=-1e38) * 2).softmax(-1) @ v


def hidden_again(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~keep, -math.inf).clamp(min=-1e9)
    return scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ v


LOOK_ALIKES: dict[Program, str] = {
    too_high: "raises scores to -10000",
    from_above: "`clamp` changes the scores",
    another_tensor: "`max` changes the scores",
    the_lower_one: "`minimum` changes the scores",
    behind_any_bias: "behind a bias, which may be lower",
    scaled_behind: "scales scores that were raised",
    hidden_again: "hides scores with -inf after -1e+09",
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    left(program, LOOK_ALIKES[program], *qkv(), padding(empty=False))


LOWEST = torch.finfo(torch.float32).min


def raised_and_hidden_again(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return (torch.max(q @ k.mT + bias, torch.tensor(LOWEST)) + bias).softmax(-1) @ v


def written_and_added(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return ((q @ k.mT).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(), LOWEST) + bias).softmax(-1) @ v


def raised_twice(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    low = torch.tensor(LOWEST)
    return torch.max(torch.max(q @ k.mT + bias, low) + bias, low).softmax(-1) @ v


def test_two_low_numbers_add_up_to_infinity() -> None:
    """A row in which they do for every key is NaN."""
    bias = torch.zeros(B, 1, S, S)
    bias[0], bias[1, ..., 2:] = LOWEST, LOWEST
    for program in (raised_and_hidden_again, written_and_added):
        found(program, *qkv(grad=False), bias)
    left(raised_twice, "behind a bias, which may be lower", *qkv(grad=False), bias)


def test_zeros_for_nan_where_rows_are_hidden_in_several_ways() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        hidden = torch.ones(S, S, dtype=torch.bool).triu()
        return ((q @ k.mT).masked_fill(hidden, LOWEST) + bias).softmax(-1).nan_to_num(0.0) @ v

    left(program, "hidden in several ways", *qkv(grad=False), torch.full((B, 1, 1, S), LOWEST))
