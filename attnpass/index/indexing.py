"""Views and indexing of arrays: another way to ask the same elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attnpass.graph.symbolic import Size, as_int, known, known_equal
from attnpass.index.arrays import Array, Index, Like, axis_of, not_negative, replaced, shifted
from attnpass.index.expr import ZERO, Apply, Expr, Lin, number, plus, scaled
from attnpass.index.scalars import StopError


def regrouped(x: Array, like: Like) -> Array:
    """Another shape with the same elements in the same row-major order: view, unsqueeze, squeeze, flatten, ..."""
    plan = _groups(x.shape, like.shape)

    def element(index: Index) -> Expr:
        source: list[Expr] = [ZERO] * x.ndim
        for old, new in plan:
            if len(old) == len(new) == 1:
                source[old[0]] = index[new[0]]
                continue
            flat = _merged([index[i] for i in new], [like.shape[i] for i in new])
            _split(flat, [x.shape[i] for i in old], old, source)
        return x.at(tuple(source))

    return like.made_of(element)


def _merged(parts: Sequence[Expr], sizes: Sequence[Size]) -> Lin:
    """The flat position of an index; only the first dimension's size may be symbolic, which it does not take."""
    flat: Lin = ZERO
    for part, symbolic in zip(parts, sizes, strict=True):
        size = 1 if flat == ZERO else as_int(symbolic)
        if size is None or not isinstance(part, Lin):
            raise StopError(f"a view that merges dimensions at {part}")
        flat = plus(scaled(flat, size), part)
    return flat


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


def sliced(x: Array, like: Like, dim: int, start: Size | None, step: int) -> Array:
    """``x[start::step]`` along ``dim``, as long as ``like`` says.

    Raises:
        StopError: it is not known from which end ``start`` counts.
    """
    dim, size = axis_of(x, dim), x.shape[axis_of(x, dim)]
    first = slice_start(start, size)

    def element(index: Index) -> Expr:
        return x.at(replaced(index, dim, shifted(index[dim], step, first)))

    return like.made_of(element)


def indexed(x: Array, items: Sequence[Array | None], like: Like) -> Array:
    """``aten.index``: integer arrays in some dimensions; None, and what is left, are taken whole.

    The dimensions of the arrays stand where the first array stood if they are neighbours, else in front.

    Raises:
        StopError: an index array is of truth values, or its values may be negative.
    """
    parts = [*items, *[None] * (x.ndim - len(items))]
    fancy = [i for i, part in enumerate(parts) if part is not None]
    arrays = [part for part in parts if part is not None]
    if any(part.dtype == torch.bool or part.dtype == torch.uint8 for part in arrays):
        raise StopError("indexing by truth values")
    depth = max((part.ndim for part in arrays), default=0)
    front = fancy[0] if fancy and fancy == list(range(fancy[0], fancy[-1] + 1)) else 0

    def element(index: Index) -> Expr:
        array_index = index[front : front + depth]
        plain = iter((*index[:front], *index[front + depth :]))
        source: list[Expr] = []
        for part in parts:
            there = next(plain) if part is None else part.broadcast_at(array_index)
            if part is not None and not not_negative(there):
                raise StopError(f"an index that may be negative: {there}")
            source.append(there)
        return x.at(tuple(source))

    return like.made_of(element)


def from_start(position: Size, size: Size) -> Size:
    """A position counted from the first element.

    Raises:
        StopError: it is not known from which end it counts.
    """
    if known(position >= 0):
        return position
    if known(position < 0):
        return size + position
    raise StopError(f"an index of unknown sign: {position}")


def slice_start(start: Size | None, size: Size) -> Size:
    """Where a slice from ``start`` begins, counted from the first element.

    Raises:
        StopError: it is not known from which end ``start`` counts, or whether it is inside.
    """
    first: Size = 0 if start is None else start
    if known(first < 0):
        first = size + first
    if not known(first >= 0):
        raise StopError(f"a slice from {start} of {size}")
    return first
