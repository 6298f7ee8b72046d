"""PyTorch's dtypes, for operands of which only expressions are known.

In which dtype does an operation compute, and what is each operand in it? Python's numbers and tensors without
dimensions promote less, as `torch.result_type` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from attnpass.index.expr import Bool, Expr, Float, Lin, as_number, number
from attnpass.index.logic import dtype_of, is_boolean
from attnpass.index.scalars import Element, StopError, fitting, rounded

UNSUPPORTED = (torch.uint16, torch.uint32, torch.uint64)  # PyTorch itself has next to no operations on them
EXACT = {torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53}  # integers up to 2 ** that


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
        value = as_number(expr)
        if isinstance(value, int) and abs(value) <= 1 << EXACT.get(common, 0):
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
