"""What each operator means for expressions: linear arithmetic, comparisons, logic, casts. The rest stays as written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnpass.masks.elements import Element, StopError, fitting
from attnpass.masks.expr import (
    Apply,
    Bool,
    Expr,
    Float,
    Lin,
    Load,
    as_number,
    number,
    plus,
    scaled,
)
from attnpass.masks.logic import all_of, any_of, is_boolean, is_constant, is_positive, is_zero, negated, where


def _forms(operands: Sequence[Element]) -> list[Lin] | None:
    forms = [each.expr for each in operands if isinstance(each.expr, Lin)]
    return forms if len(forms) == len(operands) else None


def _integers(operands: Sequence[Element]) -> bool:
    dtypes = {each.dtype for each in operands} - {None}
    return all(dtype is not None and not dtype.is_floating_point and dtype != torch.bool for dtype in dtypes)


def _opaque(op: str, operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    """The operation as the program wrote it, on values of one dtype and numbers."""
    dtypes = {each.dtype for each in operands} - {None}
    mixed = {torch.int64} < dtypes and all(isinstance(e.expr, Lin) or e.dtype == torch.int64 for e in operands)
    if len(dtypes) > 1 and not mixed:
        return None
    indices = any(isinstance(e.expr, Lin) and e.expr.terms for e in operands)
    if indices and (not _integers(operands) or any(isinstance(e.expr, Float) for e in operands)):
        return None
    return Apply(op, tuple(each.expr for each in operands), dtype)


def _add(operands: Sequence[Element], dtype: torch.dtype, times: int = 1) -> Expr | None:
    if dtype == torch.bool:
        return any_of(each.expr for each in operands) if times == 1 else None
    forms = _forms(operands)
    if forms and _integers(operands) and not dtype.is_floating_point:
        return fitting(plus(forms[0], forms[1], times), dtype)
    if dtype.is_floating_point and not all(each.dtype == dtype or each.dtype is None for each in operands):
        return None
    zero = [isinstance(each.expr, Float) and each.expr.value == 0 for each in operands]
    if dtype.is_floating_point and zero[1] and operands[0].dtype == dtype:
        return operands[0].expr
    if dtype.is_floating_point and zero[0] and times == 1 and operands[1].dtype == dtype:
        return operands[1].expr
    return _opaque("add" if times == 1 else "sub", operands, dtype)


def _subtract(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return _add(operands, dtype, -1)


def _multiply(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    if dtype == torch.bool:
        return all_of(each.expr for each in operands)
    forms = _forms(operands)
    if forms is None or dtype.is_floating_point or not _integers(operands):
        return None if dtype.is_floating_point else _opaque("mul", operands, dtype)
    for one, other in (forms, reversed(forms)):
        times = as_number(other)
        if isinstance(times, int):
            return fitting(scaled(one, times), dtype)
        if times is not None and not one.terms:
            return number(one.const * times)
    return None


def _divide(operands: Sequence[Element], dtype: torch.dtype, op: str = "floordiv") -> Expr | None:
    if dtype.is_floating_point or not _integers(operands):
        return None
    divisor = as_number(operands[1].expr)
    if not isinstance(divisor, int) or divisor <= 0:
        return None
    value = as_number(operands[0].expr)
    if value is not None:
        return number(value // divisor if op == "floordiv" else value % divisor)
    return _opaque(op, operands, dtype)


def _negative(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    form = operands[0].expr
    return fitting(scaled(form, -1), dtype) if isinstance(form, Lin) and not dtype.is_floating_point else None


def _absolute(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    form, opposite = operands[0].expr, _negative(operands, dtype)
    return where(is_positive(form), form, opposite) if isinstance(form, Lin) and opposite is not None else None


def at_most(left: Element, right: Element) -> Expr | None:
    """``left <= right``."""
    left, right = _whole(left), _whole(right)
    if isinstance(left.expr, Lin) and isinstance(right.expr, Lin) and _integers((left, right)):
        return is_positive(plus(right.expr, left.expr, -1))
    return _opaque("le", (left, right), torch.bool)


def less(left: Element, right: Element) -> Expr | None:
    """``left < right``."""
    left, right = _whole(left), _whole(right)
    if isinstance(left.expr, Lin) and isinstance(right.expr, Lin) and _integers((left, right)):
        return is_positive(plus(plus(right.expr, left.expr, -1), number(-1)))
    return _opaque("lt", (left, right), torch.bool)


def _whole(element: Element) -> Element:
    """A float of Python's that is a whole number, as an integer: beside indices both compare alike."""
    expr = element.expr
    if element.dtype is None and isinstance(expr, Float) and abs(expr.value) < 1 << 24 and expr.value.is_integer():
        return Element(number(int(expr.value)))
    return element


