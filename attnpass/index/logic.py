"""Truth and choice on expressions: built here, simplified on the way, walked, and built again from other parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.fx import Node

from attnpass.index.expr import (
    And,
    Apply,
    Bool,
    Expr,
    Float,
    Join,
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
from attnpass.index.interned import bottom_up, in_order, remembered

FLAT = 64  # larger conjunctions are joined as they are: taken apart each time, n of them in a row would take n * n


def is_constant(expr: Expr) -> bool:
    """A number or a truth value that is known now; a symbolic size is not."""
    return isinstance(expr, (Bool, Float)) or isinstance(as_number(expr), int)


def is_positive(form: Lin) -> Expr:
    """``form >= 0``; ``2 * q - 2 * k + 1 >= 0`` is ``q - k >= 0``."""
    if isinstance(form.const, int):
        if not form.terms:
            return Bool(form.const >= 0)
        common = math.gcd(*(n for _, n in form.terms))
        form = linear({axis: n // common for axis, n in form.terms}, form.const // common)
    return NonNeg(form)


def is_zero(form: Lin) -> Expr:
    """``form == 0``."""
    if not form.terms and isinstance(form.const, int):
        return Bool(form.const == 0)
    leading = form.terms[0][1] if form.terms else 1
    return Zero(scaled(form, -1) if leading < 0 else form)


def negated(arg: Expr) -> Expr:
    """The opposite, pushed inwards as far as it goes."""
    return remembered(arg, "negated", _negated, lambda part: part.parts() if isinstance(part, (And, Or)) else ())


def _negated(arg: Expr) -> Expr:
    if isinstance(arg, Bool):
        return Bool(not arg.value)
    if isinstance(arg, Not):
        return arg.arg
    if isinstance(arg, NonNeg):  # not (form >= 0) is -form - 1 >= 0
        return is_positive(plus(scaled(arg.form, -1), number(-1)))
    if isinstance(arg, And):
        return any_of(map(negated, arg.args))
    if isinstance(arg, Or):
        return all_of(map(negated, arg.args))
    return Not(arg)


def all_of(args: Iterable[Expr]) -> Expr:
    """All of them hold."""
    return _joined(args, And)


def any_of(args: Iterable[Expr]) -> Expr:
    """One of them holds."""
    return _joined(args, Or)


def _joined(args: Iterable[Expr], join: type[And] | type[Or]) -> Expr:
    flat: set[Expr] = set()
    for arg in args:
        flat.update(arg.args if isinstance(arg, join) and len(arg.args) <= FLAT else (arg,))
    return as_one(flat, join)


def as_one(parts: set[Expr], join: type[And] | type[Or]) -> Expr:
    """Parts joined on one level; one of them decides where it leaves no choice."""
    neutral, absorbing = Bool(join is And), Bool(join is Or)
    parts.discard(neutral)
    if absorbing in parts or any(negated(part) in parts for part in parts if not isinstance(part, Join)):
        return absorbing
    if len(parts) <= 1:
        return parts.pop() if parts else neutral
    return join(frozenset(parts))


def flattened(expr: Expr, join: type[And] | type[Or]) -> list[Expr]:
    """What a conjunction or disjunction joins, also through those of its kind inside it, in order."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if not isinstance(part, join):
            found[part] = None
        elif part not in seen:
            seen.add(part)
            stack.extend(reversed(in_order(part.args)))
    return list(found)


def where(test: Expr, yes: Expr, no: Expr) -> Expr:
    """``yes`` where ``test`` holds, else ``no``. Of truth values, it is plain logic."""
    if isinstance(test, Bool):
        return yes if test.value else no
    if yes == no:
        return yes
    if is_boolean(yes):
        return any_of((all_of((test, yes)), all_of((negated(test), no))))
    return Where(test, yes, no)


def is_boolean(expr: Expr) -> bool:
    """Is it a truth value?"""
    if isinstance(expr, (Load, Apply)):
        return expr.dtype == torch.bool
    return isinstance(expr, (Bool, NonNeg, Zero, Not, And, Or))


def dtype_of(expr: Expr) -> torch.dtype | None:
    """The dtype that an expression is bound to; None for indices and numbers, which are integers of any dtype."""
    return remembered(expr, "dtype", _dtype_of, lambda part: (part.yes, part.no) if isinstance(part, Where) else ())


def _dtype_of(expr: Expr) -> torch.dtype | None:
    if isinstance(expr, Where):
        return dtype_of(expr.yes) or dtype_of(expr.no)
    if isinstance(expr, (Float, Load, Apply)):
        return expr.dtype
    return None if isinstance(expr, Lin) else torch.bool


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that an expression is made of."""
    parts = expr.parts()
    return tuple(in_order(parts) if isinstance(parts, frozenset) else parts)


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and everything inside it, each once."""
    seen: set[Expr] = set()
    stack = [expr]
    while stack:
        part = stack.pop()
        if part not in seen:
            seen.add(part)
            yield part
            stack.extend(reversed(children(part)))


def written_out(expr: Expr) -> int:
    """How many parts an expression has as a compiler sees it that writes a shared one wherever it is used."""
    return remembered(expr, "written out", lambda part: min(1 + sum(map(written_out, part.parts())), 1 << 60))


def axes_of(expr: Expr) -> frozenset[str]:
    """The axes that the value may depend on."""
    return remembered(expr, "axes", _axes_of)


def _axes_of(expr: Expr) -> frozenset[str]:
    if isinstance(expr, Lin):
        return frozenset(name for name, _ in expr.terms)
    return frozenset[str]().union(*map(axes_of, expr.parts()))


def loads_of(expr: Expr) -> list[Load]:
    """The loads inside, each once, in order."""
    if "loads" not in expr.memo:
        expr.memo["loads"] = tuple(part for part in walk(expr) if isinstance(part, Load))
    return list(expr.memo["loads"])


def substituted(expr: Expr, axis: str, value: Lin) -> Expr:
    """The expression with an axis replaced by a linear form of others."""

    def lin(form: Lin) -> Lin:
        factor = form.factor(axis)
        return plus(plus(form, Lin(((axis, factor),)), -1), value, factor) if factor else form

    return _rebuilt(expr, lin, lambda node: node)


def with_nodes(expr: Expr, mapped: Callable[[Any], Node]) -> Expr:
    """The expression with each load's node replaced."""
    return _rebuilt(expr, lambda form: form, mapped)


def _rebuilt(expr: Expr, lin: Callable[[Lin], Lin], node: Callable[[Any], Any]) -> Expr:
    """The expression with every linear form and every node replaced."""
    done: dict[Expr, Expr] = {}

    def rebuilt(part: Expr) -> Expr:
        if isinstance(part, Lin):
            return lin(part)
        if isinstance(part, (NonNeg, Zero)):
            form = lin(part.form)
            return is_positive(form) if isinstance(part, NonNeg) else is_zero(form)
        parts = [done[each] for each in part.parts()]
        if isinstance(part, Not):
            return negated(parts[0])
        if isinstance(part, And):
            return all_of(parts)
        if isinstance(part, Or):
            return any_of(parts)
        if isinstance(part, Where):
            return where(*parts)
        if isinstance(part, Load):
            return Load(node(part.node), tuple(parts), part.dtype)
        return Apply(part.op, tuple(parts), part.dtype) if isinstance(part, Apply) else part

    for part in bottom_up(expr, done.__contains__):
        done[part] = rebuilt(part)
    return done[expr]
