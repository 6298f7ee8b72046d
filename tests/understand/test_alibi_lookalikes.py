"""What is nearly ALiBi beside a causal mask: where the bias may be as low as the number that hides the other keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.compiled import run
from tests.helpers.masks_read import understood

B, H, N, D = 2, 4, 12, 16
LOW = -torch.finfo(torch.float32).max
Program = Callable[[Tensor, Tensor], Tensor]


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, N, D, dtype=dtype)


def distance() -> Tensor:
    i = torch.arange(N)
    return i - i[:, None]


def above(diagonal: int = 1) -> Tensor:
    return torch.ones(N, N, dtype=torch.bool).triu(diagonal)


def attention(q: Tensor, bias: Tensor, diagonal: int = 1, low: float = LOW) -> Tensor:
    return (q @ q.mT + bias).masked_fill(above(diagonal), low).softmax(-1) @ q


def alibi(slopes: Tensor) -> Tensor:
    return slopes[..., None, None] * -distance().abs()


def late(q: Tensor, slopes: Tensor) -> Tensor:
    """The bias comes behind the mask: hidden keys are as low as it says."""
    return ((q @ q.mT).masked_fill(above(), LOW) + alibi(slopes)).softmax(-1) @ q


def added(q: Tensor, slopes: Tensor) -> Tensor:
    return (q @ q.mT + alibi(slopes) + torch.full((N, N), LOW).triu(1)).softmax(-1) @ q


def from_the_last(q: Tensor, slopes: Tensor) -> Tensor:
    """No key of the first rows is without a bias."""
    return attention(q, slopes[:, None, None] * (distance() - 1))


def without_itself(q: Tensor, slopes: Tensor) -> Tensor:
    return attention(q, alibi(slopes), diagonal=0)


def of_data(q: Tensor, slopes: Tensor) -> Tensor:
    return attention(q, alibi(slopes) + q[..., :1] * slopes[0])


def by_positions(q: Tensor, slopes: Tensor) -> Tensor:
    """Distances that are data: it is not seen that a key is none from itself."""
    places = (q[:, 0, :, 0] > 0).long().cumsum(-1)
    return attention(q, slopes[:, None, None] * -(places[:, None, None] - places[:, None, :, None]).abs())


def infinite(q: Tensor, slopes: Tensor) -> Tensor:
    """Powers of a number, of which the last are infinite: heads that see nothing but -inf."""
    made = 2.0 ** (torch.arange(1, H + 1) * 100.0)
    return attention(q, -made[:, None, None] * (distance().abs() + 1))


LOOKALIKES = (late, added, from_the_last, without_itself, of_data, by_positions, infinite)


def are_right(program: Program, q: Tensor, several: list[Tensor]) -> None:
    for kernel in ("flex", "native_math"):
        torch._dynamo.reset()
        for slopes in several:
            got = run(program, q, slopes, kernel=kernel, dynamic=False)
            torch.testing.assert_close(got, program(q, slopes), equal_nan=True)


@pytest.mark.parametrize("program", LOOKALIKES)
def test_a_bias_that_may_be_as_low_as_what_hides(program: Program) -> None:
    q, slopes = rows(), torch.rand(H)
    (found,) = understood(program, q, slopes)
    assert "beside a bias that may be as low" in found.call.mask.stop, str(found.call.mask)
    are_right(program, q, [slopes, slopes * -1e38, slopes * 1e38])


def plain(q: Tensor, slopes: Tensor) -> Tensor:
    return attention(q, alibi(slopes))


@pytest.mark.parametrize("shape", ((H,), (B, H)), ids=str)
def test_whatever_the_slopes_are(shape: tuple[int, ...]) -> None:
    """For each batch element too. Where one is infinite, 0 times it is NaN, in every row."""
    q, slopes = rows(), torch.rand(shape)
    (found,) = understood(plain, q, slopes)
    assert str(found.call.mask) == "causal & bias", found.call.mask.stop
    are_right(plain, q, [slopes, slopes * -1e38, slopes * 1e38, slopes * math.inf])


def test_slopes_of_which_nothing_is_known_in_fp16() -> None:
    """Their product may be infinite there."""
    q, slopes = rows(torch.float16), torch.rand(H, dtype=torch.float16)
    (found,) = understood(lambda q, slopes: attention(q, alibi(slopes), low=-math.inf), q, slopes)
    assert "arithmetic in fp16" in found.call.mask.stop
