"""Where a call stands in the copy, and what holds its operands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import GraphModule, Node

from attnpass.emit.emitter import COPIED_META
from attnpass.find.found import FoundCall
from attnpass.find.multihead import Opened
from attnpass.graph.copy import GraphCopy


@dataclass(slots=True)
class Places:
    """Places of a copy, whose opaque layers are opened on first use."""

    copied: GraphCopy
    _inlined: dict[Node, dict[Node, Node]] = field(default_factory=dict)

    def of(self, found: FoundCall) -> tuple[GraphModule, Node]:
        """The module and the node that a call is in the copy."""
        copied, opened = self.copied, found.opened
        if opened is None:
            node = copied.nodes[found.node]
        else:
            if opened.node not in self._inlined:
                inputs = tuple(copied.current(copied.nodes[node]) for node in opened.inputs)
                inner = replace(opened, node=copied.nodes[opened.node], inputs=inputs)
                self._inlined[opened.node] = _inline(copied, inner)
            node = self._inlined[opened.node][found.node]
        return _owner(node), node

    def mapping(self, found: FoundCall) -> Callable[[Node], Node]:
        """Nodes of the original graph -> those of the copy that give their values now, once the call has its place."""
        copied = self.copied
        inner = {} if found.opened is None else self._inlined[found.opened.node]  # masks may be read around a layer
        return lambda node: copied.current(inner[node] if node in inner else copied.nodes[node])


def _owner(node: Node) -> GraphModule:
    owner = node.graph.owning_module
    assert owner is not None
    return owner


def _inline(copied: GraphCopy, opened: Opened) -> dict[Node, Node]:
    """Put an opened body in its node's place. Returns the body's nodes -> the nodes of the user's graph."""
    node, graph, owner = opened.node, opened.node.graph, _owner(opened.node)
    value_key = "example_value" if "example_value" in node.meta else "val"
    env: dict[Node, Node] = dict(zip(opened.body.graph.find_nodes(op="placeholder"), opened.inputs, strict=True))
    with graph.inserting_before(node):
        for inner in opened.body.graph.nodes:
            if inner.op == "get_attr":
                free = f"attnpass_{node.name}_{inner.target}"
                setattr(owner, free, getattr(opened.body, inner.target))
                env[inner] = graph.get_attr(free)
            elif inner.op == "call_function":
                env[inner] = graph.node_copy(inner, env.__getitem__)
                env[inner].meta = {k: node.meta[k] for k in COPIED_META if k in node.meta}
                if "val" in inner.meta:
                    env[inner].meta[value_key] = inner.meta["val"]
    result: Any = opened.body.graph.output_node().args[0]
    if isinstance(result, (list, tuple)):  # (output, weights): each user picks one
        for user in list(node.users):
            index: Any = user.args[1]
            copied.replace(user, env[result[index]])
        graph.erase_node(node)
    else:
        copied.replace(node, env[result])
    return env
