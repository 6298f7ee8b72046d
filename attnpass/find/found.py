"""What `find` finds: calls and where they live, and what almost was one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import Node

from attnpass.find.multihead import Opened
from attnpass.graph.operand import Operand, spec_of
from attnpass.graph.reading import Reading
from attnpass.graph.value import Value
from attnpass.graph.values import Source
from attnpass.ir.call import AttentionCall
from attnpass.ir.meaning import Meaning
from attnpass.ir.wiring import Wiring


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A chain that almost was attention, and the node that broke it.

    Attributes:
        node: name of the node at fault.
        reason: one sentence.
        source: where it stands in the user's program.
    """

    node: str
    reason: str
    source: Source = field(default_factory=Source)

    def to_dict(self) -> dict[str, Any]:
        return {"source": str(self.source), "reason": self.reason, "node": self.node}


@dataclass(frozen=True, slots=True)
class FoundCall:
    """An attention call and where it lives.

    Attributes:
        call: what it means.
        node: the node of the program, or of the body of ``opened``, whose value the call gives.
        wiring: the nodes that hold its operands there.
        values: its operands as values of the Reading; None inside a functorch transform, which none is read through.
        opened: the opaque layer that the node was found in, or None.
        lse: the node whose value is the log-sum-exp of the scores, if the program wants that too.
        sunk: who reads that before ``node``, and is moved behind it.
        dead: the other nodes of a chain written by hand, which nobody needs once ``node`` and ``lse`` are replaced.
        repeated: k and v with their heads repeated, where the call reads them before that.
        meaning: what was understood of the mask tensors, or None where there are none.
        epoch: how many writes the program makes before the call: two calls of the same epoch see the same memory.
        changed: does the program write to the output later on, or to what is made of it right behind?
    """

    call: AttentionCall
    node: Node
    wiring: Wiring[Node]
    values: Wiring[Value] | None = None
    opened: Opened | None = None
    lse: Node | None = None
    sunk: tuple[Node, ...] = ()
    dead: tuple[Node, ...] = ()
    repeated: tuple[Operand[Node], Operand[Node]] | None = None
    meaning: Meaning | None = None
    epoch: int = 0
    changed: bool = False

    def as_written(self) -> FoundCall:
        """The call with k and v as the program has them."""
        return (*self.alternatives(), self)[0]

    def alternatives(self) -> tuple[FoundCall, ...]:
        """Other readings, to be asked when no kernel takes this one: k and v as the program has them."""
        if self.repeated is None:
            return ()
        k, v = self.repeated
        call = replace(self.call, k=spec_of(k), v=spec_of(v), enable_gqa=False)
        return (replace(self, call=call, wiring=replace(self.wiring, k=k, v=v), repeated=None),)


@dataclass(frozen=True, slots=True)
class Findings:
    """What is in a graph, its size in nodes, and what it computes."""

    calls: tuple[FoundCall, ...]
    near_misses: tuple[NearMiss, ...]
    nodes: int
    reading: Reading
