"""Operations that read the same elements at other places: views, indexing, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from attnpass.graph.symbolic import Size, as_int, known, known_equal
from attnpass.index.arrays import Array, Index, Like, axis_of, replaced
from attnpass.index.expr import ZERO, Apply, Expr, Lin, number, plus, scaled
from attnpass.index.logic import where
from attnpass.index.places import at_most, from_either_end, moved
from attnpass.index.rules.table import meaning
from attnpass.index.scalars import StopError


@meaning("view")
def regrouped(like: Like, x: Array, *_: Any) -> Array:
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
        if step is None:
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


@meaning("expand")
def _expand(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return like.made_of(x.broadcast_at)


@meaning("permute")
def _permute(like: Like, x: Array, dims: Sequence[int]) -> Array:
    order = [axis_of(x, dim) for dim in dims]
    return like.made_of(lambda index: x.at(tuple(index[order.index(dim)] for dim in range(x.ndim))))


@meaning("slice")
def _slice(
    like: Like, x: Array, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Array:
    """``x[start::step]`` along ``dim``, as long as ``like`` says."""
    dim = axis_of(x, dim)
    first = slice_start(start, x.shape[dim])
    return like.made_of(lambda index: x.at(replaced(index, dim, moved(index[dim], first, step))))


@meaning("select")
def _select(like: Like, x: Array, dim: int, index: Size) -> Array:
    place = axis_of(x, dim)
    there = number(from_start(index, x.shape[place]))
    return like.made_of(lambda at: x.at((*at[:place], there, *at[place:])))


@meaning("index")
def indexed(like: Like, x: Array, items: Sequence[Array | None]) -> Array:
    """``aten.index``: integer arrays in some dimensions; None, and what is left, are taken whole.

    The dimensions of the arrays stand where the first array stood if they are neighbours, else in front.

    Raises:
        StopError: an index array is of truth values.
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
        return x.at(
            tuple(
                next(plain) if part is None else from_either_end(part.broadcast_at(array_index), size)
                for part, size in zip(parts, x.shape, strict=True)
            )
        )

    return like.made_of(element)


@meaning("index_select")
def _index_select(like: Like, x: Array, dim: int, index: Array) -> Array:
    """Unlike an index in brackets, one here that is negative is an error; so it is for `_gather` and `_embedding`."""
    dim = axis_of(x, dim)
    return like.made_of(lambda at: x.at(replaced(at, dim, index.at((at[dim],) * index.ndim))))


@meaning("gather")
def _gather(like: Like, x: Array, dim: int, index: Array, **_: Any) -> Array:
    dim = axis_of(x, dim)
    return like.made_of(lambda at: x.at(replaced(at, dim, index.at(at))))


@meaning("embedding")
def _embedding(like: Like, x: Array, index: Array, padding_idx: int = -1, *others: Any) -> Array:
    """Rows of a table.

    Raises:
        StopError: gradients of the rows are not those of what is read.
    """
    if padding_idx != -1 or any(other is not False for other in others):
        raise StopError("an embedding with padding_idx, scale_grad_by_freq or sparse")
    return like.made_of(lambda at: x.at((index.at(at[:-1]), at[-1])))


@meaning("repeat")
def _repeat(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    def element(index: Index) -> Expr:
        inner = index[len(index) - x.ndim :]
        sizes = like.shape[len(index) - x.ndim :]
        return x.at(tuple(_modulo(i, size, whole) for i, size, whole in zip(inner, x.shape, sizes, strict=True)))

    return like.made_of(element)


def _modulo(index: Expr, size: Size, whole: Size) -> Expr:
    if known(size == 1):
        return ZERO
    if known(size == whole):
        return index
    if not isinstance(size, int):
        raise StopError(f"a repetition of the symbolic size {size}")
    return Apply("mod", (index, number(size)), torch.int64)


@meaning("repeat_interleave")
def _repeat_interleave(like: Like, x: Array, repeats: Any, dim: int | None = None, **_: Any) -> Array:
    if not isinstance(repeats, int) or dim is None:
        raise StopError("repeat_interleave by a tensor, or over all dimensions")
    dim = axis_of(x, dim)
    return like.made_of(
        lambda index: x.at(replaced(index, dim, Apply("floordiv", (index[dim], number(repeats)), torch.int64)))
    )


@meaning("flip")
def _flip(like: Like, x: Array, dims: Sequence[int]) -> Array:
    turned = {axis_of(x, dim) for dim in dims}

    def element(index: Index) -> Expr:
        return x.at(tuple(moved(part, x.shape[i] - 1, -1) if i in turned else part for i, part in enumerate(index)))

    return like.made_of(element)


@meaning("roll")
def _roll(like: Like, x: Array, shifts: Sequence[Size], dims: Sequence[int] = ()) -> Array:
    if not dims:
        raise StopError("roll over all dimensions")
    result = x
    for by, dim in zip(shifts, dims, strict=True):
        result = _rolled(result, by, axis_of(x, dim))
    return result


def _rolled(x: Array, by: Any, dim: int) -> Array:
    size = x.shape[dim]
    if not isinstance(by, int) or not isinstance(size, int) or not size:
        raise StopError(f"roll by {by} of {size}")
    by %= size

    def element(index: Index) -> Expr:
        before, after = (x.at(replaced(index, dim, moved(index[dim], n))) for n in (size - by if by else 0, -by))
        return where(at_most(number(by), index[dim]), after, before)

    return Array(x.shape, x.dtype, element)


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
        first = 0 if known(size + first < 0) else size + first
    if not known(first >= 0):
        raise StopError(f"a slice from {start} of {size}")
    return first
