"""The Reading of a program: pure ATen ops on values, and which node of the program holds each value where.

Made by one run of the captured graph on its fake values (`attnpass.graph.run`), once a graph. A `Value` is an op, an
`OpOverload` of ATen's, on others, or a leaf for what comes from outside or cannot be followed. There are no writes, no
``out=``, no names and no views of memory in it, and what nobody reads is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from attnpass.graph.dispatch import recording
from attnpass.graph.memory import Held, Memory
from attnpass.graph.record import ChangesShapesError
from attnpass.graph.regions import Region, bodies_of
from attnpass.graph.run import Opener, Program, Runner, Sites
from attnpass.graph.value import Value, returned
from attnpass.graph.values import unwrapped, value_of

SDPA = torch.ops.aten.scaled_dot_product_attention.default


@dataclass(eq=False)
class Reading:
    """What a program computes, and who holds it.

    Attributes:
        values: everything that it computes, in program order.
        regions: the state around each node of the program.
        places: the place of each node of the program in the run.
        opened: the graphs of opaque nodes that were opened: they become part of the graphs that they stand in.
        writes: the places that write to something, in order.
    """

    values: Sequence[Value]
    regions: Mapping[Node, Region]
    places: dict[Node, int]
    opened: Mapping[Graph, Graph]
    writes: list[int]
    _memory: Memory
    _held: dict[Node, Held]

    def value_at(self, node: Node, place: Node) -> Value | None:
        """The value that a node of the program holds when the node ``place`` begins to read it."""
        held = self._held.get(node)
        return None if held is None else held.at(self.places[place])

    def holder(self, value: Value, place: Node) -> Node | None:
        """The node of the program that holds ``value`` when the node ``place`` begins; None if nobody does."""
        at, graphs = self.places[place], (place.graph, self.opened.get(place.graph))
        for held in self._memory.holders(value):
            if held.at(at) is value:
                for node in held.nodes:
                    if node.graph in graphs and self.places[node] < at:
                        return node
        return None

    def overwritten_by(self, value: Value, place: Node) -> Node | None:
        """The first node, before ``place``, that wrote over a value that the program held; None if there is none."""
        for held in self._memory.holders(value):
            since = [version for version, each in held.values.items() if each is value]
            gone = held.storage.writes[since[-1] :] if since else []
            if gone and gone[0] < self.places[place]:
                return next((node for node, at in self.places.items() if at == gone[0]), None)
        return None

    def result_of(self, value: Value) -> Node | None:
        """The node of the program whose result ``value`` is, if it does nothing else; None if there is none."""
        maker = value.maker
        if maker is None or maker.op == "placeholder" or self.places[maker] in self.writes:
            return None
        return maker if self.result(maker) is value else None

    def result(self, node: Node) -> Value | None:
        """The value that a node of the program gives; None if it gives no plain tensor, or nobody reads it."""
        held = self._held.get(node)
        return None if held is None else held.at(self.places[node] + 1)

    def was_held(self, value: Value) -> bool:
        """Was there ever a node of the program that held this value?"""
        return any(held.nodes for held in self._memory.holders(value))

    def number(self, size: torch.SymInt | torch.SymFloat, place: Node) -> Node | None:
        """The node of the program that holds a symbolic number."""
        found = self._numbers.get(str(size.node.expr), [])
        return next((n for n in found if n.graph is place.graph and self.places[n] < self.places[place]), None)

    @cached_property
    def _numbers(self) -> dict[str, list[Node]]:
        """The nodes that hold each symbolic number."""
        numbers: dict[str, list[Node]] = {}
        for node in self.places:
            value = value_of(node)
            if isinstance(value, (torch.SymInt, torch.SymFloat)):
                numbers.setdefault(str(value.node.expr), []).append(node)
        return numbers

    def writes_before(self, place: Node) -> int:
        """How many writes come before a node: two places with the same count see the same values."""
        return bisect_left(self.writes, self.places[place])

    def written_behind(self, node: Node, depth: int = 0) -> bool:
        """Does the program write later on to a node's result, what shares its memory, or up to ``depth`` ops behind it?

        What copies a result may be a view of one that lies in another layout.
        """
        held = self._held.get(node)
        if held is not None and any(place > self.places[node] for place in held.storage.writes):
            return True
        return depth > 0 and any(user in self.places and self.written_behind(user, depth - 1) for user in node.users)

    def changes_behind(self, node: Node, place: Node) -> bool:
        """Does the program write, behind the node ``place``, to what ``node`` holds there?"""
        held = self._held.get(node)
        return held is not None and bool(held.storage.writes) and held.storage.writes[-1] > self.places[place]

    def is_read_behind(self, node: Node, place: Node, within: Collection[Node | None] = ()) -> bool:
        """Do all who read a node's result stand behind ``place``, those of ``within`` aside?"""
        others = (user for user in node.users if user not in within and user.op != "output")
        return all(self.places.get(user, -1) > self.places[place] for user in others)

    @cached_property
    def quiet(self) -> frozenset[Node]:
        """The nodes of the program that do nothing but give a value, the same each time."""
        calls = (node for node in self.places if node.op in ("call_function", "call_method"))
        return frozenset(node for node in calls if node not in self._memory.loud)

    def region(self, value: Value) -> Region | None:
        """The program state in which a value was made."""
        return None if value.maker is None else self.regions.get(value.maker)


