"""Expressions with something else in the place of an axis, or of the nodes that they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from attnpass.masks.expr import And, Apply, Expr, Lin, Load, NonNeg, Not, Or, Where, Zero, plus
from attnpass.masks.logic import all_of, any_of, is_positive, is_zero, negated, where


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
            return Load(node(part.node), tuple(map(go, part.index)), part.dtype)
        if isinstance(part, Apply):
            return Apply(part.op, tuple(map(go, part.args)), part.dtype)
        return part

    return go(expr)
