"""Simplify an expression with the bounds of its indices: 0 <= q < Sq and so on, sizes symbolic or not.

A comparison that every index satisfies is True; one conjunct that follows from another is dropped; a branch of a
``where`` is read under the bounds that its test leaves. Only facts that hold for every size are used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from attnpass.graph.symbolic import Size, known_equal
from attnpass.index.arithmetic import pointwise
from attnpass.index.bounds import CREDIT_OF_A_PART, Bounds
from attnpass.index.evaluate import COMPARISONS, FUNCTIONS
from attnpass.index.expr import (
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
from attnpass.index.interned import bottom_up
from attnpass.index.joins import conjunction, disjunction
from attnpass.index.logic import flattened, is_positive, is_zero, negated, walk, where, written_out
from attnpass.index.promotion import is_float
from attnpass.index.scalars import Element, StopError, within

# Inductor writes a shared part out wherever it is used: 1,900 parts take it 10 s (CPU), 7,500 take 29 s.
MOST_WRITTEN_OUT = 2000


def simplified(expr: Expr, bounds: Bounds) -> Expr:
    """An equal expression, as simple as it gets.

    Raises:
        StopError: it is too large for a compiler.
    """
    result = simpler(expr, bounds)
    parts = written_out(result)
    if parts > MOST_WRITTEN_OUT:
        raise StopError(f"a mask too large to be followed: {parts if parts < 1 << 40 else 'over 2 ** 40'} parts")
    return result


def simpler(expr: Expr, bounds: Bounds) -> Expr:
    """An equal expression of any size; for one that is large, as simple as it gets in linear time."""

    def inside(part: Expr) -> list[Expr] | Collection[Expr]:
        if bounds.untouched(part):
            return ()
        return flattened(part, type(part)) if isinstance(part, (And, Or)) else part.parts()

    for part in bottom_up(expr, bounds.seen.__contains__, inside):
        bounds.work.spent += 1
        if bounds.around is None:
            bounds.work.left += CREDIT_OF_A_PART
        else:
            bounds.work.left -= 1
            if bounds.untouched(part):
                bounds.seen[part] = simpler(part, bounds.around)
                continue
        bounds.seen[part] = _RULES[type(part)](bounds, part)
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
    return negated(simpler(expr.arg, bounds))


def _load(bounds: Bounds, expr: Load) -> Expr:
    return Load(expr.node, tuple(simpler(i, bounds) for i in expr.index), expr.dtype)


def _where(bounds: Bounds, expr: Where) -> Expr:
    test = simpler(expr.test, bounds)
    if isinstance(test, Bool):
        return simpler(expr.yes if test.value else expr.no, bounds)
    yes = simpler(expr.yes, bounds.narrowed(test, True))
    no = simpler(expr.no, bounds.narrowed(test, False))
    return where(test, yes, no)


def _apply(bounds: Bounds, expr: Apply) -> Expr:
    args = [simpler(arg, bounds) for arg in expr.args]
    if expr.op in ("floordiv", "mod") and isinstance(args[0], Lin):
        divided = _divided(bounds, args[0], as_number(args[1]), expr.op)
        if divided is not None:
            return divided
    if expr.op == "eq" and args[0] == args[1] and not _may_be_nan(args[0]):
        return Bool(True)
    changed = Apply(expr.op, tuple(args), expr.dtype)
    if changed == expr or expr.op in ("floordiv", "mod") or not all(isinstance(arg, Lin) for arg in args):
        return changed
    dtype = torch.int64 if expr.op in COMPARISONS else expr.dtype
    try:
        with within(lambda: bounds):
            return pointwise(expr.op, FUNCTIONS[expr.op], [Element(arg, dtype, 1) for arg in args], expr.dtype)
    except StopError:
        return changed


def _may_be_nan(expr: Expr) -> bool:
    return any(isinstance(part, (Load, Apply)) and is_float(part.dtype) for part in walk(expr))


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
    return conjunction(bounds, expr, simpler)


def _or(bounds: Bounds, expr: Or) -> Expr:
    return disjunction(bounds, expr, simpler)


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
