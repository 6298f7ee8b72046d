"""Operations that put tensors together, or look along a dimension: cat, pad, assignment, diff, cumsum."""

from __future__ import annotations

import operator
from typing import Any

import torch

from attnpass.masks.arithmetic import pointwise
from attnpass.masks.arrays import (
    Array,
    Index,
    Like,
    axis_of,
    replaced,
)
from attnpass.masks.bounds import Bounds
from attnpass.masks.elements import Element, StopError, constant, fitting
from attnpass.masks.expr import Expr, Lin, as_number, number, plus, scaled
from attnpass.masks.indexing import is_size, slice_start, without_ellipsis
from attnpass.masks.logic import is_positive, where
from attnpass.masks.meanings.table import form_of, meaning
from attnpass.masks.simplify import simplified
from attnpass.symbolic import Size, known


@meaning("setitem")
def _setitem(like: Like, x: Array, item: Any, value: Any) -> Array:
    """``x[item] = value``, for slices and numbers along each dimension."""
    parts = without_ellipsis(x, item if isinstance(item, tuple) else (item,))
    if any(part is None for part in parts):
        raise StopError("an assignment to a new dimension")
    spans = [_span(part, size) for part, size in zip(parts, x.shape, strict=True)]
    gone = {dim for dim, part in enumerate(parts) if not isinstance(part, slice)}  # dimensions that the value lacks

    def element(index: Index) -> Expr:
        inside: list[Expr] = []
        there = list(index)
        for dim, (start, end) in enumerate(spans):
            from_first = isinstance(start, int) and start == 0
            if from_first and end is None:
                continue  # here may stand an index that is no linear form
            form = form_of(index[dim])
            there[dim] = behind = plus(form, number(start), -1)
            if not from_first:
                inside.append(is_positive(behind))
            if end is not None:
                inside.append(is_positive(plus(number(end - 1), form, -1)))
        if isinstance(value, Array):
            kept = tuple(form for dim, form in enumerate(there) if dim not in gone)
            part = Element(value.broadcast_at(kept), value.dtype, value.ndim)
            new = pointwise("cast", lambda t: t.to(x.dtype), [part], x.dtype)
        else:
            new = constant(value, x.dtype)
        result = x.at(index)
        for test in inside or [constant(True)]:
            new = where(test, new, result)
        return new

    return Array(x.shape, x.dtype, element)


def _span(part: Any, size: Size) -> tuple[Size, Size | None]:
    """Where a slice or a number in an index begins along a dimension of ``size``, and ends; None for at its end."""
    if is_size(part):
        start = slice_start(part, size)
        return start, start + 1
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise StopError("an assignment to anything but slices and numbers")
    end = None if part.stop is None or known(part.stop >= size) else slice_start(part.stop, size)
    return slice_start(part.start, size), end


@meaning("cat", "concat", "concatenate")
def _cat(like: Like, tensors: Any, dim: int = 0, **_: Any) -> Array:
    parts: list[Array] = [part for part in tensors if not (part.ndim == 1 and known(part.shape[0] == 0))]
    dim = dim % len(like.shape)

    def element(index: Index) -> Expr:
        here = form_of(index[dim])
        end: Size = sum((part.shape[dim] for part in parts), start=0)
        result: Expr | None = None
        for part in reversed(parts):
            start = end - part.shape[dim]
            value = part.at(replaced(index, dim, plus(here, number(start), -1)))
            cast = pointwise("cast", lambda t: t.to(like.dtype), [Element(value, part.dtype, 1)], like.dtype)
            result = cast if result is None else where(is_positive(plus(here, number(end), -1)), result, cast)
            end = start

        assert result is not None
        return result

    return like.made_of(element)


@meaning("stack")
def _stack(like: Like, tensors: Any, dim: int = 0, **_: Any) -> Array:
    dim = dim % len(like.shape)

    def element(index: Index) -> Expr:
        here = as_number(index[dim])
        if not isinstance(here, int):
            raise StopError(f"a stack at {index[dim]}")
        chosen_one: Array = tensors[here]
        return chosen_one.at((*index[:dim], *index[dim + 1 :]))

    return like.made_of(element)


@meaning("pad", "constant_pad_nd")
def _pad(like: Like, x: Array, pad: Any, mode: Any = "constant", value: Any = None) -> Array:
    if mode != "constant":
        mode, value = "constant", mode if value is None else value
    if isinstance(mode, str) and isinstance(value, str):
        raise StopError("padding that is not constant")
    left_of = {x.ndim - 1 - i: pad[2 * i] for i in range(len(pad) // 2)}

    def element(index: Index) -> Expr:
        inside: list[Expr] = []
        there = list(index)
        for dim, before in left_of.items():
            form = plus(form_of(index[dim]), number(before), -1)
            there[dim] = form
            inside += [is_positive(form), is_positive(plus(number(x.shape[dim] - 1), form, -1))]
        result: Expr = x.at(tuple(there))
        for test in inside:
            result = where(test, result, constant(value or 0, like.dtype))
        return result

    return like.made_of(element)


@meaning("diff")
def _diff(like: Like, x: Array, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Array:
    if n != 1 or append is not None or like.dtype.is_floating_point or like.dtype == torch.bool:
        raise StopError("diff of this kind")
    dim = axis_of(x, dim)
    if prepend is not None:
        shape = (*x.shape[:dim], x.shape[dim] + prepend.shape[dim], *x.shape[dim + 1 :])
        x = _cat(Like(shape, like.dtype), (prepend, x), dim)

    def element(index: Index) -> Expr:
        here = form_of(index[dim])
        next_one = Element(x.at(replaced(index, dim, plus(here, number(1)))), like.dtype, 1)
        return pointwise("sub", operator.sub, [next_one, Element(x.at(index), like.dtype, 1)], like.dtype)

    return like.made_of(element)


@meaning("cumsum")
def _cumsum(like: Like, x: Array, dim: int, **_: Any) -> Array:
    """The sum of a number that is the same everywhere along ``dim``; anything else has to be computed."""
    dim = axis_of(x, dim)

    def element(index: Index) -> Expr:
        probe = "cumsum position"
        value = simplified(x.at(replaced(index, dim, Lin(((probe, 1),)))), Bounds.of({probe: x.shape[dim]}))
        each = pointwise("cast", lambda t: t.to(like.dtype), [Element(value, x.dtype, 1)], like.dtype)
        step = as_number(each)
        if not isinstance(step, int) or like.dtype.is_floating_point:
            raise StopError(f"cumsum of {value}"[:200].replace(probe, "i"))
        return fitting(plus(scaled(form_of(index[dim]), step), number(step)), like.dtype)

    return like.made_of(element)
