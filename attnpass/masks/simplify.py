"""Simplify an expression with the bounds of its indices: 0 <= q < Sq and so on, sizes symbolic or not.

A comparison that every index satisfies is True; one conjunct that follows from another is dropped; a branch of a
``where`` is read under the bounds that its test leaves. Only facts that hold for every size are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attnpass.masks.arithmetic import pointwise
from attnpass.masks.bounds import Bounds
from attnpass.masks.elements import Element
from attnpass.masks.expr import (
    And,
    Apply,
    Bool,
    Expr,
    Float,
    Lin,
    Load,
    NonNeg,
    Not,
    Or,
    Where,
    Zero,
    as_number,
    linear,
    number,
    plus,
    scaled,
)
from attnpass.masks.logic import all_of, any_of, is_positive, is_zero, negated, walk, where
from attnpass.symbolic import Size, known_equal


def simplified(expr: Expr, bounds: Bounds) -> Expr:
    """An equal expression, as simple as it gets."""
    if expr not in bounds.seen:
        bounds.seen[expr] = _RULES[type(expr)](bounds, expr)
    return bounds.seen[expr]


def _same(bounds: Bounds, expr: Expr) -> Expr:
    return expr


def _lin(bounds: Bounds, form: Lin) -> Lin:
    """An axis that has one value is that value."""
    result = form
    for axis, factor in form.terms:
        low, high = bounds.range(axis)
        if high is not None and known_equal(low, high):
            result = plus(plus(result, Lin(((axis, factor),)), -1), number(factor * low))
    return result


def _nonneg(bounds: Bounds, expr: NonNeg) -> Expr:
    form = _lin(bounds, expr.form)
    if bounds.always(form):
        return Bool(True)
    if bounds.never(form):
        return Bool(False)
    return is_positive(form)


def _zero(bounds: Bounds, expr: Zero) -> Expr:
    form = _lin(bounds, expr.form)
    if not form.terms and known_equal(form.const, 0):
        return Bool(True)
    if bounds.never(form) or bounds.never(scaled(form, -1)):
        return Bool(False)
    return is_zero(form)


def _not(bounds: Bounds, expr: Not) -> Expr:
    return negated(simplified(expr.arg, bounds))


def _load(bounds: Bounds, expr: Load) -> Expr:
    return Load(expr.node, tuple(simplified(i, bounds) for i in expr.index), expr.dtype)


def _where(bounds: Bounds, expr: Where) -> Expr:
    test = simplified(expr.test, bounds)
    if isinstance(test, Bool):
        return simplified(expr.yes if test.value else expr.no, bounds)
    yes = simplified(expr.yes, bounds.narrowed(test, True))
    no = simplified(expr.no, bounds.narrowed(test, False))
    return where(test, yes, no)


def _apply(bounds: Bounds, expr: Apply) -> Expr:
    args = [simplified(arg, bounds) for arg in expr.args]
    if expr.op in ("floordiv", "mod") and isinstance(args[0], Lin):
        divided = _divided(bounds, args[0], as_number(args[1]), expr.op)
        if divided is not None:
            return divided
    if expr.op == "eq" and args[0] == args[1] and not _may_be_nan(args[0]):
        return Bool(True)
    if tuple(args) == expr.args:
        return expr
    if expr.op in ("floordiv", "mod") or not all(isinstance(arg, Lin) for arg in args):
        return Apply(expr.op, tuple(args), expr.dtype)
    return pointwise(expr.op, _no_folding, [Element(arg) for arg in args], expr.dtype)


def _may_be_nan(expr: Expr) -> bool:
    return any(isinstance(part, (Load, Apply)) and part.dtype.is_floating_point for part in walk(expr))


def _no_folding(*_: Any) -> Any:
    raise AssertionError("integers are folded symbolically")


def _divided(bounds: Bounds, form: Lin, divisor: Size | None, op: str) -> Expr | None:
    """``(c * A + R) // c`` is A and ``% c`` is R where 0 <= R < c for every index."""
    if not isinstance(divisor, int) or divisor <= 0:
        return None
    whole = {axis: n // divisor for axis, n in form.terms}
    rest = {axis: n % divisor for axis, n in form.terms}
    const, left = (form.const // divisor, form.const % divisor) if isinstance(form.const, int) else (0, form.const)
    remainder = linear(rest, left)
    if not (bounds.always(remainder) and bounds.always(plus(number(divisor - 1), remainder, -1))):
        return None
    return linear(whole, const) if op == "floordiv" else remainder


def _and(bounds: Bounds, expr: And) -> Expr:
    joined = all_of(simplified(arg, bounds) for arg in expr.args)
    if not isinstance(joined, And):
        return joined
    args = set(joined.args)
    forms = [arg for arg in args if isinstance(arg, NonNeg)]
    for one in forms:
        for other in forms:
            if other is not one and other in args and bounds.never(plus(one.form, other.form)):
                return Bool(False)
            if other is not one and one in args and other in args and bounds.always(plus(one.form, other.form, -1)):
                args.discard(one)  # `other` implies it
    for arg in list(args):
        if isinstance(arg, Or) and any(_implies(bounds, other, arg) for other in args - {arg}):
            args.discard(arg)
    return all_of(_in_context(bounds, args, hold=True))


def _implies(bounds: Bounds, known_true: Expr, claim: Expr) -> bool:
    if known_true == claim:
        return True
    if isinstance(claim, Or):
        return any(_implies(bounds, known_true, part) for part in claim.args)
    if not (isinstance(known_true, NonNeg) and isinstance(claim, NonNeg)):
        return False
    return bounds.always(plus(claim.form, known_true.form, -1))


def _or(bounds: Bounds, expr: Or) -> Expr:
    joined = any_of(simplified(arg, bounds) for arg in expr.args)
    if not isinstance(joined, Or):
        return joined
    args = set(joined.args)
    forms = [arg for arg in args if isinstance(arg, NonNeg)]
    for one in forms:
        for other in forms:
            if other is not one and bounds.always(plus(plus(one.form, other.form), number(1))):
                return Bool(True)  # where one fails, the other holds
            if other is not one and one in args and other in args and bounds.always(plus(other.form, one.form, -1)):
                args.discard(one)  # it implies `other`
    for arg in list(args):
        if isinstance(arg, And) and any(_implied_by_part(bounds, arg, other) for other in args - {arg}):
            args.discard(arg)
    return _factored(any_of(_in_context(bounds, args, hold=False)))


def _in_context(bounds: Bounds, args: set[Expr], hold: bool) -> set[Expr]:
    """Each part read where comparisons of one index beside it hold (in a conjunction), or do not (in a disjunction)."""
    singles = [arg for arg in args if isinstance(arg, (NonNeg, Zero)) and len(arg.form.terms) == 1]
    for arg in list(args) if singles else ():
        context = bounds
        for single in singles:
            if single is not arg and single in args:
                context = context.narrowed(single, hold)
        read = simplified(arg, context) if context is not bounds else arg
        if read == Bool(not hold):
            return {read}
        if read == Bool(hold):
            args.discard(arg)  # the others decide
    return args


def _implied_by_part(bounds: Bounds, conjunction: And, claim: Expr) -> bool:
    return any(_implies(bounds, part, claim) for part in conjunction.args)


def _factored(expr: Expr) -> Expr:
    """``(a and x) or (a and y)`` as ``a and (x or y)``; with y = not x it is a."""
    if not isinstance(expr, Or) or not all(isinstance(arg, And) for arg in expr.args):
        return expr
    common = frozenset.intersection(*(arg.args for arg in expr.args if isinstance(arg, And)))
    if not common:
        return expr
    rest = any_of(all_of(arg.args - common) for arg in expr.args if isinstance(arg, And))
    return all_of((*common, rest))


_RULES: dict[type[Expr], Callable[[Bounds, Any], Expr]] = {
    Bool: _same,
    Float: _same,
    Lin: _lin,
    NonNeg: _nonneg,
    Zero: _zero,
    Not: _not,
    Load: _load,
    Where: _where,
    Apply: _apply,
    And: _and,
    Or: _or,
}


def conjuncts(expr: Expr) -> list[Expr]:
    """The parts that all have to hold; none for True."""
    return list(expr.args) if isinstance(expr, And) else [] if expr == Bool(True) else [expr]
