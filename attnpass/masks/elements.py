"""Single elements of tensors, and numbers of the program as expressions, rounded as PyTorch rounds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from attnpass.masks.expr import LARGEST, Bool, Expr, Float, Lin, number
from attnpass.symbolic import Size

SMALL_FACTOR, SMALL_CONST = 1 << 8, 1 << 29  # int32 arithmetic on indices below 2**21 stays in its range


class StopError(Exception):
    """The meaning of a node is not known; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Element:
    """One operand of a pointwise operation.

    Attributes:
        expr: its value.
        dtype: its dtype; None for a number of Python's, which takes the dtype of the tensors beside it.
        ndim: dimensions of the tensor that it is an element of: tensors without dimensions promote less.
    """

    expr: Expr
    dtype: torch.dtype | None = None
    ndim: int = 0


def constant(value: bool | float | Size, dtype: torch.dtype | None = None) -> Expr:
    """A number of the program as an expression of ``dtype``, rounded to it.

    Raises:
        StopError: it is NaN, or does not fit.
    """
    if dtype == torch.bool or (dtype is None and isinstance(value, bool)):
        return Bool(bool(value))
    if (dtype is not None and dtype.is_floating_point) or (dtype is None and isinstance(value, float)):
        kept = torch.tensor(float(value), dtype=dtype or torch.float64).item()
        if math.isnan(kept):
            raise StopError("NaN")
        return Float(kept, dtype or torch.float64)
    if isinstance(value, float) and not value.is_integer():
        raise StopError(f"{value} as {dtype}")
    return fitting(number(int(value) if isinstance(value, (bool, float)) else value), dtype or torch.int64)


def fitting(form: Lin, dtype: torch.dtype) -> Lin:
    """``form``, if arithmetic of ``dtype`` cannot have overflowed on the way.

    Raises:
        StopError: it might have.
    """
    factor, const = (LARGEST >> 20, LARGEST) if dtype == torch.int64 else (SMALL_FACTOR, SMALL_CONST)
    if dtype not in (torch.int64, torch.int32):
        factor, const = 0, torch.iinfo(dtype).max if not dtype.is_floating_point else 0
    known = form.const if isinstance(form.const, int) else 0
    low = -const if dtype.is_signed else 0
    if any(abs(n) > factor for _, n in form.terms) or not low <= known <= const:
        raise StopError(f"{form} may not fit into {dtype}")
    return form
