"""Simplify an expression with the bounds of its indices: 0 <= q < Sq and so on, sizes symbolic or not.

A comparison that every index satisfies is True; a branch of a ``where`` is read under the bounds that its test leaves.
In a conjunction, what follows from a part beside it is dropped, and what contradicts it decides; a disjunction is the
same, said of the opposites. Only facts that hold for every size are used.

Parts are compared in pairs where they are few. Of many, only neighbours on the same line are, which is enough to find
the tightest bound: anything quadratic would take minutes on a program that was unrolled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
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
    Join,
    K,
    Lin,
    Load,
    NonNeg,
    Not,
    Or,
    Q,
    Rule,
    Where,
    Zero,
    as_number,
    linear,
    number,
    plus,
    scaled,
)
from attnpass.index.interned import bottom_up, in_order
from attnpass.index.logic import (
    all_of,
    any_of,
    as_one,
    flattened,
    is_positive,
    is_zero,
    negated,
    walk,
    where,
    written_out,
)
from attnpass.index.scalars import Element, StopError, is_float, within

# Inductor writes a shared part out wherever it is used: 1,900 parts take it 10 s (CPU), 7,500 take 29 s.
MOST_WRITTEN_OUT = 2000
FEW = 16  # parts that are looked at in pairs


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


def _load(bounds: Bounds, expr: Load) -> Expr:
    return Load(expr.node, tuple(simpler(i, bounds) for i in expr.index), expr.dtype)


def _where(bounds: Bounds, expr: Where) -> Expr:
    test = simpler(expr.test, bounds)
    if isinstance(test, Bool):
        return simpler(expr.yes if test.value else expr.no, bounds)
    yes = simpler(expr.yes, bounds.narrowed([test]))
    no = simpler(expr.no, bounds.narrowed([negated(test)]))
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


def _join(bounds: Bounds, expr: And | Or) -> Expr:
    """A conjunction without the parts that others imply; a disjunction without those that imply others."""
    join, hold = type(expr), isinstance(expr, And)
    simple = [simpler(arg, bounds) for arg in flattened(expr, join)]
    joined = as_one({part for arg in simple for part in flattened(arg, join)}, join)
    if not isinstance(joined, join):
        return joined

    def decides(one: Expr, other: Expr) -> bool:
        """Is ``other`` superfluous beside ``one``?"""
        return _implies(bounds, one, other) if hold else _implies(bounds, other, one)

    args = set(joined.args)
    for one, other in _pairs(args):
        total = plus(one.form, other.form)
        if bounds.never(total) if hold else bounds.always(plus(total, number(1))):
            return Bool(not hold)  # they cannot both hold, or cannot both fail
        if one in args and other in args and decides(other, one):
            args.discard(one)
    for arg in in_order(args):
        if isinstance(arg, Join) and _is_decided(args, arg, decides):
            args.discard(arg)
    args = _in_context(bounds, args, hold)
    return all_of(args) if hold else _factored(any_of(args))


def _implies(bounds: Bounds, known_true: Expr, claim: Expr) -> bool:
    if known_true == claim:
        return True
    if not (isinstance(known_true, NonNeg) and isinstance(claim, NonNeg)):
        return False
    return bounds.always(plus(claim.form, known_true.form, -1))


def _pairs(args: Collection[Expr]) -> Iterator[tuple[NonNeg, NonNeg]]:
    """Comparisons of indices beside one another: all pairs of a few; of many, neighbours on the same line."""
    forms = [arg for arg in in_order(args) if isinstance(arg, NonNeg)]
    if len(forms) <= FEW:
        yield from ((one, other) for one in forms for other in forms if one is not other)
        return
    lines: dict[Any, list[NonNeg]] = defaultdict(list)
    for each in forms:
        if isinstance(each.form.const, int):
            lines[max(each.form.terms, scaled(each.form, -1).terms)].append(each)
    for line in lines.values():
        for sign in (1, -1):
            line.sort(key=lambda each: (each.form.terms, sign * int(each.form.const)))
            for one, other in pairwise(line):
                yield from ((one, other), (other, one))


def _is_decided(args: Collection[Expr], arg: Join, decides: Callable[[Expr, Expr], bool]) -> bool:
    """Does one of the other parts decide one of ``arg``'s? Of many parts, only one that is also inside of it."""
    if len(args) > FEW or len(arg.args) > FEW:
        return any(part in args for part in arg.args)
    return any(decides(other, part) for other in args if other is not arg for part in arg.args)


def _in_context(bounds: Bounds, args: set[Expr], hold: bool) -> set[Expr]:
    """Each part read where comparisons of one index beside it hold (in a conjunction), or do not (in a disjunction)."""
    singles = [arg for arg in in_order(args) if isinstance(arg, Rule) and len(arg.form.terms) == 1][:FEW]
    for arg in in_order(args) if singles else ():
        beside = [single for single in singles if single is not arg and single in args]
        context = bounds.narrowed(beside if hold else map(negated, beside)) if beside else bounds
        read = simpler(arg, context) if context is not bounds else arg
        if read == Bool(not hold):
            return {read}
        if read == Bool(hold):
            args.discard(arg)  # the others decide
    return args


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
    Bool: lambda bounds, expr: expr,
    Float: lambda bounds, expr: expr,
    Lin: _lin,
    NonNeg: _nonneg,
    Zero: _zero,
    Not: lambda bounds, expr: negated(simpler(expr.arg, bounds)),
    Load: _load,
    Where: _where,
    Apply: _apply,
    And: _join,
    Or: _join,
}


def conjuncts(expr: Expr) -> list[Expr]:
    """The parts that all have to hold; none for True."""
    return list(expr.args) if isinstance(expr, And) else [] if expr == Bool(True) else [expr]


def side_of(part: Expr) -> tuple[int, Size] | None:
    """A bound on one side of the diagonal: ``(1, left)`` for ``q - left <= k``, ``(-1, right)`` for ``k <= q + right``.

    None for anything else.
    """
    if not isinstance(part, NonNeg) or dict(part.form.terms) not in ({K: 1, Q: -1}, {K: -1, Q: 1}):
        return None
    return part.form.factor(K), part.form.const
