"""Which inputs of the program the tokens of Q and of K come from: one pass forward over a graph and its bodies.

The lineage of a node is a set of inputs, as the bits of an int. Everything passes on what it reads, with two
exceptions. The output of an attention has the tokens of its Q: what it reads through K and V is not its lineage, else
everything behind the first cross-attention would descend from both sequences. A parameter counts only where nothing
else does: learned queries are a sequence, a weight is none.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from attnpass.patterns.canonical import name_of
from attnpass.patterns.multihead import Opened, is_multihead
from attnpass.patterns.origin import VIEWS, is_parameter, tensors_in
from attnpass.patterns.regions import bodies_of, given_to
from attnpass.patterns.sdpa import value_of
from attnpass.writes import may_write, storage_of, written

if TYPE_CHECKING:
    from attnpass.patterns import FoundCall


GUARDS = "_guards_fn"  # torch.export's checks of the inputs, a module that writes to none of them
LOST = 1  # a bit for what comes from somewhere that this pass does not follow: never apart from anything


class Lineages:
    """The pass over one graph.

    Attributes:
        apart: for the node of each call: do Q and K share no input? In a body that runs several times: never?
        outside: for the inputs of a body: the node outside that each one stands for; None where that differs.
    """

    def __init__(self, calls: Iterable[FoundCall]) -> None:
        self.apart: dict[Node, bool] = {}
        self.outside: dict[Node, Node | None] = {}
        self._attention = {found.node: (found.wiring.q.node, found.wiring.k.node) for found in calls}
        self._opened: dict[Node, Opened] = {found.opened.node: found.opened for found in calls if found.opened}
        self._bits: dict[Node, int] = {}
        self._parameters = 0

    def trace(self, gm: GraphModule, inputs: Sequence[int] | None = None) -> list[int]:
        """Follow ``gm``, whose inputs have the lineages ``inputs``; gives those of its outputs."""
        known: dict[Node, int] = {}
        several: dict[Node, list[int]] = {}
        given = iter(inputs or ())
        storages = _Storages(gm)
        for node in gm.graph.nodes:
            if node.op == "output":
                return [known.get(one, 0) if isinstance(one, Node) else 0 for one in pytree.tree_leaves(node.args[0])]
            if node.op == "placeholder" and inputs is not None:
                known[node] = next(given, LOST)
            elif node.target is operator.getitem and node.args[0] in several and isinstance(node.args[1], int):
                known[node] = _part(several[node.args[0]], node.args[1])
            else:
                known[node], parts = self._of(gm, node, known)
                if parts:
                    several[node] = parts
            for changed in storages.changed_by(node):
                known[changed] = self._merged([known.get(changed, 0), known[node]])
        return []

    def _of(self, gm: GraphModule, node: Node, known: dict[Node, int]) -> tuple[int, list[int]]:
        """The lineage of a node, and those of its parts if it runs a body."""
        if node.op in ("placeholder", "get_attr"):
            return (self._leaf(node) if tensors_in(node) else 0), []
        if node in self._attention:
            q, k = (known.get(one, 0) for one in self._attention[node])
            apart = bool(q and k) and not q & k and not (q | k) & LOST
            self.apart[node] = apart and self.apart.get(node, True)
            return q, []
        inputs = node.all_input_nodes
        if len(inputs) > 1 and name_of(node) in VIEWS:
            inputs = inputs[:1]  # `x.type_as(c)` and `x.view_as(c)` ask c for its dtype and shape only
        reads = self._merged(known.get(one, 0) for one in inputs)
        opened = self._opened.get(node)
        if opened is not None:
            self._enter(opened.body, opened.inputs, known)
        if is_multihead(node):
            query = node.args[0] if node.args else node.kwargs.get("query")
            return (known.get(query, 0) if isinstance(query, Node) else reads), []
        bodies = bodies_of(gm, node) if isinstance(node.target, torch._ops.HigherOrderOperator) else []
        if bodies:
            results = [self._enter(body, _operands(node, body), known) for body in bodies]
            parts = [self._merged(each) for each in zip(*results, strict=False)]
            return self._merged(parts) or reads, parts
        return (reads if tensors_in(node) or may_write(node) else 0), []

    def _enter(self, body: GraphModule, operands: Sequence[Any], known: dict[Node, int]) -> list[int]:
        placeholders = body.graph.find_nodes(op="placeholder")
        for inside, outer in zip(placeholders, operands, strict=True):
            mapped = outer if isinstance(outer, Node) else None
            self.outside[inside] = mapped if self.outside.get(inside, mapped) is mapped else None
        return self.trace(body, [known.get(one, 0) if isinstance(one, Node) else LOST for one in operands])

    def _leaf(self, node: Node) -> int:
        bit = self._bits.setdefault(node, 1 << (len(self._bits) + 1))
        if is_parameter(node):
            self._parameters |= bit
        return bit

    def _merged(self, several: Iterable[int]) -> int:
        everything = list(several)
        sequences = [one for one in everything if one & ~self._parameters]
        total = 0
        for one in sequences or everything:
            total |= one
        return total


class _Storages:
    """Which nodes of a graph share the memory that a node writes to; cheap where nothing writes."""

    def __init__(self, gm: GraphModule) -> None:
        self._by_storage: dict[int, list[Node]] | None = None
        if any(map(may_write, gm.graph.nodes)):
            self._by_storage = {}

    def changed_by(self, node: Node) -> list[Node]:
        """The earlier nodes whose memory ``node`` writes to."""
        if self._by_storage is None:
            return []
        storage = storage_of(node)
        if storage is not None:
            self._by_storage.setdefault(storage, []).append(node)
        if not may_write(node) or node.target == GUARDS:
            return []
        targets = [one for one in written(node) if tensors_in(one)]
        storages = [storage_of(one) for one in targets]
        shared = [other for one in storages if one is not None for other in self._by_storage.get(one, ())]
        if None in storages:  # it may be anybody's memory
            shared = [other for several in self._by_storage.values() for other in several]
        return list(dict.fromkeys([*targets, *shared]))


def _part(parts: list[int], index: int) -> int:
    return parts[index] if -len(parts) <= index < len(parts) else LOST


def _operands(node: Node, body: GraphModule) -> list[Any]:
    """What a higher-order op gives to the inputs of ``body``, if these look alike; else nothing."""
    placeholders = body.graph.find_nodes(op="placeholder")
    given = given_to(node, body.graph)
    if given is None or not all(map(_alike, given, placeholders)):
        return [None] * len(placeholders)
    return given


def _alike(given: Any, placeholder: Node) -> bool:
    mine, theirs = value_of(given) if isinstance(given, Node) else given, value_of(placeholder)
    if isinstance(mine, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return mine is theirs or (mine.ndim == theirs.ndim and mine.dtype == theirs.dtype)
    return isinstance(mine, torch.Tensor) == isinstance(theirs, torch.Tensor)
