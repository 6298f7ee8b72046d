"""What the masks of one call mean, with the nodes that hold their data: made by `attnpass.masks.prove`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch.fx import Node

from attnpass.masks.expr import (
    TRUE,
    And,
    Apply,
    Expr,
    K,
    Load,
    Not,
    Or,
    Q,
    Where,
    all_of,
    any_of,
    is_positive,
    linear,
    negated,
    plus,
    where,
)
from attnpass.masks.spec import MaskSpec, Term


@dataclass(frozen=True, slots=True)
class Meaning:
    """The masks of a call as functions of (b, h, q, k).

    Attributes:
        spec: what they mean, in the words of kernels and reports.
        allowed: does the key take part?
        bias: what is added to the score, or None.
        stop: the node at which understanding ended and why, or "".
    """

    spec: MaskSpec
    allowed: Expr = TRUE
    bias: Expr | None = None
    stop: str = ""

    @classmethod
    def of_rules(cls, spec: MaskSpec) -> Meaning:
        """The meaning of causal and window terms, which need no data."""
        distance = linear({K: 1, Q: -1})  # of the key from the query
        tests: list[Expr] = []
        for term in spec.terms:
            right = 0 if term.term is Term.CAUSAL else term.right
            if right is not None:
                tests.append(is_positive(plus(linear({}, term.offset + right), distance, -1)))
            if term.term is Term.WINDOW and term.left is not None:
                tests.append(is_positive(plus(distance, linear({}, term.left - term.offset))))
        return cls(spec, all_of(tests))

    def map_nodes(self, mapped: Callable[[Node], Node]) -> Meaning:
        """The same meaning, read from other nodes: those of a copy of the graph."""
        bias = None if self.bias is None else with_nodes(self.bias, mapped)
        return replace(self, allowed=with_nodes(self.allowed, mapped), bias=bias)


def with_nodes(expr: Expr, mapped: Callable[[Node], Node]) -> Expr:
    """The expression with each load's node replaced."""

    def go(part: Expr) -> Expr:
        if isinstance(part, Load):
            return Load(mapped(part.node), tuple(map(go, part.index)), part.dtype)
        if isinstance(part, Apply):
            return Apply(part.op, tuple(map(go, part.args)), part.dtype)
        if isinstance(part, And):
            return all_of(map(go, part.args))
        if isinstance(part, Or):
            return any_of(map(go, part.args))
        if isinstance(part, Not):
            return negated(go(part.arg))
        if isinstance(part, Where):
            return where(go(part.test), go(part.yes), go(part.no))
        return part

    return go(expr)
