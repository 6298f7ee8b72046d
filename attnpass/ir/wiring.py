"""How a call hangs in the graph: which nodes hold its operands, and which views make them BHSD.

An `AttentionCall` says what is computed and knows no graph; a `Wiring` says where it stands and knows no kernel. SDPA's
operands are taken as they are; those of a chain written by hand may lie as (B, S, H, D), be transposed, or have their
heads folded into the batch, and then carry the steps that bring them into SDPA's layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from attnpass.graph.operand import M, N, Operand, Step, mapped_steps


@dataclass(frozen=True, slots=True)
class Addition(Generic[N]):
    """One change of the scaled scores, in the order of the program.

    Attributes:
        operand: a tensor that broadcasts to (B, H, Sq, Sk).
        fill: None: the tensor is added. A number: the tensor is bool, and where it is False the score becomes this.
    """

    operand: Operand[N]
    fill: float | None = None


@dataclass(frozen=True, slots=True)
class Wiring(Generic[N]):
    """The operands of a call.

    Attributes:
        q: (B, H, Sq, D) behind its steps; for SDPA, as the user gave it, 2-D to 4-D.
        k: (B, Hkv, Sk, D).
        v: (B, Hkv, Sk, Dv).
        additions: what is done to the scores between scaling (and softcap) and softmax.
        sinks: (H,), or None.
        out: steps from (B, H, Sq, Dv) to the shape of the replaced node; none for SDPA.
        lse: steps from (B, H, Sq) to the shape of the log-sum-exp, where the program wants that too.
    """

    q: Operand[N]
    k: Operand[N]
    v: Operand[N]
    additions: tuple[Addition[N], ...] = ()
    sinks: Operand[N] | None = None
    out: tuple[Step, ...] = ()
    lse: tuple[Step, ...] = ()

    def map_nodes(self, mapped: Callable[[Any], M]) -> Wiring[M]:
        """The same wiring between other nodes: those of a copy of the graph, or those that hold values."""
        return Wiring(
            self.q.map_nodes(mapped),
            self.k.map_nodes(mapped),
            self.v.map_nodes(mapped),
            tuple(Addition(each.operand.map_nodes(mapped), each.fill) for each in self.additions),
            None if self.sinks is None else self.sinks.map_nodes(mapped),
            mapped_steps(self.out, mapped),
            mapped_steps(self.lse, mapped),
        )

    def nodes(self) -> list[N]:
        """The nodes of all operands."""
        operands: list[Operand[N]] = [self.q, self.k, self.v, *(each.operand for each in self.additions)]
        return [node for each in operands for node in each.nodes()] + (self.sinks.nodes() if self.sinks else [])
