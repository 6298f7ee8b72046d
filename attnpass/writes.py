"""In-place writes. Dynamo's graphs are not functionalised: a tensor may change between two nodes that read it."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch.fx import Graph, Node

from attnpass.patterns.sdpa import unwrapped, value_of

IN_PLACE_OPERATORS = frozenset(
    {"setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow"}
    | {"irshift", "isub", "itruediv", "ixor"}
)

NOT_IN_PLACE = frozenset({"and_", "or_", "not_", "is_"})  # Python's own operators, which cannot be called `and`


def may_write(node: Node) -> bool:
    """Could this node change a tensor in place? Errs on the side of yes."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    private = name.startswith("_")  # the markers of autocast, vmap and grad mode
    if node.op == "call_function" and name in NOT_IN_PLACE:
        return False
    if node.kwargs.get("inplace") is True or (name == "dropout" and len(node.args) > 3 and node.args[3] is True):
        return True
    return (name.endswith("_") and not private) or name in IN_PLACE_OPERATORS or "out" in node.kwargs


def written(node: Node) -> Iterable[Node]:
    """The operands that a writing node may change: the first, or all where that is not sure."""
    if node.op == "call_module" or isinstance(node.target, torch._ops.OpOverload) or "out" in node.kwargs:
        return node.all_input_nodes
    return [node.args[0]] if node.args and isinstance(node.args[0], Node) else node.all_input_nodes


def storage_of(node: Node) -> int | None:
    """What tells tensors apart that share memory; None if the node's value is no tensor with memory of its own."""
    value = unwrapped(value_of(node))
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


@dataclass(slots=True)
class Writes:
    """The writes of one graph, by the memory that they change, in program order."""

    position: dict[Node, int] = field(default_factory=dict)
    by_storage: dict[int | None, list[Node]] = field(default_factory=lambda: defaultdict(list))
    places: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph) -> Writes:
        found = cls()
        for position, node in enumerate(graph.nodes):
            found.position[node] = position
            if may_write(node):
                found.places.append(position)
                for storage in {storage_of(operand) for operand in written(node)}:
                    found.by_storage[storage].append(node)
        return found

    def before(self, place: int) -> int:
        """How many nodes before a position may change something."""
        return bisect_left(self.places, place)

    def between(self, node: Node, start: int, end: int) -> list[Node]:
        """The nodes that may change the memory of ``node`` after position ``start`` and before ``end``."""
        storage = storage_of(node)
        if storage is None:
            return [w for several in self.by_storage.values() for w in several if start < self.position[w] < end]
        return [w for w in self.by_storage.get(storage, ()) if start < self.position[w] < end]
