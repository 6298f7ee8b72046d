"""Tensors as functions of their indices: an `Array` gives the expression of any element, and is never materialised.

A view is another way to ask the same array; ``tril`` is a condition on two indices. Nothing in here knows a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attnpass.graph.symbolic import Size, known, known_equal
from attnpass.index.arithmetic import pointwise
from attnpass.index.asked import Index as Index
from attnpass.index.asked import answer, ask
from attnpass.index.expr import ZERO, Expr, Lin, number, plus, scaled
from attnpass.index.logic import is_boolean, is_positive, where
from attnpass.index.scalars import Element, StopError, constant


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


def permuted(x: Array, order: Sequence[int]) -> Array:
    """Dimension i of the result is dimension ``order[i]`` of ``x``."""
    order = [axis_of(x, dim) for dim in order]
    shape = tuple(x.shape[dim] for dim in order)
    return Array(shape, x.dtype, lambda index: x.at(tuple(index[order.index(dim)] for dim in range(x.ndim))))


def shifted(index: Expr, times: int, offset: Size) -> Expr:
    """``times * index + offset``."""
    if times == 1 and isinstance(offset, int) and offset == 0:
        return index
    if not isinstance(index, Lin):
        raise StopError(f"arithmetic on the index {index}")
    return plus(scaled(index, times), number(offset))


def not_negative(index: Expr) -> bool:
    """Is an index known to be at least 0, from the fact alone that all axes are?"""
    if not isinstance(index, Lin):
        return False
    return all(n > 0 for _, n in index.terms) and known(index.const >= 0)


def band(x: Array, like: Like, diagonal: Size, lower: bool) -> Array:
    """``tril`` (keep where column - row <= diagonal) or ``triu`` (>=); the rest is 0."""

    def element(index: Index) -> Expr:
        row, column = index[-2:]
        if not (isinstance(row, Lin) and isinstance(column, Lin)):
            raise StopError(f"a triangle at {row}, {column}")
        distance = plus(plus(column, row, -1), number(-diagonal))
        kept = is_positive(scaled(distance, -1) if lower else distance)
        return where(kept, x.at(index), constant(0, x.dtype))

    return like.made_of(element)


def chosen(test: Array, yes: Any, no: Any, like: Like) -> Array:
    """``where(test, yes, no)``: arrays or numbers, in the result's dtype."""

    def part(value: Any, index: Index) -> Expr:
        if not isinstance(value, Array):
            return constant(value, like.dtype)
        element = Element(value.broadcast_at(index), value.dtype, value.ndim)
        return pointwise("cast", lambda t: t.to(like.dtype), [element], like.dtype)

    def element(index: Index) -> Expr:
        condition = test.broadcast_at(index)
        if not is_boolean(condition):
            raise StopError(f"a condition that is no truth value: {condition}")
        return where(condition, part(yes, index), part(no, index))

    return like.made_of(element)
