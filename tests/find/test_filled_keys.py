"""A number that need not hide a key, written over its scores; and truth values that are added to the scores."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.forms import Program, check, found, left

B, H, S, D = 2, 4, 6, 16


def qkv(dtype: torch.dtype = torch.float32, heads: int = H) -> list[Tensor]:
    return [torch.randn(B, n, S, D, dtype=dtype, requires_grad=True) for n in (H, heads, heads)]


def padding() -> Tensor:
    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[0, ..., 4:] = False
    keep[1] = False
    return keep


def gpt(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, q @ k.mT * 0.25, torch.tensor(-1e4, dtype=q.dtype)).softmax(-1) @ v


def not_so_low(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return ((q @ k.mT).masked_fill(~keep, -3.0) * 0.5).softmax(-1) @ v


def zero(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, 0.0).softmax(-1) @ v


def then_causal(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~keep, -10.0) + torch.arange(S).type_as(q) * 0.1
    return scores.masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf).softmax(-1) @ v


def bool_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT + ~keep).softmax(-1) @ v


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("program", (gpt, not_so_low, zero, then_causal, bool_added), ids=lambda each: each.__name__)
def test_a_number_in_the_place_of_scores(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype), padding())


@pytest.mark.parametrize("program", (gpt, bool_added), ids=lambda program: program.__name__)
def test_its_meaning_is_a_bias(program: Program) -> None:
    given = [x.detach() for x in qkv()]
    report = found(program, *given, padding(), kernel="flex")
    assert str(report.decisions[0].call.mask) == "bias"


@pytest.mark.parametrize("shape", ((S,), (B, 1, 1, S), (B, H, 1, S), (1, H, 1, S)))
def test_repeated_keys(shape: tuple[int, ...]) -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        return not_so_low(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), keep)

    found(program, *qkv(heads=H // 2), torch.rand(shape) > 0.5)


def test_beside_a_temperature_and_another_product() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, keep: Tensor) -> Tensor:
        scores = (q @ k.mT + q2 @ k[..., :8].mT) * q2.mean(-1, keepdim=True)
        return scores.masked_fill(keep, -1e3).softmax(-1) @ v

    found(program, *qkv(), torch.randn(B, H, S, 8, requires_grad=True), padding())


def test_keys_that_are_no_numbers() -> None:
    """What is replaced may be NaN."""
    q, k, v = qkv()
    with torch.no_grad():
        k[0, :, 4:] = math.nan
    keep = padding()
    keep[1] = True
    out = found(gpt, q.detach(), k.detach(), v.detach(), keep)
    assert out.decisions[0].rewritten


def causal(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(torch.ones(S, S, dtype=torch.bool).triu(1), -1e4).softmax(-1) @ v


def behind_a_mask(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    hidden = torch.ones(S, S, dtype=torch.bool).triu(1)
    return (q @ k.mT).masked_fill(hidden, -1e9).masked_fill(~keep, -1e4).softmax(-1) @ v


def behind_a_bias(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT + torch.arange(S).type_as(q)).masked_fill(~keep, -1e4).softmax(-1) @ v


def behind_a_shift(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    scores = q @ k.mT
    return (scores - scores.amax(-1, keepdim=True)).masked_fill(~keep, -1.0).softmax(-1) @ v


def infinite(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, math.inf).softmax(-1) @ v


def zeroed_behind(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~keep, -1e4).softmax(-1).masked_fill(~keep, 0.0) @ v


def each_head_its_keys(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    """The keys are shared by all heads, the mask is not."""
    return (q @ k[:, :1].mT).masked_fill(torch.arange(H)[:, None, None] > torch.arange(S), -1.0).softmax(-1) @ v[:, :1]


def int_added(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
    return (q @ k.mT + keep.int() * -1000000000).softmax(-1) @ v


LOOK_ALIKES: dict[Program, str] = {
    causal: "writes -10000 into the scores",
    behind_a_mask: "writes -10000 into the scores",
    behind_a_bias: "writes -10000 into the scores",
    behind_a_shift: "writes -1 into the scores",
    infinite: "writes inf into the scores",
    zeroed_behind: "not known to hide the same keys",
    each_head_its_keys: "writes -1 into the scores",
    int_added: "a mask of int32",
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    left(program, LOOK_ALIKES[program], *qkv(), padding())


def test_the_keys_are_read_before_they_are_written() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        hidden = ~keep
        out = (q @ k.mT).masked_fill(hidden, -2.0).softmax(-1)
        hidden.zero_()
        return out @ v

    check(program, *(x.detach() for x in qkv()), padding())
