"""Ops that put tensors together, or look along a dimension: cat, pad, what an assignment leaves, cumsum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnpass.graph.symbolic import Size, known
from attnpass.index.arithmetic import converted
from attnpass.index.arrays import Array, Index, Like, axis_of, form_of, replaced
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Expr, Lin, as_number, number, plus, scaled
from attnpass.index.logic import all_of, is_positive, where
from attnpass.index.rules.table import cast_to, meaning
from attnpass.index.rules.views import from_start, slice_start
from attnpass.index.scalars import StopError, constant, fitting
from attnpass.index.simplify import simplified


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a dimension: ``length`` places from ``start`` on; one place, without the dimension, if that is None."""

    dim: int
    start: Size
    length: Size | None = None


def assigned(like: Like, x: Array, source: Array, spans: Sequence[Span]) -> Array:
    """``x``, with ``source`` in a part of it, which lies in a part of it, and so on: what an assignment leaves.

    One condition for all of them: read one in another, n assignments would ask for n * n elements.
    """

    def element(index: Index) -> Expr:
        tests: list[Expr] = []
        there, shape = index, list(x.shape)
        for span in spans:
            here, length = there[span.dim], 1 if span.length is None else span.length
            starts, ends = isinstance(span.start, int) and span.start == 0, span.start + length
            reaches = known(ends >= shape[span.dim])
            if not (starts and reaches):
                form = form_of(here)
                tests += [] if starts else [is_positive(plus(form, number(span.start), -1))]
                tests += [] if reaches else [is_positive(plus(number(ends - 1), form, -1))]
                here = plus(form, number(span.start), -1)
            kept = () if span.length is None else (here,)
            there = replaced(there, span.dim, *kept)
            shape[span.dim : span.dim + 1] = [] if span.length is None else [length]
        new = cast_to(source, there, like)
        return new if not tests else where(all_of(tests), new, x.at(index))

    return like.made_of(element)


def span_of(x: Sequence[Size], source: Sequence[Size], where_: Sequence[Any], selects: bool) -> Span:
    """The part of a tensor of shape ``x`` that ``select_scatter`` or ``slice_scatter`` with these arguments writes.

    Raises:
        StopError: it is not known where it begins, or it has gaps.
    """
    dim = where_[0] % len(x)
    if selects:
        return Span(dim, from_start(where_[1], x[dim]))
    if len(where_) > 3 and where_[3] != 1:
        raise StopError(f"an assignment with the step {where_[3]}")
    return Span(dim, slice_start(where_[1], x[dim]), source[dim])


@meaning("copy", "fill")
def _copy(like: Like, x: Array, source: Array, *_: Any) -> Array:
    """``source`` in the shape and dtype of ``x``: how functional graphs write what stood in ``x.copy_(source)``."""
    return like.made_of(lambda index: cast_to(source, index, like))


@meaning("slice_backward")
def _slice_backward(like: Like, source: Array, sizes: Any, *where_: Any) -> Array:
    """A part of a tensor that is 0, or False, elsewhere."""
    zeros = like.made_of(lambda _: constant(0, like.dtype))
    return assigned(like, zeros, source, [span_of(like.shape, source.shape, where_, selects=False)])


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
            value = cast_to(part, replaced(index, dim, plus(here, number(start), -1)), like)
            result = value if result is None else where(is_positive(plus(here, number(end), -1)), result, value)
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
        step = as_number(converted(value, x.dtype, like.dtype))
        if not isinstance(step, int) or like.dtype.is_floating_point:
            raise StopError(f"cumsum of {value}"[:200].replace(probe, "i"))
        return fitting(plus(scaled(form_of(index[dim]), step), number(step)), like.dtype)

    return like.made_of(element)
