"""Operations on single elements, casts and choices between elements."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnpass.graph.symbolic import Size
from attnpass.index.arithmetic import pointwise
from attnpass.index.arrays import Array, Index, Like
from attnpass.index.expr import Expr
from attnpass.index.logic import is_boolean, where
from attnpass.index.places import at_most, moved
from attnpass.index.rules.table import MEANINGS, cast_to, meaning
from attnpass.index.scalars import Element, StopError, constant


def elementwise(name: str, function: Callable[..., Any], like: Like, operands: Sequence[Any]) -> Array:
    """A pointwise operation on arrays and numbers."""

    def element(index: Index) -> Expr:
        parts = []
        for each in operands:
            if isinstance(each, Array):
                parts.append(Element(each.broadcast_at(index), each.dtype, each.ndim))
            else:
                parts.append(Element(constant(each)))
        return pointwise(name, function, parts, like.dtype)

    return like.made_of(element)


def _pointwise(name: str, function: Callable[..., Any], *names: str) -> None:
    def call(like: Like, *operands: Any, **options: Any) -> Array:
        if options.pop("alpha", 1) != 1 or options:
            raise StopError(f"{name} with {', '.join(options) or 'alpha'}")
        return elementwise(name, function, like, operands)

    MEANINGS.update(dict.fromkeys(names, call))


_pointwise("add", operator.add, "add")
_pointwise("sub", operator.sub, "sub")
_pointwise("mul", operator.mul, "mul")
_pointwise("truediv", operator.truediv, "div", "true_divide")
_pointwise("floordiv", operator.floordiv, "floor_divide")
_pointwise("mod", operator.mod, "remainder")
_pointwise("neg", operator.neg, "neg")
_pointwise("abs", operator.abs, "abs")
_pointwise("sigmoid", torch.sigmoid, "sigmoid")
_pointwise("le", operator.le, "le")
_pointwise("lt", operator.lt, "lt")
_pointwise("ge", operator.ge, "ge")
_pointwise("gt", operator.gt, "gt")
_pointwise("eq", operator.eq, "eq")
_pointwise("ne", operator.ne, "ne")
_pointwise("and", torch.logical_and, "logical_and")
_pointwise("or", torch.logical_or, "logical_or")
_pointwise("xor", torch.logical_xor, "logical_xor")
_pointwise("not", torch.logical_not, "logical_not")
_pointwise("and", operator.and_, "bitwise_and")
_pointwise("or", operator.or_, "bitwise_or")
_pointwise("xor", operator.xor, "bitwise_xor")
_pointwise("not", operator.invert, "bitwise_not")
_pointwise("minimum", torch.minimum, "minimum")
_pointwise("maximum", torch.maximum, "maximum")


@meaning("rsub")
def _rsub(like: Like, x: Array, other: Any, alpha: int = 1) -> Array:
    if alpha != 1:
        raise StopError(f"rsub with alpha {alpha}")
    return elementwise("sub", operator.sub, like, (other, x))


@meaning("clamp")
def _clamp(like: Like, x: Array, low: Any = None, high: Any = None) -> Array:
    if low is not None:
        x = elementwise("maximum", lambda value, least: torch.clamp(value, min=least), like, (x, low))
    if high is not None:
        x = elementwise("minimum", lambda value, most: torch.clamp(value, max=most), like, (x, high))
    return x


@meaning("clamp_min")
def _clamp_min(like: Like, x: Array, low: Any) -> Array:
    return _clamp(like, x, low)


@meaning("clamp_max")
def _clamp_max(like: Like, x: Array, high: Any) -> Array:
    return _clamp(like, x, None, high)


@meaning("to")
def _cast(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return like.made_of(lambda index: cast_to(x, index, like))


@meaning("clone", "detach")
def _same(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return x


def chosen(test: Array, yes: Any, no: Any, like: Like) -> Array:
    """``where(test, yes, no)``: arrays or numbers, in the result's dtype."""

    def part(value: Any, index: Index) -> Expr:
        if not isinstance(value, Array):
            return constant(value, like.dtype)
        return cast_to(value, index, like)

    def element(index: Index) -> Expr:
        condition = test.broadcast_at(index)
        if not is_boolean(condition):
            raise StopError(f"a condition that is no truth value: {condition}")
        return where(condition, part(yes, index), part(no, index))

    return like.made_of(element)


@meaning("where")
def _where(like: Like, test: Array, yes: Any, no: Any) -> Array:
    return chosen(test, yes, no, like)


@meaning("masked_fill")
def _masked_fill(like: Like, x: Array, mask: Array, value: Any) -> Array:
    return chosen(mask, value, x, like)


def band(x: Array, like: Like, diagonal: Size, lower: bool) -> Array:
    """``tril`` (keep where column - row <= diagonal) or ``triu`` (>=); the rest is 0."""

    def element(index: Index) -> Expr:
        column, border = index[-1], moved(index[-2], diagonal)
        kept = at_most(column, border) if lower else at_most(border, column)
        return where(kept, x.at(index), constant(0, x.dtype))

    return like.made_of(element)


@meaning("tril")
def _tril(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=True)


@meaning("triu")
def _triu(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=False)
