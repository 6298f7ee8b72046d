"""Single elements of tensors, and numbers of the program as expressions, rounded as PyTorch rounds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any

import torch

from attnpass.graph.symbolic import as_float, known
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Bool, Expr, Float, Lin, number

LARGEST_FACTOR, LARGEST = 1 << 20, 1 << 40  # int64 arithmetic on indices of any tensor there is stays in its range


class StopError(Exception):
    """The meaning of a node is not known; the message is the reason."""


class _Scope(local):
    """Where the indices lie of the element that is made just now."""

    def __init__(self) -> None:
        self.bounds: Callable[[], Bounds] = Bounds


_SCOPE = _Scope()


@contextmanager
def within(bounds: Callable[[], Bounds]) -> Iterator[None]:
    """Arithmetic inside has to fit into its dtype where the indices lie in ``bounds()`` only."""
    before, _SCOPE.bounds = _SCOPE.bounds, bounds
    try:
        yield
    finally:
        _SCOPE.bounds = before


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


def constant(value: Any, dtype: torch.dtype | None = None) -> Expr:
    """A number of the program (a bool, a size or a float) as an expression of ``dtype``, rounded to it.

    Raises:
        StopError: it is NaN, is known at run time only, does not fit, or is no number.
    """
    if isinstance(value, torch.SymFloat):
        value = as_float(value)
    if isinstance(value, torch.SymInt) and (dtype is None or _is_integer(dtype)):
        return fitting(number(value), dtype or torch.int64)
    if not isinstance(value, (bool, int, float)) or (dtype is not None and dtype.is_complex):
        raise StopError(f"{value} as {dtype or 'a number'}")
    if dtype == torch.bool or (dtype is None and isinstance(value, bool)):
        return Bool(bool(value))
    if dtype is None and isinstance(value, float):
        dtype = torch.float64
    if dtype is not None and dtype.is_floating_point:
        return Float(rounded(value, dtype), dtype)
    if isinstance(value, float) and not value.is_integer():
        raise StopError(f"{value} as {dtype}")
    return fitting(number(int(value)), dtype or torch.int64)


def rounded(value: float, dtype: torch.dtype) -> float:
    """A number in a floating-point dtype.

    Raises:
        StopError: it is NaN, or PyTorch does not make such a tensor.
    """
    try:
        kept = float(torch.tensor(value, dtype=dtype, device="cpu").item())
    except (RuntimeError, OverflowError) as error:
        raise StopError(f"{value} as {dtype}: {error}") from error
    if math.isnan(kept):
        raise StopError("NaN")
    return kept


def fitting(form: Lin, dtype: torch.dtype) -> Lin:
    """``form``, if it is an integer of ``dtype`` wherever it is asked for.

    Raises:
        StopError: it might not be.
    """
    if not _is_integer(dtype):
        raise StopError(f"the integer {form} in {dtype}")
    fixed = form.const if isinstance(form.const, int) else 0
    if dtype == torch.int64 and abs(fixed) <= LARGEST and all(abs(n) <= LARGEST_FACTOR for _, n in form.terms):
        return form
    bounds, limits = _SCOPE.bounds(), torch.iinfo(dtype)
    low, high = bounds.least(form), bounds.most(form)
    if low is None or high is None or not (known(low >= limits.min) and known(high <= limits.max)):
        raise StopError(f"{form} may not fit into {dtype}")
    return form


def _is_integer(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
