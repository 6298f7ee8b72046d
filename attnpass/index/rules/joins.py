"""Ops that put tensors together, or look along a dimension: cat, pad, what an assignment leaves, cumsum."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnpass.graph.symbolic import Size, known
from attnpass.index.arithmetic import converted
from attnpass.index.arrays import Array, Index, Like, axis_of, replaced
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Expr, Lin, as_number, number
from attnpass.index.logic import all_of, where
from attnpass.index.places import at_most, counted, divides, moved, quotient
from attnpass.index.rules.table import cast_to, meaning
from attnpass.index.rules.views import from_start, slice_start
from attnpass.index.scalars import StopError, constant
from attnpass.index.simplify import simplified


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a dimension: ``length`` places, one in ``step`` of those from ``start`` on and before ``end``.

    One place, without the dimension, if ``length`` is None.
    """

    dim: int
    start: Size
    end: Size
    length: Size | None = None
    step: int = 1


def assigned(like: Like, x: Array, source: Array, spans: Sequence[Span]) -> Array:
    """``x``, with ``source`` in a part of it, which lies in a part of it, and so on: what an assignment leaves.

    One condition for all of them: read one in another, n assignments would ask for n * n elements.
    """

    def element(index: Index) -> Expr:
        tests: list[Expr] = []
        there, shape = index, list(x.shape)
        for span in spans:
            here, starts = there[span.dim], isinstance(span.start, int) and span.start == 0
            tests += [] if starts else [at_most(number(span.start), here)]
            tests += [] if known(span.end >= shape[span.dim]) else [at_most(here, number(span.end - 1))]
            here = moved(here, -span.start)
            if span.step != 1:
                tests.append(divides(span.step, here))
                here = quotient(here, span.step)
            kept = () if span.length is None else (here,)
            there = replaced(there, span.dim, *kept)
            shape[span.dim : span.dim + 1] = [] if span.length is None else [span.length]
        new = cast_to(source, there, like)
        return new if not tests else where(all_of(tests), new, x.at(index))

    return like.made_of(element)


def span_of(x: Sequence[Size], source: Sequence[Size], where_: Sequence[Any], selects: bool) -> Span:
    """The part of a tensor of shape ``x`` that ``select_scatter`` or ``slice_scatter`` with these arguments writes.

    Raises:
        StopError: it is not known where it begins, or how far its places are apart.
    """
    dim = where_[0] % len(x)
    if selects:
        place = from_start(where_[1], x[dim])
        return Span(dim, place, place + 1)
    defaults: tuple[Any, ...] = (dim, None, None, 1)
    _, start, end, step = (*where_, *defaults[len(where_) :])
    if not isinstance(step, int):
        raise StopError(f"an assignment with the step {step}")
    first, to_the_end = slice_start(start, x[dim]), end is None or known(end >= sys.maxsize)
    return Span(dim, first, x[dim] if to_the_end else first + step * source[dim], source[dim], step)


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
        here = index[dim]
        if like.dtype.is_floating_point and not isinstance(here, Lin):
            raise StopError(f"a table that was put together, at {here}")
        end: Size = sum((part.shape[dim] for part in parts), start=0)
        result: Expr | None = None
        for part in reversed(parts):
            start = end - part.shape[dim]
            value = cast_to(part, replaced(index, dim, moved(here, -start)), like)
            result = value if result is None else where(at_most(number(end), here), result, value)
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
            there[dim] = place = moved(index[dim], -before)
            inside += [at_most(number(0), place), at_most(place, number(x.shape[dim] - 1))]
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
        return counted(index[dim], step, step, like.dtype)

    return like.made_of(element)
