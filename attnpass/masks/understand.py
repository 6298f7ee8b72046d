"""understand: mask tensors of calls -> what they mean. Read only; equal masks are read once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node

from attnpass.call import Pattern
from attnpass.masks.elements import StopError
from attnpass.masks.expr import AXES, Apply, B, Expr, H, K, Q, axis
from attnpass.masks.logic import all_of, loads_of
from attnpass.masks.meaning import Meaning
from attnpass.masks.prove import Split, hides, only_a_tensor, prove, taken_apart
from attnpass.masks.spec import EmptyRows
from attnpass.masks.trace import Constants, Tracer
from attnpass.patterns import FoundCall
from attnpass.patterns.regions import bodies_of, given_to
from attnpass.patterns.sdpa import source_of, value_of
from attnpass.patterns.wiring import Addition
from attnpass.symbolic import Size, known_equal


@dataclass(slots=True)
class Reader:
    """Reads the masks of one graph and of the bodies inside it.

    Attributes:
        root: the graph module that holds the calls.
        constants: the array of an input whose values may be assumed, or None.
        tracers: one for each graph.
        read: what was understood, by the operands that it was read from.
    """

    root: GraphModule
    constants: Constants = lambda _: None
    tracers: dict[Graph, Tracer] = field(default_factory=dict)
    read: dict[Any, Meaning] = field(default_factory=dict)
    _sites: dict[Graph, list[Node]] | None = None

    def understood(self, found: FoundCall) -> FoundCall:
        """The call with the meaning of its mask, if there is a mask tensor and its meaning could be proved."""
        call, additions = found.call, found.wiring.additions
        if not additions or call.mask_and_causal or call.context.functorch:
            return found
        tracer = self._tracer(found)
        sizes = {B: call.B, H: call.H, Q: call.Sq, K: call.Sk}
        writes = tracer.writes.before(tracer.writes.position[found.node])
        kept = call.mask.tensor
        kind = (call.pattern, call.mask.empty, call.mask.bias is None, None if kept is None else kept.dtype)
        key = (additions, tuple(map(str, sizes.values())), kind, writes)
        if key not in self.read:
            try:
                self.read[key] = self._meaning(found, tracer, sizes)
            except StopError as stop:
                self.read[key] = Meaning.unknown(call.mask, str(stop))
        meaning = self.read[key]
        return replace(found, call=replace(call, mask=meaning.spec), meaning=meaning)

    def _meaning(self, found: FoundCall, tracer: Tracer, sizes: dict[str, Size]) -> Meaning:
        call = found.call
        split, hiding = _combined(found.wiring.additions, tracer, found, sizes)
        spelled = call.mask.tensor
        by_hand = call.pattern is Pattern.HANDWRITTEN and call.mask.empty is not EmptyRows.ZERO  # as sinks leave it
        meaning = prove(split, sizes, by_hand, spelled, several=hiding > 1)
        filled = any(each.fill is not None and each.fill > -math.inf for each in found.wiring.additions)
        if filled and meaning.bias is not None and meaning.spec.rows_may_be_empty:
            return Meaning.unknown(call.mask, "a hidden row reads its bias or not, by the order of both")
        loads = [*loads_of(meaning.allowed), *([] if meaning.bias is None else loads_of(meaning.bias))]
        stop = _first_stop(tracer, found)
        if only_a_tensor(meaning):
            return Meaning.unknown(call.mask, stop or "its values are an input of the graph")
        if loads and call.context.nested_in:
            return Meaning.unknown(call.mask, "it reads data inside the body of another operation")
        return meaning

    def _tracer(self, found: FoundCall) -> Tracer:
        opened = found.opened
        if opened is None:
            return self._tracer_of(found.node.graph)
        tracer = self._tracer_of(found.node.graph)
        around = self._tracer_of(opened.node.graph)
        inner = found.node.graph.find_nodes(op="placeholder")
        tracer.outside = {p: (o, around, opened.node) for p, o in zip(inner, opened.inputs, strict=True)}
        tracer.loads_outside = True  # its nodes move into the graph around it
        return tracer

    def _tracer_of(self, graph: Graph) -> Tracer:
        if graph not in self.tracers:
            tracer = Tracer(graph, self.constants)
            self.tracers[graph] = tracer
            tracer.outside = self._outside(tracer)
        return self.tracers[graph]

    def _outside(self, tracer: Tracer) -> dict[Node, tuple[Node, Tracer, Node]]:
        """What is passed for the inputs of a body; of one that runs at several places, what is the same at all."""
        places = self._places(tracer.graph)
        several = len(places) > 1
        if not places or len({place.graph for place in places}) > 1 or (several and tracer.writes.places):
            return {}
        around = self._tracer_of(places[0].graph)
        start, end = (around.writes.position[place] for place in (places[0], places[-1]))
        passed, *elsewhere = (_operands(tracer.graph, place) for place in places)
        return {
            inner: (outer, around, places[0])
            for inner, outer in passed.items()
            if all(other.get(inner) is outer for other in elsewhere) and not around.writes.between(outer, start, end)
        }

    def _places(self, body: Graph) -> list[Node]:
        """The nodes that run a body, in program order; none for the graph itself."""
        if self._sites is None:
            self._sites = defaultdict(list)
            for module in (m for m in self.root.modules() if isinstance(m, GraphModule)):
                for node in module.graph.nodes:
                    for inner in bodies_of(module, node) if isinstance(node.target, HigherOrderOperator) else ():
                        self._sites[inner.graph].append(node)
        return self._sites.get(body, [])


def _operands(body: Graph, site: Node) -> dict[Node, Node]:
    """The placeholders of a body and the nodes that are passed for them; nothing where that is not plain."""
    passed = given_to(site, body)
    if passed is None:
        return {}
    pairs = [(p, o) for p, o in zip(body.find_nodes(op="placeholder"), passed, strict=True) if isinstance(o, Node)]
    return {} if any(_spec(p) != _spec(o) for p, o in pairs) else dict(pairs)


def _spec(node: Node) -> Any:
    value = value_of(node)
    return (str(tuple(value.shape)), value.dtype) if isinstance(value, torch.Tensor) else str(value)


def _combined(
    additions: Sequence[Addition], tracer: Tracer, found: FoundCall, sizes: dict[str, Size]
) -> tuple[Split, int]:
    """All additions as one split mask, and how many of them hide keys."""
    index = tuple(axis(name) for name in AXES)
    allowed: list[Expr] = []
    bias: Expr | None = None
    fills: frozenset[float] = frozenset()
    hiding = 0
    for addition in additions:
        array = tracer.operand(addition.operand, found.node)
        if array.ndim > 4 or not _broadcasts(array.shape, sizes):
            raise StopError(f"a mask of shape {tuple(map(str, array.shape))}")
        expr = array.broadcast_at(index)
        if addition.fill is None:
            part = taken_apart(expr)
            if found.call.context.autocast is not None and found.call.pattern is not Pattern.HANDWRITTEN:
                part = replace(part, fills=frozenset(_rounded(f, found.call.dtype) for f in part.fills))
        elif hides(addition.fill, found.call.dtype):
            part = Split(expr, fills=frozenset({addition.fill}))
        else:
            raise StopError(f"scores are replaced by {addition.fill:g}, which does not hide a key")
        allowed.append(part.allowed)
        fills |= part.fills
        hiding += bool(part.fills)
        if part.bias is not None:
            bias = part.bias if bias is None else Apply("add", (bias, part.bias), torch.float32)
    return Split(all_of(allowed), bias, fills), hiding


def _rounded(fill: float, dtype: torch.dtype) -> float:
    """A number in the dtype that autocast gives SDPA's mask: the lowest one of fp32 is -inf in bf16."""
    return float(torch.tensor(fill).to(dtype).item())


def _broadcasts(shape: Sequence[Size], sizes: dict[str, Size]) -> bool:
    names = AXES[4 - len(shape) :]
    return all(known_equal(n, 1) or known_equal(n, sizes[name]) for n, name in zip(shape, names, strict=True))


def _first_stop(tracer: Tracer, found: FoundCall) -> str:
    """The node that understanding ended at, nearest to the call, with its source line."""
    queue: list[Node] = [addition.operand.node for addition in found.wiring.additions]
    seen: set[Node] = set()
    while queue:
        node = queue.pop(0)
        if node in seen:
            continue
        seen.add(node)
        if node in tracer.stops:
            where = source_of(node.meta)
            return f"{tracer.stops[node]} ({node.name}{f', {where}' if where.file else ''})"
        queue += node.all_input_nodes
    return ""
