"""A copy of a graph that can be changed, with a map from each old node to its copy.

Only graphs are copied: parameters, buffers and fake values are shared with the original. Code is generated when
something runs the copy (as Dynamo does for its own graphs): making it twice for a graph of 32 calls costs 40 ms.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module


@dataclass(frozen=True, slots=True)
class GraphCopy:
    """The copy of a graph module and of the graph modules inside it.

    Attributes:
        module: the copy.
        nodes: each original node -> its copy.
        modules: each original graph module -> its copy.
        replaced: each node of the copy that is gone -> the one that gives its value now.
    """

    module: GraphModule
    nodes: dict[Node, Node] = field(default_factory=dict)
    modules: dict[GraphModule, GraphModule] = field(default_factory=dict)
    replaced: dict[Node, Node] = field(default_factory=dict)

    @classmethod
    def of(cls, gm: GraphModule) -> GraphCopy:
        """Copy ``gm`` and, where its nodes use them, the graph modules inside it."""
        nodes: dict[Node, Node] = {}
        modules: dict[GraphModule, GraphModule] = {}
        with _use_lazy_graph_module(True):
            module = _copy(gm, nodes, modules)
        return cls(module, nodes, modules)

    def replace(self, node: Node, other: Node, readers: Collection[Node] = ()) -> None:
        """Let ``other`` give the value of ``node`` of the copy from now on; ``node`` stays if it has ``readers``."""
        node.replace_all_uses_with(other, delete_user_cb=lambda user: user not in readers)
        if not readers:
            node.graph.erase_node(node)
        self.replaced[node] = other

    def erase_dead(self, nodes: Sequence[Node]) -> None:
        """Erase those of the copy's ``nodes`` (in program order) that nobody reads any more.

        Random ops and ops in place would not go by themselves, and with them whatever they read.
        """
        for node in reversed(nodes):
            if node not in self.replaced and not node.users:
                node.graph.erase_node(node)

    def erase_unread(self, nodes: Sequence[Node], quiet: Collection[Node]) -> None:
        """Erase nodes of the copy that nobody reads any more, and then what only they read, as far as it is quiet."""
        queue, gone = list(nodes), set[Node]()
        while queue:
            node = queue.pop()
            if node in gone or node in self.replaced or node.users or node not in quiet:
                continue
            queue += node.all_input_nodes
            node.graph.erase_node(node)
            gone.add(node)

    def current(self, node: Node) -> Node:
        """The node of the copy that gives the value of ``node`` now."""
        while node in self.replaced:
            node = self.replaced[node]
        return node

    def finish(self) -> None:
        """Check the changed graphs and let their code be generated anew."""
        for module in self.modules.values():
            module.graph.lint()
            module.recompile()


def _copy(gm: GraphModule, nodes: dict[Node, Node], modules: dict[GraphModule, GraphModule]) -> GraphModule:
    if gm in modules:
        return modules[gm]
    graph = Graph()
    own: dict[Node, Node] = {}
    result = graph.graph_copy(gm.graph, own)
    nodes.update(own)
    graph.output(result).meta = dict(gm.graph.output_node().meta)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    for old, new in own.items():
        if hasattr(old, "_dynamo_source"):  # AOTAutograd reads it to tell parameters from inputs
            new._dynamo_source = old._dynamo_source
    duplicate: GraphModule = _make_graph_module(gm, graph, type(gm).__name__)
    duplicate.meta = dict(gm.meta)
    for key, value in gm.__dict__.items():
        duplicate.__dict__.setdefault(key, value)
    modules[gm] = duplicate
    for name, child in gm.named_children():
        if isinstance(child, GraphModule):
            setattr(duplicate, name, _copy(child, nodes, modules))
    return duplicate
