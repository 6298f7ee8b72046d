"""Tensors as functions of their indices: an `Array` gives the expression of any element, and is never materialised.

A view is another way to ask the same array; ``tril`` is a condition on two indices. Nothing in here knows a graph.

Each element is asked for once, within bounds on depth and on work. An element asks for those of the arrays below it,
which is as deep as the program is long; past `DEEPEST` the one that is too deep is made first, from the ground, and
what waits for it starts again. An array asked at ever more places (one ``roll`` doubles them) would take more than
linear time; past `MOST_STEPS` the mask is not followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from threading import local

import torch

from attnpass.graph.symbolic import Size, known_equal
from attnpass.index.bounds import Bounds
from attnpass.index.expr import ZERO, Expr
from attnpass.index.logic import walk
from attnpass.index.scalars import StopError, within

# An element takes about four frames of Python's 1000, and Dynamo has used 200 of them when it calls a backend.
DEEPEST, SLACK = 40, 20
MOST_STEPS = 6000  # 1.4 s; 300 chained operations take 3000, as each node asks its meaning, which asks its operands
MOST_PARTS = 4000  # different parts of one mask, before it is simplified
Index = tuple[Expr, ...]


@dataclass(slots=True, eq=False)
class Array:
    """A tensor as a function of its indices.

    Attributes:
        shape: its sizes.
        dtype: its dtype.
        element: the expression at an index, one expression a dimension; asked through `at`.
        made: the elements that were asked for, by index, or why there are none.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype
    element: Callable[[Index], Expr]
    made: dict[Index, Expr | StopError] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def at(self, index: Index) -> Expr:
        """The element at ``index``; a dimension of size 1 is read at 0 whatever the index says."""
        there = tuple(ZERO if known_equal(size, 1) else i for i, size in zip(index, self.shape, strict=True))
        return answer(self, there) if there in self.made else ask(self, there)

    def broadcast_at(self, index: Index) -> Expr:
        """The element that takes part at ``index`` of a result with as many or more dimensions."""
        return self.at(index[len(index) - self.ndim :])


@dataclass(frozen=True, slots=True)
class Like:
    """What is known of an operation's result beforehand: its shape and dtype."""

    shape: tuple[Size, ...]
    dtype: torch.dtype

    def made_of(self, element: Callable[[Index], Expr]) -> Array:
        return Array(self.shape, self.dtype, element)


def axis_of(x: Array, dim: int) -> int:
    """A dimension counted from the front."""
    return dim % x.ndim if x.ndim else 0


def replaced(index: Index, position: int, *others: Expr) -> Index:
    """``index`` with other entries at one position."""
    return (*index[:position], *others, *index[position + 1 :])


class _TooDeepError(Exception):
    def __init__(self, array: Array, index: Index) -> None:
        self.array, self.index = array, index


class _TooMuchError(Exception):
    pass


class _State(local):
    """What is being asked: the depth, and how often something too deep was met and may be passed.

    Attributes:
        depth: of the element that is being made; -1 if there is none.
        allowed: how many elements past `DEEPEST` may still be made in place, since an attempt before has made what is
            below them. They are made again where their array is: one that an element makes for itself is new each time.
        steps: since the outermost element was asked for.
    """

    depth, allowed, steps = -1, 0, 0


_STATE = _State()


def ask(array: Array, index: Index) -> Expr:
    """The element at ``index``, which the array does not hold yet.

    Raises:
        StopError: its meaning is not known, or it is too large.
    """
    if _STATE.depth < 0:
        _from_the_ground(array, index)
    else:
        past = _STATE.depth - DEEPEST
        if past in (0, SLACK):
            _STATE.allowed -= 1
        if past >= 2 * SLACK or (past in (0, SLACK) and _STATE.allowed < 0):
            raise _TooDeepError(array, index)
        _make(array, index)
    return answer(array, index)


def answer(array: Array, index: Index) -> Expr:
    """What was made before: the element, or why there is none."""
    found = array.made[index]
    if isinstance(found, StopError):
        raise StopError(*found.args)
    return found


def steps() -> int:
    """How many elements were made for the last one that was asked for: what tests count."""
    return _STATE.steps


def _make(array: Array, index: Index) -> None:
    _STATE.steps += 1
    if _STATE.steps > MOST_STEPS:
        raise _TooMuchError
    _STATE.depth += 1
    try:
        with within(lambda: Bounds.inside(index, array.shape)):
            array.made[index] = array.element(index)
    except StopError as stop:
        array.made[index] = StopError(*stop.args)  # without the traceback, which holds what it went through
    finally:
        _STATE.depth -= 1


def _from_the_ground(array: Array, index: Index) -> None:
    """Make an element, and before it whatever is too deep below it."""
    waiting: list[tuple[Array, Index, int]] = [(array, index, 0)]
    _STATE.steps = 0
    try:
        while waiting:
            one, there, passed = waiting[-1]
            _STATE.depth, _STATE.allowed = 0, passed
            try:
                _make(one, there)
                waiting.pop()
            except _TooDeepError as deep:
                waiting[-1] = (one, there, passed + 1)
                waiting.append((deep.array, deep.index, 0))
    except _TooMuchError:
        array.made[index] = StopError(f"a mask too large to be followed: more than {MOST_STEPS} steps")
    finally:
        _STATE.depth = -1
    made = array.made[index]
    if isinstance(made, Expr) and any(True for _ in islice(walk(made), MOST_PARTS, None)):
        array.made[index] = StopError(f"a mask too large to be followed: more than {MOST_PARTS} parts")
