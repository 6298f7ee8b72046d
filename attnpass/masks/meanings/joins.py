"""Ops that put tensors together, or look along a dimension: cat, pad, what an assignment leaves, cumsum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from attnpass.masks.indexing import from_start, slice_start
from attnpass.masks.logic import all_of, is_positive, where
from attnpass.masks.meanings.table import cast_to, form_of, meaning
from attnpass.masks.simplify import simplified
from attnpass.symbolic import Size, known


@meaning("slice_scatter")
def _slice_scatter(
    like: Like,
    x: Array,
    source: Array,
    dim: int = 0,
    start: Size | None = None,
    end: Size | None = None,
    step: int = 1,
) -> Array:
    """``x``, with ``source`` in a slice of it: what an assignment to a slice leaves."""
    if step != 1:
        raise StopError(f"an assignment with the step {step}")
    dim = axis_of(x, dim)
    first = slice_start(start, x.shape[dim])
    return _placed(like, (x, source), dim, (first, source.shape[dim]), lambda here: (here,))


@meaning("select_scatter")
def _select_scatter(like: Like, x: Array, source: Array, dim: int, index: Size) -> Array:
    """``x``, with ``source`` at one place of a dimension."""
    dim = axis_of(x, dim)
    return _placed(like, (x, source), dim, (from_start(index, x.shape[dim]), 1), lambda here: ())


def _placed(
    like: Like, arrays: tuple[Array, Array], dim: int, span: tuple[Size, Size], kept: Callable[[Expr], Index]
) -> Array:
    """The first of two arrays, with the second from ``span[0]`` on for ``span[1]`` places of a dimension."""
    x, source = arrays
    first, length = span
    starts, ends = isinstance(first, int) and first == 0, known(first + length >= x.shape[dim])

    def element(index: Index) -> Expr:
        if starts and ends:
            return cast_to(source, replaced(index, dim, *kept(index[dim])), like)
        here = form_of(index[dim])
        behind = plus(here, number(first), -1)
        tests = [] if starts else [is_positive(behind)]
        tests += [] if ends else [is_positive(plus(number(first + length - 1), here, -1))]
        return where(all_of(tests), cast_to(source, replaced(index, dim, *kept(behind)), like), x.at(index))

    return like.made_of(element)


@meaning("cat")
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


@meaning("constant_pad_nd")
def _pad(like: Like, x: Array, pad: Sequence[Size], value: Any = 0) -> Array:
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
            result = where(test, result, constant(value, like.dtype))
        return result

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
