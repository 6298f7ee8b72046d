"""Operators on expressions: what a program's arithmetic on single elements means, with everything known folded away.

Folding a number uses PyTorch itself on one element of the program's dtype, so that rounding, overflow and ``-0.0`` come
out as they would. What has no meaning here raises `StopError`; the tracer then reads the node's value at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnpass.masks.elements import Element, StopError, constant
from attnpass.masks.expr import Bool, Expr, Float, Lin, Where, as_number, scaled
from attnpass.masks.logic import all_of, any_of, is_boolean, is_constant, is_positive, where
from attnpass.masks.operators import LOGIC, SYMBOLIC

LEAVES = 16  # a pointwise operation is pushed into so many alternatives


def pointwise(name: str, function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr:
    """``function`` (an operation of PyTorch's called ``name``) on single elements, with a result of ``dtype``.

    Raises:
        StopError: there is no meaning for it.
    """
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
    exprs = [each.expr for each in operands]
    symbolic = SYMBOLIC.get(name)
    folded = all(is_constant(expr) for expr in exprs)
    if symbolic is not None and not (folded and any(isinstance(expr, Float) for expr in exprs)):
        result = symbolic(operands, dtype)
        if result is not None:
            return result
    if folded:
        return _folded(function, operands, dtype)
    raise StopError(f"{name} of {', '.join(map(str, exprs))}"[:200])


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
    """Into how many alternatives an operand splits; a truth value that is not known is two."""
    if isinstance(expr, Where):
        return _leaves(expr.yes) + _leaves(expr.no)
    return 2 if is_boolean(expr) and not isinstance(expr, Bool) else 1


def _folded(function: Callable[..., Any], operands: Sequence[Element], dtype: torch.dtype) -> Expr:
    given: list[Any] = []
    for each in operands:
        value: Any = each.expr.value if isinstance(each.expr, (Bool, Float)) else as_number(each.expr)
        if each.dtype is not None:
            value = torch.tensor(value, dtype=each.dtype).reshape((1,) * min(each.ndim, 1))
        given.append(value)
    result = function(*given)
    value = result.to(dtype).item() if isinstance(result, torch.Tensor) else result
    return constant(value, dtype)
