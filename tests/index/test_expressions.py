"""Expressions are shared, and walked without recursion."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from attnpass.index.bounds import Bounds
from attnpass.index.evaluate import Values, evaluate
from attnpass.index.expr import (
    Apply,
    Expr,
    Float,
    K,
    Lin,
    Load,
    NonNeg,
    Not,
    Q,
    Where,
    axis,
    linear,
    number,
    plus,
)
from attnpass.index.interned import LONGEST
from attnpass.index.logic import (
    all_of,
    any_of,
    axes_of,
    is_positive,
    loads_of,
    negated,
    substituted,
    walk,
    where,
)
from attnpass.index.simplify import simpler
from attnpass.understand.prove import taken_apart
from tests.index.test_masks_size import CPU, NODE, S


def deep_conditions(n: int) -> Expr:
    mask: Expr = NonNeg(linear({Q: 1, K: -1}))
    for i in range(n):
        test = Apply("lt", (Load(NODE, (axis(K), number(i)), torch.float32), Float(0.0, torch.float32)), torch.bool)
        mask = (all_of, any_of)[i % 2]((mask, test))
    return mask


def deep_choices(n: int) -> Expr:
    value: Expr = Float(0.0, torch.float32)
    for i in range(n):
        value = where(Load(NODE, (axis(K), number(i)), torch.bool), Float(float(i + 1), torch.float32), value)
    return value


def deep_sums(n: int) -> Expr:
    value: Expr = Load(NODE, (axis(Q), axis(K)), torch.float32)
    for i in range(n):
        value = Apply("add", (value, Load(NODE, (axis(K), number(i)), torch.float32)), torch.float32)
    return value


@pytest.mark.parametrize("make", (deep_conditions, deep_choices, deep_sums))
def test_no_depth_is_too_deep(make: Callable[[int], Expr]) -> None:
    n = 3 * sys.getrecursionlimit()
    expr = make(n)
    assert len(list(walk(expr))) > n
    assert axes_of(expr) and len(loads_of(expr)) >= n and len(str(expr)) <= LONGEST + 4
    assert simpler(expr, Bounds.of({Q: S, K: S})) is expr
    moved = substituted(expr, K, linear({Q: 1}))
    assert substituted(moved, Q, linear({K: 1})) is substituted(expr, Q, linear({K: 1}))
    taken_apart(expr)
    if make is deep_conditions:
        assert negated(negated(expr)) is expr
    places = {Q: torch.arange(2)[:, None], K: torch.arange(2)[None]}
    tensors = {NODE: torch.zeros(2, n, dtype=loads_of(expr)[0].dtype)}
    evaluate(expr, Values(places, tensors, {}, device=CPU))
    del expr, moved  # a chain that is let go frees its parts one by one


def test_equal_expressions_are_one_object_and_unlike_ones_are_not() -> None:
    assert is_positive(plus(axis(Q), axis(K), -1)) is NonNeg(Lin(((K, -1), (Q, 1))))
    assert Float(0.0, torch.float32) is not Float(-0.0, torch.float32)
    assert Float(1.0, torch.float32) is not Float(1.0, torch.float16)
    assert Load(NODE, (), torch.float32) is Load(NODE, (), torch.float32)
    assert Not(Load(NODE, (), torch.bool)) is negated(Load(NODE, (), torch.bool))
    assert number(True) is number(1) and isinstance(number(True).const, int)


def test_the_tables_hold_nothing_alive() -> None:
    import gc

    gc.collect()
    before = len(Where.table), len(Load.table)
    expr = deep_choices(50)
    negated(all_of([NonNeg(linear({Q: 1})), Load(NODE, (), torch.bool)]))
    assert len(Where.table) == before[0] + 50
    del expr
    gc.collect()
    assert (len(Where.table), len(Load.table)) == before
