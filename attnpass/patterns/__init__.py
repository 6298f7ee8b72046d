"""find: graph -> attention calls and near misses. Read only.

To add a spelling, write a file beside `sdpa` that turns a node into an `AttentionCall`, and name it in `find`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule, Node

from attnpass.call import AttentionCall, Pattern
from attnpass.patterns.multihead import Opened, is_multihead, open_up
from attnpass.patterns.near_misses import near_misses
from attnpass.patterns.regions import Region, walk
from attnpass.patterns.sdpa import is_sdpa, read_call, source_of, value_of, wiring_of
from attnpass.patterns.wiring import Wiring
from attnpass.report.record import NearMiss

if TYPE_CHECKING:
    from attnpass.masks.meaning import Meaning


@dataclass(frozen=True, slots=True)
class FoundCall:
    """An attention call and where it lives.

    Attributes:
        call: what it means.
        owner: the (sub)module whose graph holds ``node``; the opened body if ``opened`` is set.
        node: the node whose value the call gives.
        wiring: the nodes that it reads.
        opened: the opaque layer that the node was found in, or None.
        meaning: what was understood of the mask tensors, or None where there are none.
    """

    call: AttentionCall
    owner: GraphModule
    node: Node
    wiring: Wiring
    opened: Opened | None = None
    meaning: Meaning | None = None


@dataclass(frozen=True, slots=True)
class Findings:
    """What is in a graph, and its size in nodes."""

    calls: tuple[FoundCall, ...]
    near_misses: tuple[NearMiss, ...]
    nodes: int


def find(gm: GraphModule, grad: bool | None = None) -> Findings:
    """Every attention call of ``gm`` and of the bodies of its higher-order ops, in program order.

    ``grad`` says whether gradients flow, where the values on the nodes do not know it.
    """
    calls: list[FoundCall] = []
    misses: list[NearMiss] = []
    nodes: list[Node] = []
    visited: dict[Node, Region] = {}
    torn: set[Node] = set()
    for owner, node, region in walk(gm, Region.around(_device_types(gm))):
        if node in visited:  # a body that several ops share, as invoke_subgraph's, is rewritten once
            if visited[node] != region:
                torn.add(node)
            continue
        visited[node] = region
        nodes.append(node)
        if is_sdpa(node):
            calls.append(FoundCall(read_call(node, region, grad=grad), owner, node, wiring_of(node)))
        elif is_multihead(node):
            opened = open_up(owner, node, region)
            if isinstance(opened, str):
                misses.append(NearMiss(node.name, opened, source_of(node.meta)))
            else:
                calls += _inside(opened, region)
    calls = [_undecided(found) if found.node in torn else found for found in calls]
    return Findings(tuple(calls), (*misses, *near_misses(nodes)), len(nodes))


def _undecided(found: FoundCall) -> FoundCall:
    """A call in a body that runs under different autocast, grad mode or transforms; no kernel suits all of them."""
    context = replace(found.call.context, unreadable="the state around a body that several ops share")
    return replace(found, call=replace(found.call, context=context))


def _inside(opened: Opened, region: Region) -> list[FoundCall]:
    grad = any(isinstance(v, torch.Tensor) and v.requires_grad for v in map(value_of, opened.inputs))
    return [
        FoundCall(
            read_call(node, region, Pattern.MULTIHEAD, opened.node, grad), opened.body, node, wiring_of(node), opened
        )
        for node in opened.body.graph.nodes
        if is_sdpa(node)
    ]


def _device_types(gm: GraphModule) -> set[str]:
    values = (value_of(node) for node in gm.graph.nodes)
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


__all__ = ["Findings", "FoundCall", "find"]
