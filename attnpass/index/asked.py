"""How elements are asked for: each once, within bounds on depth and on work.

An element asks for those of the arrays below it, which is as deep as the program is long; past `DEEPEST` the one that
is too deep is made first, from the ground, and what waits for it starts again. An array asked at ever more places (one
``roll`` doubles them) would take more than linear time; past `MOST_STEPS` the mask is not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from threading import local
from typing import Protocol

from attnpass.graph.symbolic import Size
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Expr
from attnpass.index.logic import walk
from attnpass.index.scalars import StopError, within

# An element takes about four frames of Python's 1000, and Dynamo has used 200 of them when it calls a backend.
DEEPEST, SLACK = 40, 20
MOST_STEPS = 6000  # 1.4 s; 300 chained operations take 3000, as each node asks its meaning, which asks its operands
MOST_PARTS = 4000  # different parts of one mask, before it is simplified
Index = tuple[Expr, ...]


class Asked(Protocol):
    """An array, as far as it is asked here."""

    shape: tuple[Size, ...]
    made: dict[Index, Expr | StopError]

    def element(self, index: Index, /) -> Expr: ...


class _TooDeepError(Exception):
    def __init__(self, array: Asked, index: Index) -> None:
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


def ask(array: Asked, index: Index) -> Expr:
    """The element at ``index``, which `Array.made` does not hold yet.

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


def answer(array: Asked, index: Index) -> Expr:
    """What was made before: the element, or why there is none."""
    found = array.made[index]
    if isinstance(found, StopError):
        raise StopError(*found.args)
    return found


def steps() -> int:
    """How many elements were made for the last one that was asked for: what tests count."""
    return _STATE.steps


def _make(array: Asked, index: Index) -> None:
    _STATE.steps += 1
    if _STATE.steps > MOST_STEPS:
        raise _TooMuchError
    _STATE.depth += 1
    try:
        with within(_bounds(index, array.shape)):
            array.made[index] = array.element(index)
    except StopError as stop:
        array.made[index] = StopError(*stop.args)  # without the traceback, which holds what it went through
    finally:
        _STATE.depth -= 1


def _from_the_ground(array: Asked, index: Index) -> None:
    """Make an element, and before it whatever is too deep below it."""
    waiting: list[tuple[Asked, Index, int]] = [(array, index, 0)]
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
    if isinstance(made, Expr) and size(made) > MOST_PARTS:
        array.made[index] = StopError(f"a mask too large to be followed: more than {MOST_PARTS} parts")


def size(expr: Expr) -> int:
    """How many different parts an expression has, counted up to one more than `MOST_PARTS`."""
    return sum(1 for _ in islice(walk(expr), MOST_PARTS + 1))


def _bounds(index: Index, shape: Sequence[Size]) -> Callable[[], Bounds]:
    """Where the axes lie if ``index`` lies inside of ``shape``, found out when it is first asked for."""
    found: list[Bounds] = []

    def bounds() -> Bounds:
        if not found:
            found.append(Bounds.inside(index, shape))
        return found[0]

    return bounds
