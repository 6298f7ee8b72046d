"""Operations on single elements, casts and choices between elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from attnpass.graph.symbolic import Size
from attnpass.index.arrays import Array, Like, band, chosen, elementwise
from attnpass.index.rules.table import MEANINGS, meaning
from attnpass.index.scalars import StopError


def _pointwise(name: str, function: Callable[..., Any], *names: str) -> None:
    def call(like: Like, *operands: Any, **options: Any) -> Array:
        if options.pop("alpha", 1) != 1 or options:
            raise StopError(f"{name} with {', '.join(options) or 'alpha'}")
        return elementwise(name, function, like, operands)

    MEANINGS.update(dict.fromkeys(names, call))


_pointwise("add", operator.add, "add")
_pointwise("sub", operator.sub, "sub")
_pointwise("mul", operator.mul, "mul")
_pointwise("truediv", operator.truediv, "div", "true_divide")
_pointwise("floordiv", operator.floordiv, "floor_divide")
_pointwise("mod", operator.mod, "remainder")
_pointwise("neg", operator.neg, "neg")
_pointwise("abs", operator.abs, "abs")
_pointwise("le", operator.le, "le")
_pointwise("lt", operator.lt, "lt")
_pointwise("ge", operator.ge, "ge")
_pointwise("gt", operator.gt, "gt")
_pointwise("eq", operator.eq, "eq")
_pointwise("ne", operator.ne, "ne")
_pointwise("and", torch.logical_and, "logical_and")
_pointwise("or", torch.logical_or, "logical_or")
_pointwise("xor", torch.logical_xor, "logical_xor")
_pointwise("not", torch.logical_not, "logical_not")
_pointwise("and", operator.and_, "bitwise_and")
_pointwise("or", operator.or_, "bitwise_or")
_pointwise("xor", operator.xor, "bitwise_xor")
_pointwise("not", operator.invert, "bitwise_not")
_pointwise("minimum", torch.minimum, "minimum")
_pointwise("maximum", torch.maximum, "maximum")


@meaning("rsub")
def _rsub(like: Like, x: Array, other: Any, alpha: int = 1) -> Array:
    if alpha != 1:
        raise StopError(f"rsub with alpha {alpha}")
    return elementwise("sub", operator.sub, like, (other, x))


@meaning("to")
def _cast(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return elementwise("cast", lambda t: t.to(like.dtype), like, (x,))


@meaning("clone", "detach")
def _same(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return x


@meaning("where")
def _where(like: Like, test: Array, yes: Any, no: Any) -> Array:
    return chosen(test, yes, no, like)


@meaning("masked_fill")
def _masked_fill(like: Like, x: Array, mask: Array, value: Any) -> Array:
    return chosen(mask, value, x, like)


@meaning("tril")
def _tril(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=True)


@meaning("triu")
def _triu(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=False)