def read(gm: GraphModule, regions: Mapping[Node, Region], open_up: Opener = lambda gm, node: None) -> Reading:
    """Run ``gm`` on its fake values and write down what it computes. ``gm`` and its values stay as they are.

    Args:
        gm: a graph with fake values on its nodes.
        regions: the state around each node, also in bodies.
        open_up: the computation inside an opaque node as a graph of its own, or None.
    """
    program = Program(_fake_mode(gm), regions, _uses(gm), open_up)
    try:
        return _read(gm, program)
    except ChangesShapesError:
        return _read(gm, replace(program, borrows=False))


def _read(gm: GraphModule, program: Program) -> Reading:
    runner = Runner(program)
    runner.memory.borrowed = program.borrows
    with recording(program.mode, runner.recorder):
        runner.run(gm)
        while runner.later:
            body, sites = runner.later.popitem()
            if all(value_of(node) is not None for node in body.graph.find_nodes(op="placeholder")):
                runner.run(body, _given(sites, runner.memory))
        memory = runner.memory
        # what was written to an input is seen by its owner
        changed = [memory.value(each) for each in runner.inputs if memory.held(each).storage.writes]
    memory.add(returned, tuple(dict.fromkeys([*runner.outputs, *changed])), {}, None)
    values = _without_unread(memory.made, runner.recorder.effects)
    for value in values:
        value.requires_grad = _requires_grad(value, memory, runner.places)
    return Reading(values, program.regions, runner.places, runner.opened, memory.writes, memory, memory.by_node())


def _requires_grad(value: Value, memory: Memory, places: Mapping[Node, int]) -> bool:
    """Does a gradient flow to this value? As the capture has it where a node holds it, else as its operands."""
    holders = [node for held in memory.holders(value) for node in held.nodes if held.at(places[node] + 1) is value]
    if holders:
        known = [unwrapped(value_of(node)) for node in holders]
        return any(isinstance(each, Tensor) and each.requires_grad for each in known)
    return any(each.requires_grad for each in value.inputs)


def one_of(*_: Any) -> Any:
    """The target of a value that is another one at each place where a body runs."""
    raise AssertionError("a marker, never called")


def _given(sites: Sites, memory: Memory) -> Sequence[Value | None] | None:
    """What a body is given: the value that it gets at every place where it runs, or one of several."""
    known = [each for each in sites if each is not None]
    if not known or len(known) < len(sites) or len({len(each) for each in known}) > 1:
        return None
    given: list[Value | None] = []
    for column in zip(*known, strict=True):
        values = list(dict.fromkeys(each for each in column if isinstance(each, Value)))
        several = len(values) > 1 and len(column) == len(sites)
        given.append(memory.add(one_of, values, {}, values[0].fake) if several else values[0] if values else None)
    return given


def _fake_mode(gm: GraphModule) -> FakeTensorMode:
    for node in gm.graph.nodes:
        for value in pytree.tree_leaves(value_of(node)):
            mode = getattr(unwrapped(value), "fake_mode", None)
            if isinstance(mode, FakeTensorMode):
                return mode
    return FakeTensorMode(allow_non_fake_inputs=True)


def _uses(gm: GraphModule) -> Mapping[GraphModule, int]:
    uses: Counter[GraphModule] = Counter()
    for module in gm.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                if isinstance(node.target, HigherOrderOperator):
                    uses.update(bodies_of(module, node))
    return uses


def _without_unread(values: Sequence[Value], effects: Sequence[Value]) -> list[Value]:
    """The values that somebody reads: all ops are pure. Calls of SDPA and what has effects stay."""
    stay = {returned, SDPA}
    kept = set(effects)
    read: list[Value] = []
    for value in reversed(values):
        if value.users or value in kept or value.target in stay:
            read.append(value)
        else:
            value.unread()
    return read[::-1]
