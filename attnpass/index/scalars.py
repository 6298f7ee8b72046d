"""Single elements of tensors, and numbers of the program as expressions: rounded and promoted as PyTorch does it.

In which dtype does an operation compute, and what is each operand in it? Python's numbers and tensors without
dimensions promote less, as `torch.result_type` says. Arithmetic on numbers is folded by PyTorch itself, so that
rounding, overflow and ``-0.0`` come out as they would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import local
from typing import Any

import torch

from attnpass.graph.symbolic import as_float, known
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Bool, Expr, Float, Lin, as_number, number
from attnpass.index.logic import dtype_of, is_boolean

LARGEST_FACTOR, LARGEST = 1 << 20, 1 << 40  # int64 arithmetic on indices of any tensor there is stays in its range
UNSUPPORTED = (torch.uint16, torch.uint32, torch.uint64)  # PyTorch itself has next to no operations on them
HALVES = (torch.float16, torch.bfloat16)
EXACT = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}  # integers up to 2 ** that


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


def within_now() -> Bounds:
    """Where the indices lie of the element that is made just now."""
    return _SCOPE.bounds()


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


def is_float(dtype: torch.dtype | None) -> bool:
    """Is it a floating-point dtype, and one at all?"""
    return dtype is not None and dtype.is_floating_point


def common_dtype(operands: Sequence[Element]) -> torch.dtype:
    """The dtype in which a pointwise operation computes.

    Raises:
        StopError: PyTorch has none.
    """
    kinds = tuple(_kind(each) for each in operands)
    try:
        return _common(kinds, torch.get_default_dtype())
    except RuntimeError as error:
        raise StopError(str(error)) from error


def _kind(element: Element) -> Any:
    """A dtype and whether there are dimensions, or the type of a number of Python's."""
    if element.dtype is not None:
        if element.dtype in UNSUPPORTED or element.dtype.is_complex:
            raise StopError(f"arithmetic of {element.dtype}")
        return element.dtype, element.ndim > 0
    return bool if is_boolean(element.expr) else float if is_float(dtype_of(element.expr)) else int


@lru_cache(maxsize=1024)
def _common(kinds: tuple[Any, ...], default: torch.dtype) -> torch.dtype:
    """``default`` is what a float of Python's becomes beside integers; it is asked for so that the cache knows it."""
    tensors = [torch.empty((1,) * k[1], dtype=k[0], device="meta") if isinstance(k, tuple) else k(1) for k in kinds]
    if len(tensors) == 1:
        return tensors[0].dtype if isinstance(tensors[0], torch.Tensor) else torch.tensor(tensors[0]).dtype
    return torch.result_type(*tensors)


def brought(element: Element, common: torch.dtype) -> Expr:
    """What an operand is in the dtype of the operation; a float of Python's stays one, as kernels round it themselves.

    Raises:
        StopError: that is not exactly the same number, or is not known.
    """
    expr = element.expr
    if isinstance(expr, Bool) and common != torch.bool:
        expr = number(int(expr.value))
    if isinstance(expr, Float) and is_float(common):
        if element.dtype is None:
            return expr
        if rounded(expr.value, common) == expr.value:
            return Float(expr.value, common)
    elif isinstance(expr, Lin):
        if not is_float(common):
            return expr if element.dtype is not None and _is_kept(element.dtype, common) else fitting(expr, common)
        bounds, exact = _SCOPE.bounds(), 1 << EXACT.get(common, 0)
        low, high = bounds.least(expr), bounds.most(expr)
        if low is not None and high is not None and known(low >= -exact) and known(high <= exact):
            return expr
    elif _is_kept(dtype_of(expr) or element.dtype, common):
        return expr
    raise StopError(f"{expr} of {element.dtype} in {common}")


def _is_kept(dtype: torch.dtype | None, common: torch.dtype) -> bool:
    """Is what is read or computed in a dtype the same number in another?"""
    if dtype is None or is_float(dtype) or is_float(common) or torch.bool in (dtype, common):
        return dtype == common
    inner, outer = torch.iinfo(dtype), torch.iinfo(common)
    return outer.min <= inner.min and inner.max <= outer.max


def as_integer(element: Element, common: torch.dtype) -> Element:
    """A whole float beside integers, as an integer: both compare alike.

    Integers that ``common`` cannot hold exactly are rounded to ones at least as far out, never across a number that it
    holds exactly.
    """
    expr = element.expr
    if not isinstance(expr, Float) or not math.isfinite(expr.value) or not expr.value.is_integer():
        return element
    exact = abs(expr.value) <= 1 << EXACT.get(common, 0)
    return Element(number(int(expr.value))) if exact else element


def folded(name: str, function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr:
    """What PyTorch gives for numbers, computed by PyTorch itself on one element of the program's dtype.

    Raises:
        StopError: it does not give the same on every device, or nothing at all.
    """
    given = [_value(each) for each in operands]
    if name == "cast" and not is_float(dtype) and dtype != torch.bool:
        for each in operands:
            constant(math.trunc(_finite(each.expr)), dtype)  # another number is undefined behaviour in C, or wraps
    found = {_result(way, values, dtype) for way, values in _ways(name, function, given)}
    if len(found) > 1:
        raise StopError(f"{name} of {', '.join(map(str, given))}: rounded in one way or another"[:200])
    return found.pop()


def _value(element: Element) -> Any:
    value: Any = element.expr.value if isinstance(element.expr, (Bool, Float)) else as_number(element.expr)
    if element.dtype is None:
        return value
    return torch.tensor(value, dtype=element.dtype, device="cpu").reshape((1,) * min(element.ndim, 1))


def _finite(expr: Expr) -> Any:
    value = expr.value if isinstance(expr, (Bool, Float)) else as_number(expr)
    if value is None or not math.isfinite(value):
        raise StopError(f"{expr} as an integer")
    return value


def _ways(
    name: str, function: Callable[..., Any], given: Sequence[Any]
) -> Iterator[tuple[Callable[..., Any], Sequence[Any]]]:
    """How devices compute it: CUDA's kernels keep a number of Python's in float32, and multiply by its inverse."""
    yield function, given
    single = [not isinstance(value, torch.Tensor) or value.ndim == 0 for value in given]
    if name == "cast" or not any(single) or not any(isinstance(value, torch.Tensor) for value in given):
        return
    halves = any(isinstance(value, torch.Tensor) and value.dtype in HALVES for value in given)
    widened = [value.float() if isinstance(value, torch.Tensor) and halves else value for value in given]
    if name != "truediv":
        if halves:
            yield lambda *values: _narrowed(function(*values), given), widened
    elif isinstance(given[0], torch.Tensor) and single[1] and widened[1] != 0:
        yield lambda left, right: _narrowed(left * _inverse(left, right), given), widened


def _inverse(left: Any, right: Any) -> Any:
    dtype = left.dtype if isinstance(left, torch.Tensor) and is_float(left.dtype) else torch.float32
    return (1.0 / torch.as_tensor(right, dtype=dtype, device="cpu")).item()


def _narrowed(result: torch.Tensor, given: Sequence[Any]) -> torch.Tensor:
    first = next(value for value in given if isinstance(value, torch.Tensor))
    return result.to(first.dtype) if result.dtype.is_floating_point and first.dtype in HALVES else result


def _result(function: Callable[..., Any], given: Sequence[Any], dtype: torch.dtype) -> Expr:
    try:
        result = function(*given)
        value = result.to(dtype).item() if isinstance(result, torch.Tensor) else result
    except (RuntimeError, ArithmeticError, TypeError, ValueError) as error:
        raise StopError(str(error)[:200]) from error
    return constant(value, dtype)
