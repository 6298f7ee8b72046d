"""Operators on expressions: what a program's arithmetic on single elements means, with everything known folded away.

Linear arithmetic, comparisons, logic and casts have a meaning here; some of the rest stays as the program wrote it.
What has none raises `StopError`; the tracer then reads the node's value at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from attnpass.index.expr import Apply, Bool, Expr, Float, Lin, Load, Where, as_number, number, plus, scaled
from attnpass.index.interned import in_order, remembered
from attnpass.index.logic import (
    all_of,
    any_of,
    dtype_of,
    is_boolean,
    is_constant,
    is_positive,
    is_zero,
    negated,
    where,
)
from attnpass.index.rounding import brought_or_cast, may_be_cast, over_scores, refuse_rounded
from attnpass.index.scalars import (
    Element,
    StopError,
    as_integer,
    brought,
    common_dtype,
    fitting,
    folded,
    is_float,
)

LEAVES = 16  # a pointwise operation is pushed into so many alternatives


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
        return folded(name, function, operands, dtype)
    symbolic = SYMBOLIC.get(name)
    result = None if symbolic is None else symbolic(operands, dtype)
    if result is not None:
        return result
    raise StopError(f"{name} of {', '.join(str(each.expr)[:80] for each in operands)}"[:200])


def converted(expr: Expr, source: torch.dtype, dtype: torch.dtype) -> Expr:
    """An element of dtype ``source`` as one of ``dtype``."""
    return pointwise("cast", lambda t: t.to(dtype), [Element(expr, source, 1)], dtype)


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


def _add(operands: Sequence[Element], dtype: torch.dtype, times: int = 1) -> Expr | None:
    if dtype == torch.bool:
        return any_of(each.expr for each in operands) if times == 1 else None
    left, right = brought_or_cast(operands, dtype)
    if isinstance(left, Lin) and isinstance(right, Lin):
        return None if is_float(dtype) else fitting(plus(left, right, times), dtype)
    if is_float(dtype):  # x + 0.0 is x but for the sign of -0.0; x + -0.0 is x
        if _is_zero(right, -times) and dtype_of(left) == dtype:
            return left
        if times == 1 and _is_zero(left, -1) and dtype_of(right) == dtype:
            return right
    return Apply("add" if times == 1 else "sub", (left, right), dtype)


def _is_zero(expr: Expr, sign: int) -> bool:
    return isinstance(expr, Float) and expr.value == 0 and math.copysign(1.0, expr.value) == sign


def _subtract(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return _add(operands, dtype, -1)


def _multiply(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    if dtype == torch.bool:
        return all_of(each.expr for each in operands)
    left, right = brought_or_cast(operands, dtype)
    if is_float(dtype):
        return over_scores("mul", tuple(sorted((left, right), key=is_constant)), dtype)
    if not (isinstance(left, Lin) and isinstance(right, Lin)):
        return Apply("mul", (left, right), dtype)
    for one, other in ((left, right), (right, left)):
        times = as_number(other)
        if isinstance(times, int):
            return fitting(scaled(one, times), dtype)
        if times is not None and not one.terms:
            return fitting(number(one.const * times), dtype)
    return None


def _divide(operands: Sequence[Element], dtype: torch.dtype, op: str = "floordiv") -> Expr | None:
    if is_float(dtype) or dtype == torch.bool:
        return None
    left, right = (brought(each, dtype) for each in operands)
    divisor, value = as_number(right), as_number(left)
    if not isinstance(divisor, int) or divisor <= 0:
        return None
    if value is not None:
        return number(value // divisor if op == "floordiv" else value % divisor)
    return Apply(op, (left, right), dtype)


def _sigmoid(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return over_scores("sigmoid", (brought(operands[0], dtype),), dtype)


def _negative(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    form = operands[0].expr
    if is_float(dtype):  # x * -1 is -x in each bit
        return over_scores("mul", (brought(operands[0], dtype), Float(-1.0, dtype)), dtype)
    return fitting(scaled(form, -1), dtype) if isinstance(form, Lin) else None


def _absolute(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    form = operands[0].expr
    if is_float(dtype):
        return over_scores("abs", (brought(operands[0], dtype),), dtype)
    if not isinstance(form, Lin) or not dtype.is_signed:
        return form if isinstance(form, Lin) else None
    opposite = fitting(scaled(form, -1), dtype)
    return where(is_positive(form), form, opposite)


def _sides(left: Element, right: Element) -> tuple[Expr, Expr]:
    """Both sides of a comparison as expressions that compare as PyTorch compares the operands.

    Raises:
        StopError: there are none.
    """
    common = common_dtype((left, right))
    refuse_rounded(left.expr)
    refuse_rounded(right.expr)
    if is_float(common):
        one, other = as_integer(left, common), as_integer(right, common)
        floats = [is_float(dtype_of(each.expr) or each.dtype) for each in (one, other)]
        if not any(floats):
            return one.expr, other.expr
        number_beside = [each.dtype is None and isinstance(each.expr, Float) for each in (one, other)]
        read = [dtype_of(each.expr) not in (None, torch.bool) for each in (one, other)]
        if floats == number_beside and all(read):
            return one.expr, other.expr  # integers that are read, beside 0.5: lower compares them as the program does
    return brought(left, common), brought(right, common)


def _computed(form: Lin) -> Lin:
    """A difference that decides a comparison, or its opposite: it is computed in int64, however the program did it."""
    fitting(scaled(form, -1), torch.int64)
    return fitting(form, torch.int64)


def at_most(left: Element, right: Element, strictly: bool = False) -> Expr | None:
    """``left <= right``, or ``left < right``."""
    one, other = _sides(left, right)
    if isinstance(one, Lin) and isinstance(other, Lin):
        return is_positive(_computed(plus(plus(other, one, -1), number(-int(strictly)))))
    return Apply("lt" if strictly else "le", (one, other), torch.bool)


def equal(left: Element, right: Element) -> Expr | None:
    """``left == right``."""
    if is_boolean(left.expr) and is_boolean(right.expr):
        both, neither = all_of((left.expr, right.expr)), all_of((negated(left.expr), negated(right.expr)))
        return any_of((both, neither))
    one, other = _sides(left, right)
    if isinstance(one, Lin) and isinstance(other, Lin):
        return is_zero(_computed(plus(one, other, -1)))
    if one == other and not is_float(dtype_of(one)):
        return Bool(True)
    return Apply("eq", tuple(sorted(in_order((one, other)), key=is_constant)), torch.bool)


def _compare(test: Callable[[Element, Element], Expr | None], swapped: bool = False, no: bool = False) -> Any:
    def rule(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
        left, right = reversed(operands) if swapped else operands
        result = test(left, right)
        return negated(result) if no and result is not None else result

    return rule


def _smallest(operands: Sequence[Element], dtype: torch.dtype, largest: bool = False) -> Expr | None:
    if is_float(dtype) or dtype == torch.bool:
        return None
    one, other = operands
    test = at_most(one, other)
    left, right = brought(one, dtype), brought(other, dtype)
    if test is None or {dtype_of(left), dtype_of(right)} - {None, dtype}:
        return None
    return where(test, right, left) if largest else where(test, left, right)


def cast(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    """A conversion of dtype; one of a value that is read stays in the graph."""
    (element,) = operands
    expr, source = element.expr, element.dtype
    if source == dtype:
        return expr
    if dtype == torch.bool and isinstance(expr, Lin):
        return negated(is_zero(_computed(expr)))
    if dtype == torch.bool and isinstance(expr, (Load, Apply)):
        refuse_rounded(expr)
        zero: Expr = Float(0.0, expr.dtype) if expr.dtype.is_floating_point else number(0)
        return negated(Apply("eq", (expr, zero), torch.bool))
    if is_float(dtype):
        return over_scores("cast", (expr,), dtype) if may_be_cast(expr, dtype) else None
    return fitting(expr, dtype) if isinstance(expr, Lin) else None


def _and(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return all_of(_truths(operands)) if dtype == torch.bool else None


def _or(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return any_of(_truths(operands)) if dtype == torch.bool else None


def _not(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    return negated(_truth(operands[0])) if dtype == torch.bool else None


def _xor(operands: Sequence[Element], dtype: torch.dtype) -> Expr | None:
    if dtype != torch.bool:
        return None
    left, right = _truths(operands)
    return any_of((all_of((left, negated(right))), all_of((negated(left), right))))


def _truths(operands: Sequence[Element]) -> list[Expr]:
    """The truth of each operand in the dtype of all: 2 ** 31 without dimensions is 0, and false, beside int16."""
    if all(is_boolean(each.expr) for each in operands):
        return [each.expr for each in operands]
    common = common_dtype(operands)
    whole = [e if is_boolean(e.expr) else Element(brought(e, common), common, e.ndim) for e in operands]
    return [_truth(each) for each in whole]


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
    "sigmoid": _sigmoid,
    "le": _compare(at_most),
    "ge": _compare(at_most, swapped=True),
    "lt": _compare(partial(at_most, strictly=True)),
    "gt": _compare(partial(at_most, strictly=True), swapped=True),
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
