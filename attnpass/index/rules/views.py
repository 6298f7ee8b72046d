"""Operations that read the same elements at other places: views, indexing, repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from attnpass.graph.symbolic import Size, known
from attnpass.index.arrays import Array, Index, Like, axis_of, not_negative, permuted, replaced
from attnpass.index.expr import ZERO, Apply, Expr, number, plus
from attnpass.index.indexing import from_start, indexed, regrouped, sliced
from attnpass.index.logic import is_positive, where
from attnpass.index.rules.table import form_of, meaning
from attnpass.index.scalars import StopError


@meaning("view")
def _view(like: Like, x: Array, *_: Any) -> Array:
    return regrouped(x, like)


@meaning("expand")
def _expand(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return like.made_of(x.broadcast_at)


@meaning("permute")
def _permute(like: Like, x: Array, dims: Sequence[int]) -> Array:
    return permuted(x, dims)


@meaning("index")
def _index(like: Like, x: Array, items: Sequence[Array | None]) -> Array:
    return indexed(x, items, like)


@meaning("slice")
def _slice(
    like: Like, x: Array, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Array:
    return sliced(x, like, dim, start, step)


@meaning("select")
def _select(like: Like, x: Array, dim: int, index: Size) -> Array:
    place = axis_of(x, dim)
    there = number(from_start(index, x.shape[place]))
    return like.made_of(lambda at: x.at((*at[:place], there, *at[place:])))


@meaning("index_select")
def _index_select(like: Like, x: Array, dim: int, index: Array) -> Array:
    return indexed(x, [*[None] * axis_of(x, dim), index], like)


@meaning("gather")
def _gather(like: Like, x: Array, dim: int, index: Array, **_: Any) -> Array:
    dim = axis_of(x, dim)

    def element(at: Index) -> Expr:
        there = index.at(at)
        if not not_negative(there):
            raise StopError(f"an index that may be negative: {there}")
        return x.at(replaced(at, dim, there))

    return like.made_of(element)


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
        return x.at(
            tuple(
                plus(number(x.shape[i] - 1), form_of(part), -1) if i in turned else part for i, part in enumerate(index)
            )
        )

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
        here = form_of(index[dim])
        before = x.at(replaced(index, dim, plus(here, number(size - by)))) if by else x.at(index)
        after = x.at(replaced(index, dim, plus(here, number(-by))))
        return where(is_positive(plus(here, number(-by))), after, before)

    return Array(x.shape, x.dtype, element)
