"""Operations that make tensors out of numbers."""

from __future__ import annotations

from typing import Any

import torch

from attnpass.masks.arrays import (
    Array,
    Like,
    chosen,
    elementwise,
    shifted,
)
from attnpass.masks.elements import StopError, constant, fitting
from attnpass.masks.meanings.table import filled, form_of, meaning


@meaning("arange")
def _arange(like: Like, *bounds: Any, start: Any = None, end: Any = None, step: Any = None, **_: Any) -> Array:
    values = [start, end, step]
    places = (1,) if len(bounds) == 1 and start is None and end is None else range(3)
    for place, value in zip(places, bounds, strict=False):
        values[place] = value
    first, by = values[0] or 0, 1 if values[2] is None else values[2]
    if like.dtype.is_floating_point or not all(isinstance(x, (int, torch.SymInt)) for x in (first, by)):
        raise StopError("arange of floats")
    if not isinstance(by, int):
        raise StopError(f"arange with the step {by}")
    return like.made_of(lambda index: fitting(form_of(shifted(index[0], by, first)), like.dtype))


@meaning("zeros", "zeros_like", "new_zeros", "zero_")
def _zeros(like: Like, *_: Any, **__: Any) -> Array:
    return filled(like, 0)


@meaning("ones", "ones_like", "new_ones")
def _ones(like: Like, *_: Any, **__: Any) -> Array:
    return filled(like, 1)


@meaning("full")
def _full(like: Like, size: Any, fill_value: Any, **_: Any) -> Array:
    return filled(like, fill_value)


@meaning("full_like", "fill", "fill_")
def _full_like(like: Like, x: Array, fill_value: Any = None, value: Any = None, **_: Any) -> Array:
    return filled(like, value if fill_value is None else fill_value)


@meaning("new_full")
def _new_full(like: Like, x: Array, size: Any, fill_value: Any, **_: Any) -> Array:
    return filled(like, fill_value)


@meaning("tensor", "scalar_tensor", "as_tensor", "new_tensor")
def _tensor(like: Like, *args: Any, **_: Any) -> Array:
    value = args[-1]
    if isinstance(value, Array):
        return elementwise("cast", lambda t: t.to(like.dtype), like, (value,))
    if like.shape or isinstance(value, (list, tuple)):
        raise StopError("a tensor of several numbers")
    return filled(like, value)


@meaning("copy_")
def _copy(like: Like, x: Array, source: Any, *_: Any, **__: Any) -> Array:
    return chosen(_true(like), source, source, like)


def _true(like: Like) -> Array:
    return Like(like.shape, torch.bool).made_of(lambda _: constant(True))
