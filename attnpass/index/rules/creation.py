"""Ops that make tensors out of numbers."""

from __future__ import annotations

from typing import Any

import torch

from attnpass.graph.symbolic import Size
from attnpass.index.arrays import Array, Index, Like
from attnpass.index.expr import Expr
from attnpass.index.logic import where
from attnpass.index.places import counted, equal
from attnpass.index.rules.table import meaning
from attnpass.index.scalars import StopError, constant


@meaning("arange")
def _arange(like: Like, start: Size, end: Size, step: Size = 1, **_: Any) -> Array:
    if like.dtype.is_floating_point or not all(isinstance(x, (int, torch.SymInt)) for x in (start, step)):
        raise StopError("arange of floats")
    if not isinstance(step, int):
        raise StopError(f"arange with the step {step}")
    return like.made_of(lambda index: counted(index[0], start, step, like.dtype))


@meaning("eye")
def _eye(like: Like, *_: Any, **__: Any) -> Array:
    def element(index: Index) -> Expr:
        return where(equal(*index), constant(1, like.dtype), constant(0, like.dtype))

    return like.made_of(element)


@meaning("full")
def _full(like: Like, size: Any, fill_value: Any, **_: Any) -> Array:
    return like.made_of(lambda _: constant(fill_value, like.dtype))
