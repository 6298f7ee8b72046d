"""Operators on expressions: what a program's arithmetic on single elements means, with everything known folded away.

Folding a number uses PyTorch itself on one element of the program's dtype, so that rounding, overflow and ``-0.0`` come
out as they would. What has no meaning here raises `StopError`; the tracer then reads the node's value at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attnpass.masks.expr import (
    LARGEST,
    Apply,
    Bool,
    Expr,
    Float,
    Lin,
    Load,
    Where,
    all_of,
    any_of,
    as_number,
    is_boolean,
    is_constant,
    is_positive,
    is_zero,
    negated,
    number,
    plus,
    scaled,
    where,
)
from attnpass.symbolic import Size

LEAVES = 16  # a pointwise operation is pushed into so many alternatives
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
__all__ = ["Element", "StopError", "constant", "pointwise"]
