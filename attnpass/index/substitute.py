"""Expressions with something else in the place of an axis, or of the nodes that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from attnpass.index.expr import And, Apply, Expr, Lin, Load, NonNeg, Not, Or, Where, Zero, plus
from attnpass.index.interned import bottom_up
from attnpass.index.logic import all_of, any_of, is_positive, is_zero, negated, where


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
