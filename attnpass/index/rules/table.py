"""The table of meanings: from the name of an ATen op to the function that says what it gives."""

from __future__ import annotations

from collections.abc import Callable

from attnpass.index.arithmetic import converted
from attnpass.index.arrays import Array, Index, Like
from attnpass.index.expr import Expr

Operation = Callable[..., Array]
MEANINGS: dict[str, Operation] = {}


def meaning(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function into the table under the names of ATen ops."""

    def register(function: Operation) -> Operation:
        MEANINGS.update(dict.fromkeys(names, function))
        return function

    return register


def cast_to(value: Array, index: Index, like: Like) -> Expr:
    """An element of ``value``, in the dtype of ``like``."""
    return converted(value.broadcast_at(index), value.dtype, like.dtype)
