"""What the masks of one call mean, with the nodes that hold their data: made by `attnpass.understand.prove`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from attnpass.index.expr import TRUE, Expr, K, Q, linear, plus
from attnpass.index.logic import all_of, is_positive, with_nodes
from attnpass.ir.mask import MaskSpec, Term


@dataclass(frozen=True, slots=True)
class Meaning:
    """The masks of a call as functions of (b, h, q, k).

    Attributes:
        spec: what they mean, in the words of kernels and reports.
        allowed: does the key take part?
        bias: what is added to the score, or None.
    """

    spec: MaskSpec
    allowed: Expr = TRUE
    bias: Expr | None = None

    @classmethod
    def unknown(cls, spec: MaskSpec, why: str) -> Meaning:
        """A mask that is no more than the tensor that ``spec`` says; ``why`` names the node that stopped the proof."""
        return cls(replace(spec, stop=why))

    @property
    def stop(self) -> str:
        """The node at which understanding ended and why, or ""."""
        return self.spec.stop

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

    def map_nodes(self, mapped: Callable[[Any], Node], added: Callable[[Any], Node] | None = None) -> Meaning:
        """The same meaning, read from other nodes: those of a copy of the graph; for the bias those of ``added``."""
        bias = None if self.bias is None else with_nodes(self.bias, added or mapped)
        return replace(self, allowed=with_nodes(self.allowed, mapped), bias=bias)
