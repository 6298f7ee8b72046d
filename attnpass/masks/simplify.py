"""Simplify an expression with the bounds of its indices: 0 <= q < Sq and so on, sizes symbolic or not.

A comparison that every index satisfies is True; one conjunct that follows from another is dropped; a branch of a
``where`` is read under the bounds that its test leaves. Only facts that hold for every size are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from attnpass.masks.arithmetic import Element, pointwise
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
    all_of,
    any_of,
    as_number,
    is_positive,
    is_zero,
    linear,
    negated,
    number,
    plus,
    scaled,
    where,
)
from attnpass.symbolic import Size, known, known_equal

Range: TypeAlias = "tuple[Size, Size | None]"  # inclusive; None where no end is known


@dataclass(slots=True)
class Bounds:
    """What is known of each axis. An axis that is not named starts at 0 and has no known end."""

    ranges: Mapping[str, Range] = field(default_factory=dict)
    seen: dict[Expr, Expr] = field(default_factory=dict)

    @classmethod
    def of(cls, sizes: Mapping[str, Size]) -> Bounds:
        return cls({axis: (0, size - 1) for axis, size in sizes.items()})

    def range(self, axis: str) -> Range:
        return self.ranges.get(axis, (0, None))

    def least(self, form: Lin) -> Size | None:
        """The smallest value that ``form`` can take; None if there is no known one."""
        return self._end(form, 0)

    def most(self, form: Lin) -> Size | None:
        return self._end(form, 1)

    def _end(self, form: Lin, upper: int) -> Size | None:
        total: Size = form.const
        for axis, factor in form.terms:
            bound = self.range(axis)[upper if factor > 0 else 1 - upper]
            if bound is None:
                return None
            total = total + factor * bound
        return total

    def always(self, form: Lin) -> bool:
        """Is ``form >= 0`` for every index?"""
        least = self.least(form)
        return least is not None and known(least >= 0)

    def never(self, form: Lin) -> bool:
        most = self.most(form)
        return most is not None and known(most < 0)

    def narrowed(self, test: Expr, holds: bool) -> Bounds:
        """These bounds where a comparison of one index with a number is known to hold, or not to."""
        test = test if holds else negated(test)
        if isinstance(test, And):
            found = self
            for part in test.args:
                found = found.narrowed(part, True)
            return found
        if isinstance(test, Zero) and len(test.form.terms) == 1 and abs(test.form.terms[0][1]) == 1:
            ((axis, factor),) = test.form.terms
            value = -factor * test.form.const
            return Bounds({**self.ranges, axis: (value, value)})
        if not isinstance(test, NonNeg) or len(test.form.terms) != 1 or abs(test.form.terms[0][1]) != 1:
            return self
        ((axis, factor),), const = test.form.terms, test.form.const
        low, high = self.range(axis)
        if factor > 0 and known(-const >= low):
            low = -const
        elif factor < 0 and (high is None or known(const <= high)):
            high = const
        return Bounds({**self.ranges, axis: (low, high)})

    def simplified(self, expr: Expr) -> Expr:
        """An equal expression, as simple as it gets."""
        if expr not in self.seen:
            self.seen[expr] = _RULES[type(expr)](self, expr)
        return self.seen[expr]


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
    one = number(-1)
    if bounds.never(form) or bounds.never(scaled(form, -1)):
        return Bool(False)
    if bounds.always(plus(form, one)) or bounds.always(plus(scaled(form, -1), one)):
        return Bool(False)
    return is_zero(form)


def _not(bounds: Bounds, expr: Not) -> Expr:
    return negated(bounds.simplified(expr.arg))


def _load(bounds: Bounds, expr: Load) -> Expr:
    return Load(expr.node, tuple(bounds.simplified(i) for i in expr.index), expr.dtype)


def _where(bounds: Bounds, expr: Where) -> Expr:
    test = bounds.simplified(expr.test)
    if isinstance(test, Bool):
        return bounds.simplified(expr.yes if test.value else expr.no)
    yes = bounds.narrowed(test, True).simplified(expr.yes)
    no = bounds.narrowed(test, False).simplified(expr.no)
    return where(test, yes, no)


def _apply(bounds: Bounds, expr: Apply) -> Expr:
    args = [bounds.simplified(arg) for arg in expr.args]
    if expr.op in ("floordiv", "mod") and isinstance(args[0], Lin):
        divided = _divided(bounds, args[0], as_number(args[1]), expr.op)
        if divided is not None:
            return divided
    if expr.op == "eq" and args[0] == args[1] and not _may_be_nan(args[0]):
        return Bool(True)
    if tuple(args) == expr.args:
        return expr
    integers = all(isinstance(arg, Lin) for arg in args)
    if integers and expr.op in ("floordiv", "mod"):
        return Apply(expr.op, tuple(args), expr.dtype)
    if not integers:
        return Apply(expr.op, tuple(args), expr.dtype)
    return pointwise(expr.op, _no_folding, [Element(arg) for arg in args], expr.dtype)


def _may_be_nan(expr: Expr) -> bool:
    return isinstance(expr, (Load, Apply)) and expr.dtype.is_floating_point


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
    joined = all_of(bounds.simplified(arg) for arg in expr.args)
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
    joined = any_of(bounds.simplified(arg) for arg in expr.args)
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
        read = context.simplified(arg) if context is not bounds else arg
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


def substituted(expr: Expr, axis: str, value: Lin) -> Expr:
    """The expression with an axis replaced by a linear form of others."""

    def lin(form: Lin) -> Lin:
        factor = form.factor(axis)
        return plus(plus(form, Lin(((axis, factor),)), -1), value, factor) if factor else form

    return rebuilt(expr, lin)


def rebuilt(expr: Expr, lin: Callable[[Lin], Lin]) -> Expr:
    """The expression with every linear form replaced."""

    def go(part: Expr) -> Expr:
        if isinstance(part, Lin):
            return lin(part)
        if isinstance(part, NonNeg):
            return is_positive(lin(part.form))
        if isinstance(part, Zero):
            return is_zero(lin(part.form))
        if isinstance(part, Not):
            return negated(go(part.arg))
        if isinstance(part, And):
            return all_of(map(go, part.args))
        if isinstance(part, Or):
            return any_of(map(go, part.args))
        if isinstance(part, Where):
            return where(go(part.test), go(part.yes), go(part.no))
        if isinstance(part, Load):
            return Load(part.node, tuple(map(go, part.index)), part.dtype)
        if isinstance(part, Apply):
            return Apply(part.op, tuple(map(go, part.args)), part.dtype)
        return part

    return go(expr)


def conjuncts(expr: Expr) -> list[Expr]:
    """The parts that all have to hold; none for True."""
    return list(expr.args) if isinstance(expr, And) else [] if expr == Bool(True) else [expr]
