"""Operations on single elements, casts and choices between elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from attnpass.masks.arrays import (
    Array,
    Like,
    band,
    chosen,
    elementwise,
)
from attnpass.masks.elements import StopError
from attnpass.masks.meanings.table import MEANINGS, meaning
from attnpass.symbolic import Size


def _pointwise(name: str, function: Callable[..., Any], *names: str) -> None:
    def call(like: Like, *operands: Any, **options: Any) -> Array:
        if options.pop("alpha", 1) != 1 or set(options) - {"out", "dtype", "layout", "device", "pin_memory"}:
            raise StopError(f"{name} with {', '.join(options) or 'alpha'}")
        return elementwise(name, function, like, operands)

    MEANINGS.update(dict.fromkeys(names, call))


_pointwise("add", operator.add, "add", "iadd", "add_", "__add__", "__radd__")
_pointwise("sub", operator.sub, "sub", "isub", "sub_", "subtract", "__sub__")
_pointwise("mul", operator.mul, "mul", "imul", "mul_", "multiply", "__mul__", "__rmul__")
_pointwise("truediv", operator.truediv, "truediv", "div", "divide", "true_divide", "itruediv", "div_")
_pointwise("floordiv", operator.floordiv, "floordiv", "floor_divide", "__floordiv__")
_pointwise("mod", operator.mod, "mod", "remainder", "__mod__")
_pointwise("neg", operator.neg, "neg", "negative")
_pointwise("abs", operator.abs, "abs", "absolute")
_pointwise("le", operator.le, "le", "less_equal", "__le__")
_pointwise("lt", operator.lt, "lt", "less", "__lt__")
_pointwise("ge", operator.ge, "ge", "greater_equal", "__ge__")
_pointwise("gt", operator.gt, "gt", "greater", "__gt__")
_pointwise("eq", operator.eq, "eq", "__eq__")
_pointwise("ne", operator.ne, "ne", "not_equal", "__ne__")
_pointwise("and", torch.logical_and, "logical_and", "logical_and_")
_pointwise("or", torch.logical_or, "logical_or", "logical_or_")
_pointwise("xor", torch.logical_xor, "logical_xor", "logical_xor_")
_pointwise("not", torch.logical_not, "logical_not", "logical_not_")
_pointwise("and", operator.and_, "and_", "bitwise_and", "iand", "__and__", "bitwise_and_")
_pointwise("or", operator.or_, "or_", "bitwise_or", "ior", "__or__", "bitwise_or_")
_pointwise("xor", operator.xor, "xor", "bitwise_xor", "ixor", "__xor__", "bitwise_xor_")
_pointwise("not", operator.invert, "invert", "inv", "bitwise_not", "bitwise_not_", "__invert__")
_pointwise("minimum", torch.minimum, "minimum")
_pointwise("maximum", torch.maximum, "maximum")


@meaning("rsub")
def _rsub(like: Like, x: Array, other: Any, alpha: int = 1) -> Array:
    if alpha != 1:
        raise StopError(f"rsub with alpha {alpha}")
    return elementwise("sub", operator.sub, like, (other, x))


@meaning("to", "type", "bool", "int", "long", "float", "half", "bfloat16", "double", "type_as", "_to_copy", "short")
def _cast(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return elementwise("cast", lambda t: t.to(like.dtype), like, (x,))


@meaning("clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "detach_", "cuda", "cpu")
def _same(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return x


@meaning("where")
def _where(like: Like, test: Array, yes: Any, no: Any) -> Array:
    return chosen(test, yes, no, like)


@meaning("masked_fill", "masked_fill_")
def _masked_fill(like: Like, x: Array, mask: Array, value: Any) -> Array:
    return chosen(mask, value, x, like)


@meaning("tril", "tril_")
def _tril(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=True)


@meaning("triu", "triu_")
def _triu(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=False)
