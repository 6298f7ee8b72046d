"""Operators on expressions: what a program's arithmetic on single elements means, with everything known folded away.

Folding a number uses PyTorch itself on one element of the program's dtype, so that rounding, overflow and ``-0.0`` come
out as they would. What has no meaning here raises `StopError`; the tracer then reads the node's value at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from attnpass.index.expr import Bool, Expr, Float, Lin, Where, as_number, scaled
from attnpass.index.interned import remembered
from attnpass.index.logic import all_of, any_of, is_boolean, is_constant, is_positive, where
from attnpass.index.operators import LOGIC, SYMBOLIC
from attnpass.index.promotion import is_float
from attnpass.index.scalars import Element, StopError, constant

LEAVES = 16  # a pointwise operation is pushed into so many alternatives
HALVES = (torch.float16, torch.bfloat16)


def pointwise(name: str, function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr:
    """``function`` (an operation of PyTorch's called ``name``) on single elements, with a result of ``dtype``.

    Raises:
        StopError: there is no meaning for it.
    """
    if name == "cast" and operands[0].dtype == dtype:
        return operands[0].expr
    both_sides = _distance(name, function, operands, dtype)
    if both_sides is not None:
        return both_sides
    alternatives = math.prod(_leaves(each.expr) for each in operands)
    if alternatives > 1 and alternatives <= LEAVES:
        chosen = next(i for i, each in enumerate(operands) if _leaves(each.expr) > 1)
        element = operands[chosen]
        split = element.expr if isinstance(element.expr, Where) else Where(element.expr, Bool(True), Bool(False))
        if not (is_boolean(element.expr) and name in LOGIC):

            def branch(expr: Expr) -> Expr:
                changed = [*operands[:chosen], Element(expr, element.dtype, element.ndim), *operands[chosen + 1 :]]
                return pointwise(name, function, changed, dtype)

            return where(split.test, branch(split.yes), branch(split.no))
    if all(is_constant(each.expr) for each in operands):
        return _folded(name, function, operands, dtype)
    symbolic = SYMBOLIC.get(name)
    result = None if symbolic is None else symbolic(operands, dtype)
    if result is not None:
        return result
    raise StopError(f"{name} of {', '.join(str(each.expr)[:80] for each in operands)}"[:200])


def _distance(name: str, function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    """``abs(x) < n`` as ``x < n and -x < n``: a band, where the two alternatives of ``abs`` would hide it."""
    if name not in ("lt", "le", "gt", "ge"):
        return None
    for place, element in enumerate(operands):
        split = element.expr
        if not (isinstance(split, Where) and isinstance(split.yes, Lin) and split.test == is_positive(split.yes)):
            continue
        if split.no != scaled(split.yes, -1):
            continue
        sides = []
        for form in (split.yes, split.no):
            changed = [*operands[:place], Element(form, element.dtype, element.ndim), *operands[place + 1 :]]
            sides.append(pointwise(name, function, changed, dtype))
        return all_of(sides) if (name in ("lt", "le")) == (place == 0) else any_of(sides)
    return None


def _leaves(expr: Expr) -> int:
    """Into how many alternatives an operand splits, at most one more than `LEAVES`; an unknown truth value is two."""
    return remembered(expr, "leaves", _count, lambda part: (part.yes, part.no) if isinstance(part, Where) else ())


def _count(expr: Expr) -> int:
    if isinstance(expr, Where):
        return min(_leaves(expr.yes) + _leaves(expr.no), LEAVES + 1)
    return 2 if is_boolean(expr) and not isinstance(expr, Bool) else 1


def _folded(name: str, function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr:
    """What PyTorch gives for numbers, if it gives the same on every device."""
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
