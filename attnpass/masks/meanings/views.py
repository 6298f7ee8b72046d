"""Operations that read the same elements at other places: views, indexing, repetition."""

from __future__ import annotations

from typing import Any

import torch

from attnpass.masks.arrays import (
    Array,
    Index,
    Like,
    axis_of,
    not_negative,
    permuted,
    replaced,
)
from attnpass.masks.elements import StopError
from attnpass.masks.expr import ZERO, Apply, Expr, number, plus
from attnpass.masks.indexing import indexed, regrouped, sliced
from attnpass.masks.logic import is_positive, where
from attnpass.masks.meanings.table import form_of, meaning
from attnpass.symbolic import Size, known


@meaning(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as", "ravel"
)
def _view(like: Like, x: Array, *args: Any, **_: Any) -> Array:
    if args and isinstance(args[0], torch.dtype):
        raise StopError("a view as another dtype")
    return regrouped(x, like)


@meaning("expand", "expand_as", "broadcast_to")
def _expand(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return like.made_of(x.broadcast_at)


@meaning("transpose", "swapaxes", "swapdims")
def _transpose(like: Like, x: Array, dim0: int, dim1: int) -> Array:
    order = list(range(x.ndim))
    a, b = axis_of(x, dim0), axis_of(x, dim1)
    order[a], order[b] = b, a
    return permuted(x, order)


@meaning("t", "T", "numpy_T")
def _reversed(like: Like, x: Array, *_: str) -> Array:
    return permuted(x, range(x.ndim)[::-1])


@meaning("mT")
def _swapped(like: Like, x: Array, *_: str) -> Array:
    swapped: Array = _transpose(like, x, -2, -1)
    return swapped


@meaning("permute")
def _permute(like: Like, x: Array, *dims: Any, **named: Any) -> Array:
    dims = dims or (named["dims"],)
    return permuted(x, dims[0] if isinstance(dims[0], (list, tuple)) else dims)


@meaning("getattr")
def _getattr(like: Like, x: Array, name: str) -> Array:
    raise StopError(f"the attribute {name}")


@meaning("getitem")
def _getitem(like: Like, x: Any, item: Any) -> Any:
    if not isinstance(x, Array):
        return x[item]
    return indexed(x, item if isinstance(item, (tuple, list)) else (item,), like)


@meaning("index")
def _index(like: Like, x: Array, items: Any) -> Array:
    return indexed(x, [slice(None) if item is None else item for item in items], like)


@meaning("narrow")
def _narrow(like: Like, x: Array, dim: int, start: Size, length: Size) -> Array:
    return sliced(x, like, dim, start, 1)


@meaning("slice")
def _slice(
    like: Like, x: Array, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Array:
    return sliced(x, like, dim, start, step)


@meaning("select")
def _select(like: Like, x: Array, dim: int, index: Size) -> Array:
    parts: list[Any] = [slice(None)] * x.ndim
    parts[axis_of(x, dim)] = index
    return indexed(x, parts, like)


@meaning("index_select")
def _index_select(like: Like, x: Array, dim: int, index: Array) -> Array:
    parts: list[Any] = [slice(None)] * x.ndim
    parts[axis_of(x, dim)] = index
    return indexed(x, parts, like)


@meaning("gather")
def _gather(like: Like, x: Array, dim: int, index: Array, **_: Any) -> Array:
    dim = axis_of(x, dim)

    def element(at: Index) -> Expr:
        there = index.at(at)
        if not not_negative(there):
            raise StopError(f"an index that may be negative: {there}")
        return x.at(replaced(at, dim, there))

    return like.made_of(element)


@meaning("repeat", "tile")
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
def _flip(like: Like, x: Array, *dims: Any) -> Array:
    turned = {axis_of(x, dim) for dim in (dims[0] if isinstance(dims[0], (list, tuple)) else dims)}

    def element(index: Index) -> Expr:
        return x.at(
            tuple(
                plus(number(x.shape[i] - 1), form_of(part), -1) if i in turned else part for i, part in enumerate(index)
            )
        )

    return like.made_of(element)


@meaning("roll")
def _roll(like: Like, x: Array, shifts: Any, dims: Any = None) -> Array:
    if dims is None:
        raise StopError("roll over all dimensions")
    pairs = list(zip(shifts, dims, strict=True)) if isinstance(shifts, (list, tuple)) else [(shifts, dims)]
    result = x
    for by, dim in pairs:
        position = axis_of(x, dim if isinstance(dim, int) else dim[0])
        result = _rolled(result, by, position)
    return result


def _rolled(x: Array, by: Any, dim: int) -> Array:
    size = x.shape[dim]
    if not isinstance(by, int) or not isinstance(size, int) or not size:
        raise StopError(f"roll by {by} of {size}")
    by %= size

    def element(index: Index) -> Expr:
        here = form_of(index[dim])
        before = x.at(replaced(index, dim, plus(here, number(size - by)))) if by else x.at(index)
        after = x.at(replaced(index, dim, plus(here, number(-by))))
        return where(is_positive(plus(here, number(-by))), after, before)

    return Array(x.shape, x.dtype, element)
