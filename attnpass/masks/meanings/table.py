"""The table of meanings: from an operation's name to the function that says what it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnpass.masks.arithmetic import pointwise
from attnpass.masks.arrays import (
    Array,
    Like,
)
from attnpass.masks.elements import Element, StopError, constant
from attnpass.masks.expr import Expr, Lin

Operation = Callable[..., Any]
MEANINGS: dict[str, Operation] = {}


def meaning(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function into the table under the names of operations."""

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


def filled(like: Like, value: Any) -> Array:
    """One value everywhere: a number, or a tensor without dimensions."""
    if isinstance(value, Array):
        if value.ndim:
            raise StopError("a fill value with dimensions")
        element = Element(value.at(()), value.dtype, 0)
        return like.made_of(lambda _: pointwise("cast", lambda t: t.to(like.dtype), [element], like.dtype))
    return like.made_of(lambda _: constant(value, like.dtype))
