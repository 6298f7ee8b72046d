"""Tensors as functions of their indices: an `Array` gives the expression of any element, and is never materialised.

A view is another way to ask the same array; ``tril`` is a condition on two indices. Nothing in here knows a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from attnpass.masks.arithmetic import Element, StopError, constant, pointwise
from attnpass.masks.expr import ZERO, Apply, Expr, Lin, is_boolean, is_positive, number, plus, scaled, where
from attnpass.symbolic import Size, as_int, known, known_equal

Index = tuple[Expr, ...]


@dataclass(slots=True, eq=False)
class Array:
    """A tensor as a function of its indices.

    Attributes:
        shape: its sizes.
        dtype: its dtype.
        element: the expression at an index, one expression a dimension; asked through `at`.
        made: the elements that were asked for, by index.
    """

    shape: tuple[Size, ...]
    dtype: torch.dtype
    element: Callable[[Index], Expr]
    made: dict[Index, Expr] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def at(self, index: Index) -> Expr:
        """The element at ``index``; a dimension of size 1 is read at 0 whatever the index says."""
        there = tuple(ZERO if known_equal(size, 1) else i for i, size in zip(index, self.shape, strict=True))
        if there not in self.made:
            self.made[there] = self.element(there)
        return self.made[there]

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


def regrouped(x: Array, like: Like) -> Array:
    """Another shape with the same elements in the same row-major order: view, unsqueeze, squeeze, flatten, ..."""
    plan = _groups(x.shape, like.shape)

    def element(index: Index) -> Expr:
        source: list[Expr] = [ZERO] * x.ndim
        for old, new in plan:
            if len(old) == len(new) == 1:
                source[old[0]] = index[new[0]]
                continue
            flat: Lin = ZERO
            for position in new:
                size, part = as_int(like.shape[position]), index[position]
                if size is None or not isinstance(part, Lin):
                    raise StopError(f"a view that merges dimensions at {part}")
                flat = plus(scaled(flat, size), part)
            _split(flat, [x.shape[i] for i in old], old, source)
        return x.at(tuple(source))

    return like.made_of(element)


def _split(flat: Lin, sizes: Sequence[Size], positions: Sequence[int], source: list[Expr]) -> None:
    """Write the indices of a flat position into ``source``; what is left to divide is settled when bounds are known."""
    rest: Expr = flat
    for size, position in list(zip(sizes, positions, strict=True))[:0:-1]:
        step = as_int(size)
        if step is None or not isinstance(rest, (Lin, Apply)):
            raise StopError("a view that splits a dimension of symbolic size")
        source[position] = Apply("mod", (rest, number(step)), torch.int64)
        rest = Apply("floordiv", (rest, number(step)), torch.int64)
    source[positions[0]] = rest


def _groups(old: Sequence[Size], new: Sequence[Size]) -> list[tuple[list[int], list[int]]]:
    """Pairs of runs of dimensions with the same number of elements; dimensions of size 1 are left out.

    Raises:
        StopError: sizes are symbolic in a way that cannot be matched.
    """
    left = [i for i, size in enumerate(old) if not known_equal(size, 1)]
    right = [i for i, size in enumerate(new) if not known_equal(size, 1)]
    plan: list[tuple[list[int], list[int]]] = []
    while left and right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        n, m = old[ours[0]], new[theirs[0]]
        while not known_equal(n, m):
            if left and known(n < m):
                ours.append(left.pop(0))
                n = n * old[ours[-1]]
            elif right and known(n > m):
                theirs.append(right.pop(0))
                m = m * new[theirs[-1]]
            else:
                raise StopError(f"a view of {tuple(map(str, old))} as {tuple(map(str, new))}")
        plan.append((ours, theirs))
    if left or right:
        raise StopError(f"a view of {tuple(map(str, old))} as {tuple(map(str, new))}")
    return plan


def permuted(x: Array, order: Sequence[int]) -> Array:
    """Dimension i of the result is dimension ``order[i]`` of ``x``."""
    order = [axis_of(x, dim) for dim in order]
    shape = tuple(x.shape[dim] for dim in order)
    return Array(shape, x.dtype, lambda index: x.at(tuple(index[order.index(dim)] for dim in range(x.ndim))))


def sliced(x: Array, like: Like, dim: int, start: Size | None, step: int) -> Array:
    """``x[start::step]`` along ``dim``, as long as ``like`` says.

    Raises:
        StopError: it is not known from which end ``start`` counts.
    """
    dim, size = axis_of(x, dim), x.shape[axis_of(x, dim)]
    first: Size = 0 if start is None else start
    if known(first < 0):
        if not known(size + first >= 0):
            raise StopError(f"a slice from {first} of {size}")
        first = size + first
    elif not known(first >= 0):
        raise StopError(f"a slice from {first} of {size}")

    def element(index: Index) -> Expr:
        return x.at(replaced(index, dim, shifted(index[dim], step, first)))

    return like.made_of(element)


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


def indexed(x: Array, parts: Sequence[Any], like: Like) -> Array:
    """Indexing by None, slices, numbers and integer arrays, as Python writes it.

    Raises:
        StopError: an index array is of truth values, or its values may be negative.
    """
    parts = _without_ellipsis(x, parts)
    fancy = [i for i, part in enumerate(parts) if isinstance(part, Array)]
    depth = max((parts[i].ndim for i in fancy), default=0)
    if any(parts[i].dtype == torch.bool for i in fancy):
        raise StopError("indexing by truth values")
    beside = [i for i, part in enumerate(parts) if isinstance(part, Array) or (fancy and _is_size(part))]
    together = not beside or beside == list(range(beside[0], beside[-1] + 1))
    front = 0 if not together else sum(not _is_size(part) for part in parts[: beside[0]]) if beside else 0

    def element(index: Index) -> Expr:
        array_index = index[front : front + depth]
        plain = iter((*index[:front], *index[front + depth :]) if fancy else index)
        source: list[Expr] = []
        for part in parts:
            dim = len(source)
            if part is None:
                next(plain)
            elif isinstance(part, Array):
                there = part.broadcast_at(array_index)
                if not not_negative(there):
                    raise StopError(f"an index that may be negative: {there}")
                source.append(there)
            elif _is_size(part):
                source.append(number(_from_start(part, x.shape[dim])))
            else:
                source.append(_slice_at(part, x.shape[dim], next(plain)))
        return x.at(tuple(source))

    return like.made_of(element)


def _is_size(part: Any) -> bool:
    return isinstance(part, (int, torch.SymInt)) and not isinstance(part, bool)


def _without_ellipsis(x: Array, parts: Sequence[Any]) -> list[Any]:
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    rest = [slice(None)] * (x.ndim - taken)
    if not any(part is Ellipsis for part in parts):
        return [*parts, *rest]
    at = next(i for i, part in enumerate(parts) if part is Ellipsis)
    return [*parts[:at], *rest, *parts[at + 1 :]]


def _from_start(position: Size, size: Size) -> Size:
    if known(position >= 0):
        return position
    if known(position < 0):
        return size + position
    raise StopError(f"an index of unknown sign: {position}")


def _slice_at(part: slice, size: Size, index: Expr) -> Expr:
    first: Size = 0 if part.start is None else _from_start(part.start, size)
    if part.start is not None and known(part.start < 0) and not known(first >= 0):
        raise StopError(f"a slice from {part.start} of {size}")
    return shifted(index, part.step or 1, first)


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
