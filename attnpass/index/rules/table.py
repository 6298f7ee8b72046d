"""The table of meanings: from the name of an ATen op to the function that says what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnpass.index.arithmetic import pointwise
from attnpass.index.arrays import Array, Like
from attnpass.index.expr import Expr, Lin
from attnpass.index.scalars import Element, StopError, constant

Operation = Callable[..., Array]
MEANINGS: dict[str, Operation] = {}


def meaning(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function into the table under the names of ATen ops."""

    def register(function: Operation) -> Operation:
        MEANINGS.update(dict.fromkeys(names, function))
        return function

    return register


def form_of(expr: Expr) -> Lin:
    """An index as a linear form.

    Raises:
        StopError: it is something else.
    """
    if not isinstance(expr, Lin):
        raise StopError(f"arithmetic on the index {expr}")
    return expr


def cast_to(value: Array, index: tuple[Expr, ...], like: Like) -> Expr:
    """An element of ``value``, in the dtype of ``like``."""
    element = Element(value.broadcast_at(index), value.dtype, value.ndim)
    return pointwise("cast", lambda t: t.to(like.dtype), [element], like.dtype)


def filled(like: Like, value: Any) -> Array:
    """One number everywhere."""
    return like.made_of(lambda _: constant(value, like.dtype))
