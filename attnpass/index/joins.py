"""Simplify conjunctions and disjunctions: what follows from a part beside it is dropped, what contradicts it decides.

Parts are compared in pairs where they are few. Of many, only neighbours on the same line are, which is enough to find
the tightest bound: anything quadratic would take minutes on a program that was unrolled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Any

from attnpass.index.bounds import Bounds
from attnpass.index.expr import And, Bool, Expr, Join, NonNeg, Or, Rule, number, plus, scaled
from attnpass.index.interned import in_order
from attnpass.index.logic import all_of, any_of, flattened, negated

FEW = 16  # parts that are looked at in pairs
Simplified = Callable[[Expr, Bounds], Expr]


def conjunction(bounds: Bounds, expr: And, simplified: Simplified) -> Expr:
    """All parts, without those that others imply."""
    joined = _joined(expr, And, lambda part: simplified(part, bounds))
    if not isinstance(joined, And):
        return joined
    args = set(joined.args)
    for one, other in _pairs(args):
        if other not in args or one not in args:
            continue
        if bounds.never(plus(one.form, other.form)):
            return Bool(False)
        if bounds.always(plus(one.form, other.form, -1)):
            args.discard(one)  # `other` implies it
    for arg in in_order(args):
        if isinstance(arg, Or) and _follows(args, arg, lambda other, part: _implies(bounds, other, part)):
            args.discard(arg)
    return all_of(_in_context(bounds, args, True, simplified))


def _joined(expr: Join, join: type[And] | type[Or], simple: Callable[[Expr], Expr]) -> Expr:
    """The parts, each simplified, on one level."""
    unit, absorbing = Bool(join is And), Bool(join is Or)
    parts: dict[Expr, None] = {}
    for arg in flattened(expr, join):
        parts.update(dict.fromkeys(flattened(simple(arg), join)))
    parts.pop(unit, None)
    if absorbing in parts or any(negated(part) in parts for part in parts if not isinstance(part, Join)):
        return absorbing
    if len(parts) <= 1:
        return next(iter(parts), unit)
    return join(frozenset(parts))


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


def _follows(args: Collection[Expr], arg: Join, implies: Callable[[Expr, Expr], bool]) -> bool:
    """Does one of the other parts decide this one? Of many parts, only one that is also inside of it."""
    if len(args) > FEW or len(arg.args) > FEW:
        return any(part in args for part in arg.args)
    return any(implies(other, part) for other in args if other is not arg for part in arg.args)


def _implies(bounds: Bounds, known_true: Expr, claim: Expr) -> bool:
    if known_true == claim:
        return True
    if not (isinstance(known_true, NonNeg) and isinstance(claim, NonNeg)):
        return False
    return bounds.always(plus(claim.form, known_true.form, -1))


def disjunction(bounds: Bounds, expr: Or, simplified: Simplified) -> Expr:
    """All alternatives, without those that imply others."""
    joined = _joined(expr, Or, lambda part: simplified(part, bounds))
    if not isinstance(joined, Or):
        return joined
    args = set(joined.args)
    for one, other in _pairs(args):
        if bounds.always(plus(plus(one.form, other.form), number(1))):
            return Bool(True)  # where one fails, the other holds
        if one in args and other in args and bounds.always(plus(other.form, one.form, -1)):
            args.discard(one)  # it implies `other`
    for arg in in_order(args):
        if isinstance(arg, And) and _follows(args, arg, lambda other, part: _implies(bounds, part, other)):
            args.discard(arg)
    return _factored(any_of(_in_context(bounds, args, False, simplified)))


def _in_context(bounds: Bounds, args: set[Expr], hold: bool, simplified: Simplified) -> set[Expr]:
    """Each part read where comparisons of one index beside it hold (in a conjunction), or do not (in a disjunction)."""
    singles = [arg for arg in in_order(args) if isinstance(arg, Rule) and len(arg.form.terms) == 1][:FEW]
    for arg in in_order(args) if singles else ():
        beside = [single for single in singles if single is not arg and single in args]
        context = bounds.narrowed_by(beside if hold else map(negated, beside)) if beside else bounds
        read = simplified(arg, context) if context is not bounds else arg
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
