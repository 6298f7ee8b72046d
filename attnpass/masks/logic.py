"""Truth and choice on expressions: built here, simplified on the way, and walked."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from attnpass.masks.expr import (
    FALSE,
    TRUE,
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
    in_order,
    number,
    plus,
    scaled,
)


def is_constant(expr: Expr) -> bool:
    """A number or a truth value that is known now; a symbolic size is not."""
    return isinstance(expr, (Bool, Float)) or isinstance(as_number(expr), int)


def is_positive(form: Lin) -> Expr:
    """``form >= 0``, decided where it holds for all non-negative indices, or for none."""
    if not form.terms and isinstance(form.const, int):
        return Bool(form.const >= 0)
    return NonNeg(form)


def is_zero(form: Lin) -> Expr:
    """``form == 0``."""
    if not form.terms and isinstance(form.const, int):
        return Bool(form.const == 0)
    leading = form.terms[0][1] if form.terms else 1
    return Zero(scaled(form, -1) if leading < 0 else form)


def negated(arg: Expr) -> Expr:
    """The opposite, pushed inwards as far as it goes."""
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
    return _joined(args, And, absorbing=FALSE, neutral=TRUE)


def any_of(args: Iterable[Expr]) -> Expr:
    """One of them holds."""
    return _joined(args, Or, absorbing=TRUE, neutral=FALSE)


def _joined(args: Iterable[Expr], join: type[And] | type[Or], absorbing: Bool, neutral: Bool) -> Expr:
    flat: set[Expr] = set()
    for arg in args:
        flat.update(arg.args if isinstance(arg, join) else (arg,))
    flat.discard(neutral)
    if absorbing in flat or any(negated(arg) in flat for arg in flat if not isinstance(arg, (And, Or))):
        return absorbing
    if len(flat) <= 1:
        return flat.pop() if flat else neutral
    return join(frozenset(flat))


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


def children(expr: Expr) -> tuple[Expr, ...]:
    """The expressions that an expression is made of."""
    if isinstance(expr, (And, Or)):
        return tuple(in_order(expr.args))
    if isinstance(expr, Not):
        return (expr.arg,)
    if isinstance(expr, Where):
        return (expr.test, expr.yes, expr.no)
    if isinstance(expr, Apply):
        return expr.args
    if isinstance(expr, Load):
        return expr.index
    if isinstance(expr, (NonNeg, Zero)):
        return (expr.form,)
    return ()


def walk(expr: Expr) -> Iterable[Expr]:
    """The expression and everything inside it."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def axes_of(expr: Expr) -> frozenset[str]:
    """The axes that the value may depend on."""
    return frozenset(name for part in walk(expr) if isinstance(part, Lin) for name, _ in part.terms)


def loads_of(expr: Expr) -> list[Load]:
    """The loads inside, each once, in order."""
    return list(dict.fromkeys(part for part in walk(expr) if isinstance(part, Load)))
