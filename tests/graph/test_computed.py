"""What a program makes of numbers alone is computed while it is read, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attnpass.graph.computed import LARGEST, MOST_VALUES, computed
from attnpass.graph.value import returned
from tests.helpers.reading_oracle import captured, reading_of

Program = Callable[[Tensor], Tensor]


def read(program: Program, dynamic: bool = False) -> Tensor | None:
    """What ``program`` gives, as far as it is known without running it."""
    gm, _ = captured(program, torch.randn(6), dynamic=dynamic)
    leaving = next(value for value in reading_of(gm).values if value.target is returned)
    return computed(leaving.inputs[0])


def falcon(x: Tensor) -> Tensor:
    base, extra = torch.tensor(0.25), torch.tensor(0.5)
    slopes = torch.pow(base, torch.arange(1, 5, dtype=torch.int32))
    return torch.cat([slopes, torch.pow(extra, torch.arange(1, 5, 2, dtype=torch.int32))])


def often_shared(x: Tensor) -> Tensor:
    made = torch.arange(4.0)
    for _ in range(20):
        made = (made + 1) - (made * 0.5)
    return made


NUMBERS: dict[str, Program] = {
    "powers": lambda x: 2.0 ** (-8.0 * torch.arange(1, 5) / 4),
    "inverse": lambda x: 1.0 / torch.pow(2, torch.arange(1, 9).float() * 0.5).view(1, 8, 1, 1)[:, 1::2],
    "in half precision": lambda x: (torch.arange(5).to(torch.bfloat16) * 0.3).exp2(),
    "infinite": lambda x: 2.0 ** (torch.arange(3) * 100.0),
    "falcon": falcon,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_computed(name: str) -> None:
    got, wanted = read(NUMBERS[name]), NUMBERS[name](torch.empty(6))
    assert got is not None and got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted)


def written(x: Tensor) -> Tensor:
    made = torch.arange(6.0)
    made.add_(x)
    return made


OTHERS: dict[str, Program] = {
    "an input": lambda x: x * 2,
    "with an input": lambda x: torch.arange(6) * x,
    "drawn": lambda x: torch.rand(3) + torch.arange(3),
    "large": lambda x: torch.arange(LARGEST + 1) * 2,
    "long": often_shared,
    "written": written,
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_else_is(name: str) -> None:
    assert read(OTHERS[name]) is None


def test_no_symbolic_size() -> None:
    assert read(lambda x: torch.arange(x.shape[0]) * 2, dynamic=True) is None


def test_what_is_shared_is_computed_once() -> None:
    """Not twice at each level: that would take 2 ** 12 times."""

    def program(x: Tensor) -> Tensor:
        made = torch.arange(4.0)
        for _ in range(12):
            made = (made + 1) - (made * 0.5)
        return made

    assert MOST_VALUES > 3 * 12
    torch.testing.assert_close(read(program), program(torch.empty(6)))