def equal(left: Element, right: Element) -> Expr | None:
    """``left == right``."""
    left, right = _whole(left), _whole(right)
    if isinstance(left.expr, Lin) and isinstance(right.expr, Lin) and _integers((left, right)):
        return is_zero(plus(left.expr, right.expr, -1))
    if is_boolean(left.expr) and is_boolean(right.expr):
        both, neither = all_of((left.expr, right.expr)), all_of((negated(left.expr), negated(right.expr)))
        return any_of((both, neither))
    if left.expr == right.expr and _integers((left, right)):
        return Bool(True)
    in_order = sorted((left, right), key=lambda each: (is_constant(each.expr), str(each.expr)))
    return _opaque("eq", in_order, torch.bool)


def _compare(test: Callable[[Element, Element], Expr | None], swapped: bool = False, no: bool = False) -> Any:
    def rule(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
        left, right = reversed(operands) if swapped else operands
        result = test(left, right)
        return negated(result) if no and result is not None else result

    return rule


def _smallest(operands: Sequence[Element], dtype: torch.dtype, largest: bool = False) -> Expr | None:
    left, right = operands
    if dtype.is_floating_point or dtype == torch.bool:
        return None
    test = at_most(left, right)
    first, second = (right, left) if largest else (left, right)
    return None if test is None else where(test, first.expr, second.expr)


def cast(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    """A conversion of dtype; one of a value that is read stays in the graph."""
    (element,) = operands
    expr, source = element.expr, element.dtype
    if source == dtype:
        return expr
    if dtype == torch.bool and isinstance(expr, Lin):
        return negated(is_zero(expr))
    if dtype == torch.bool and isinstance(expr, (Load, Apply)):
        zero: Expr = Float(0.0, expr.dtype) if expr.dtype.is_floating_point else number(0)
        return negated(Apply("eq", (expr, zero), torch.bool))
    if isinstance(expr, Lin) and not dtype.is_floating_point:
        return fitting(expr, dtype)
    return None


def _and(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return all_of(map(_truth, operands)) if dtype == torch.bool else None


def _or(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return any_of(map(_truth, operands)) if dtype == torch.bool else None


def _not(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return negated(_truth(operands[0])) if dtype == torch.bool else None


def _xor(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    left, right = map(_truth, operands)
    return any_of((all_of((left, negated(right))), all_of((negated(left), right)))) if dtype == torch.bool else None


def _truth(element: Element) -> Expr:
    if is_boolean(element.expr):
        return element.expr
    truth = cast((element,), torch.bool)
    if truth is None:
        raise StopError(f"the truth of {element.expr}")
    return truth


SYMBOLIC: dict[str, Callable[[Sequence[Element], torch.dtype], Expr | None]] = {
    "add": _add,
    "sub": _subtract,
    "mul": _multiply,
    "floordiv": _divide,
    "mod": lambda operands, dtype: _divide(operands, dtype, "mod"),
    "neg": _negative,
    "abs": _absolute,
    "le": _compare(at_most),
    "ge": _compare(at_most, swapped=True),
    "lt": _compare(less),
    "gt": _compare(less, swapped=True),
    "eq": _compare(equal),
    "ne": _compare(equal, no=True),
    "minimum": _smallest,
    "maximum": lambda operands, dtype: _smallest(operands, dtype, largest=True),
    "cast": cast,
    "and": _and,
    "or": _or,
    "not": _not,
    "xor": _xor,
}
LOGIC = frozenset({"and", "or", "not", "xor"})
