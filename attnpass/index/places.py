"""Places along a dimension: what views, slices and index tensors do to an index, be it a form or read from a tensor.

An index that a program reads is inside of its tensor, or the program raises: int64 has room for arithmetic on it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch

from attnpass.graph.symbolic import Size
from attnpass.index.arithmetic import pointwise
from attnpass.index.bounds import Bounds
from attnpass.index.expr import And, Apply, Expr, Lin, NonNeg, Where, as_number, number, plus, scaled
from attnpass.index.logic import flattened, is_positive, negated, where
from attnpass.index.scalars import Element, StopError, fitting, within_now

INT = torch.int64


def moved(index: Expr, by: Size = 0, times: int = 1) -> Expr:
    """``times * index + by``."""
    if isinstance(index, Lin):
        return plus(scaled(index, times), number(by))
    if times != 1:
        index = _integers("mul", operator.mul, index, number(times))
    if isinstance(index, Apply) and index.op == "add":
        inner, before = index.args[0], as_number(index.args[1])
        index, by = (index, by) if before is None else (inner, before + by)
    return index if isinstance(by, int) and by == 0 else _integers("add", operator.add, index, number(by))


def at_most(index: Expr, other: Expr) -> Expr:
    """``index <= other``."""
    if isinstance(index, Lin) and isinstance(other, Lin):
        return is_positive(plus(other, index, -1))
    return _integers("le", operator.le, index, other, torch.bool)


def equal(index: Expr, other: Expr) -> Expr:
    """``index == other``."""
    return _integers("eq", operator.eq, index, other, torch.bool)


def counted(index: Expr, first: Size, step: int, dtype: torch.dtype) -> Expr:
    """``first + step * index``: what counts along a dimension, in ``dtype``.

    Raises:
        StopError: it may not fit.
    """
    number_there = moved(index, first, step)
    if isinstance(number_there, Lin):
        return fitting(number_there, dtype)
    if dtype != INT:
        raise StopError(f"a count of {dtype} at {index}")
    return number_there


def divides(step: int, index: Expr) -> Expr:
    """``index % step == 0``."""
    return equal(_integers("mod", operator.mod, index, number(step)), number(0))


def quotient(index: Expr, step: int) -> Expr:
    """``index // step``."""
    return _integers("floordiv", operator.floordiv, index, number(step))


def from_either_end(index: Expr, size: Size) -> Expr:
    """A place among ``size``, counted from the first: one that is negative counts from behind the last."""
    bounds = within_now()
    if _never_negative(index, bounds, ()):
        return index
    return where(at_most(number(0), index), index, moved(index, size))


def _never_negative(index: Expr, bounds: Bounds, facts: tuple[Expr, ...]) -> bool:
    """Is it known to be at least 0 where ``facts`` hold?"""
    match index:
        case Lin():
            claims = [fact.form for fact in facts if isinstance(fact, NonNeg)]
            return bounds.always(index) or any(bounds.always(plus(index, claim, -1)) for claim in claims)
        case Where():
            branches = ((index.test, index.yes), (negated(index.test), index.no))
            return all(_never_negative(x, bounds, (*facts, *flattened(test, And))) for test, x in branches)
        case Apply(op="mod"):
            return True  # a remainder has the sign of the divisor, which is a positive number
        case Apply(op="floordiv"):
            return _never_negative(index.args[0], bounds, facts)
    return False


def _integers(name: str, function: Callable[..., object], left: Expr, right: Expr, dtype: torch.dtype = INT) -> Expr:
    return pointwise(name, function, [Element(left, INT, 1), Element(right, INT, 1)], dtype)
