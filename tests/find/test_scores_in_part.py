"""Parts of the scores that are changed in place: a bias that is 0 elsewhere, a mask that hides nothing elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.forms import Program, check, found, left

B, H, S, D = 2, 4, 6, 16


def qkv(dtype: torch.dtype = torch.float32, grad: bool = True) -> list[Tensor]:
    return [torch.randn(B, H, S, D, dtype=dtype, requires_grad=grad) for _ in range(3)]


def shifted_windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last windows get a mask, and every second one another."""
    scores = q @ k.mT
    scores[:, -2:] += torch.zeros(S, S).masked_fill(torch.eye(S) > 0, -4.0).type_as(q)
    scores[:, 1::2] += torch.arange(S).type_as(q) * 0.1
    return scores.softmax(-1) @ v


def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT * 0.5
    scores[:, 1:3, ..., 2:-1] = scores[:, 1:3, ..., 2:-1] - torch.arange(S)[:, None].type_as(q)
    return scores.softmax(-1) @ v


def nested_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, :3, 2:] += torch.arange(S - 2).type_as(q)[:, None] * 0.1
    return scores.softmax(-1) @ v


def filled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[..., 1:].masked_fill_(torch.ones(S, S - 1, dtype=torch.bool).triu(), -math.inf)
    return scores.softmax(-1) @ v


def wherever(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    keep = torch.ones(S - 2, S, dtype=torch.bool).tril(1)
    scores[:, :, 2:] = torch.where(keep, scores[:, :, 2:], -1e9)
    return scores.softmax(-1) @ v


PROGRAMS: list[Program] = [shifted_windows, nested, nested_in_place, filled, wherever]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "program", (shifted_windows, nested, nested_in_place, filled, wherever), ids=lambda program: program.__name__
)
def test_a_part_of_the_scores(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype))


def test_what_a_mask_of_a_part_means() -> None:
    assert found(filled, *qkv(grad=False), kernel="flex").decisions[0].call.is_causal


def test_a_bias_that_learns() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.mT
        scores[:, 2:] += bias
        return scores.softmax(-1) @ v

    for shape in ((S, S), (2, S, S), (B, 1, 1, S), (1,)):
        found(program, *qkv(), torch.randn(shape, requires_grad=True))


def test_an_input_of_another_dtype_is_cast_by_the_write() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.mT
        scores[:, 2:] += bias
        return scores.softmax(-1) @ v

    check(program, *qkv(torch.bfloat16, grad=False), torch.randn(S, S))


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, 2:] *= 0.5
    return scores.softmax(-1) @ v


def overwritten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, 2:] = 0.5
    return scores.softmax(-1) @ v


def from_elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The part of other heads is put there."""
    scores = q @ k.mT
    scores[:, 2:] = scores[:, :2] + 1.0 * torch.ones(S)
    return scores.softmax(-1) @ v


def of_another_time(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    part = scores[:, 2:] + torch.ones(S)
    scores += torch.arange(S)
    scores[:, 2:] = part
    return scores.softmax(-1) @ v


LOOK_ALIKES: dict[Program, str] = {
    scaled: "writes over a part",
    overwritten: "scores",
    from_elsewhere: "writes over a part",
    of_another_time: "writes over a part",
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    left(program, LOOK_ALIKES[program], *qkv(grad=False))


def test_zeros_behind_of_a_mask_of_a_part() -> None:
    """The mask behind hides keys of all queries, the one before of some."""

    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        hidden = torch.arange(S) > 2
        scores = q @ k.mT
        scores[:, 2:].masked_fill_(hidden, -1e9)
        return scores.softmax(-1).masked_fill(hidden, 0.0) @ v

    left(program, "not known to hide the same keys", *qkv(grad=False))


def test_symbolic_lengths() -> None:
    check(nested, *qkv(), dynamic=True)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.tuples(st.integers(-S, S), st.integers(-S, S + 2), st.integers(1, 3)),
    st.integers(1, 3),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.booleans(),
)
def test_any_part(where: tuple[int, int, int], dim: int, full: tuple[bool, ...], fills: bool) -> None:
    taken = [slice(None)] * 4
    taken[dim] = slice(*where)
    sizes = list(torch.empty(B, H, S, S)[tuple(taken)].shape)
    bias = torch.randn([n if each else 1 for n, each in zip(sizes[1:], full, strict=True)])

    def program(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.mT
        part = scores[tuple(taken)]
        if fills:
            part.masked_fill_(bias > 0, -1e9)
        else:
            part += bias
        return scores.softmax(-1) @ v

    check(program, *qkv(grad=False), bias)
