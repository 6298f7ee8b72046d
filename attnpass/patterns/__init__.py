"""find: graph -> attention calls and near misses. Read only.

To add a spelling, write a file beside `sdpa` that turns a node into an `AttentionCall`, and name it in `find`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule, Node

from attnpass.call import AttentionCall, Pattern
from attnpass.patterns.chain import Surroundings, is_softmax
from attnpass.patterns.elements import RefusedError
from attnpass.patterns.handwritten import read_handwritten
from attnpass.patterns.kind import with_kinds
from attnpass.patterns.multihead import Opened, is_multihead, open_up
from attnpass.patterns.near_misses import near_miss, near_misses
from attnpass.patterns.operands import spec_of
from attnpass.patterns.regions import Region, walk
from attnpass.patterns.repeats import repeated_operands
from attnpass.patterns.sdpa import is_sdpa, module_path, read_call, source_of, value_of, wiring_of
from attnpass.patterns.wiring import Operand, Wiring
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
        dead: the other nodes of a chain written by hand, which nobody needs once ``node`` is replaced.
        repeated: k and v with their heads repeated, where the call reads them before that.
        written: the call and its operands as the program has them, before anything is proved about them.
        meaning: what was understood of the mask tensors, or None where there are none.
    """

    call: AttentionCall
    owner: GraphModule
    node: Node
    wiring: Wiring
    opened: Opened | None = None
    dead: tuple[Node, ...] = ()
    repeated: tuple[Operand, Operand] | None = None
    written: tuple[AttentionCall, Wiring] | None = None
    meaning: Meaning | None = None

    def alternatives(self) -> tuple[FoundCall, ...]:
        """Other readings, to be asked when no kernel takes this one: k and v as the program has them."""
        if self.repeated is None:
            return ()
        k, v = self.repeated
        call = replace(self.call, k=spec_of(k), v=spec_of(v), enable_gqa=False)
        return (replace(self, call=call, wiring=replace(self.wiring, k=k, v=v), repeated=None),)

    def read_as(self, call: AttentionCall) -> FoundCall:
        """This reading or the alternative that ``call``, as decided, belongs to."""
        return next((one for one in (self, *self.alternatives()) if one.call.enable_gqa == call.enable_gqa), self)


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
    owners: dict[Node, GraphModule] = {}
    regions: dict[Node, Region] = {}
    torn: set[Node] = set()
    for owner, node, region in walk(gm, Region.around(_device_types(gm))):
        if node not in owners:
            owners[node], regions[node] = owner, region
        elif regions[node] != region:  # a body that several ops share, as invoke_subgraph's, is rewritten once
            torn.add(node)
    around = Surroundings(regions, {node: place for place, node in enumerate(regions)})
    for node, owner in owners.items():
        region = regions[node]
        if is_sdpa(node):
            calls.append(_sdpa(FoundCall(read_call(node, region, grad=grad), owner, node, wiring_of(node))))
        elif is_multihead(node):
            opened = open_up(owner, node, region)
            if isinstance(opened, str):
                misses.append(NearMiss(node.name, opened, source_of(node.meta)))
            else:
                found_inside, missed = _inside(opened, region)
                calls += found_inside
                misses += missed
        elif is_softmax(node):
            found = _by_hand(owner, node, around, grad)
            if isinstance(found, FoundCall):
                calls.append(found)
            else:
                misses += found
    calls = [_undecided(found) if found.node in torn else found for found in calls]
    calls = with_kinds(gm, calls)
    return Findings(tuple(calls), (*misses, *near_misses(owners)), len(owners))


def _by_hand(
    owner: GraphModule, softmax: Node, around: Surroundings, grad: bool | None
) -> FoundCall | tuple[NearMiss, ...]:
    """The attention around a softmax, or why it is none if it looks like one."""
    try:
        found = read_handwritten(softmax, around, grad)
    except RefusedError as refused:
        return near_miss(softmax, refused)
    written = (found.call, found.wiring)
    return FoundCall(found.call, owner, found.node, found.wiring, None, found.dead, found.repeated, written)


def _sdpa(found: FoundCall) -> FoundCall:
    """An SDPA call; if its k and v are repeats of fewer heads, reading those."""
    found = replace(found, written=(found.call, found.wiring))
    small = repeated_operands(found.call, found.wiring)
    if small is None:
        return found
    k, v = small
    call = replace(found.call, k=spec_of(k), v=spec_of(v), enable_gqa=True)
    wiring = replace(found.wiring, k=k, v=v)
    return replace(found, call=call, wiring=wiring, repeated=(found.wiring.k, found.wiring.v))


def _undecided(found: FoundCall) -> FoundCall:
    """A call in a body that runs under different autocast, grad mode or transforms; no kernel suits all of them."""
    context = replace(found.call.context, unreadable="the state around a body that several ops share")
    return replace(found, call=replace(found.call, context=context))


def _inside(opened: Opened, region: Region) -> tuple[list[FoundCall], list[NearMiss]]:
    """The attention inside an opened layer: SDPA, or written by hand where the layer has weights to give."""
    grad = any(isinstance(v, torch.Tensor) and v.requires_grad for v in map(value_of, opened.inputs))
    nodes = list(opened.body.graph.nodes)
    around = Surroundings(dict.fromkeys(nodes, region), {node: place for place, node in enumerate(nodes)})
    calls, misses = [], []
    for node in nodes:
        if is_sdpa(node):
            call, wiring = read_call(node, region, Pattern.MULTIHEAD, opened.node, grad), wiring_of(node)
            calls.append(FoundCall(call, opened.body, node, wiring, opened, written=(call, wiring)))
        elif is_softmax(node):
            found = _by_hand(opened.body, node, around, grad)
            if isinstance(found, FoundCall):
                meta = opened.node.meta
                call = replace(found.call, node=opened.node.name, module=module_path(meta), source=source_of(meta))
                calls.append(replace(found, call=call, opened=opened))
            else:
                misses += [replace(miss, source=source_of(opened.node.meta)) for miss in found]
    return calls, misses


def _device_types(gm: GraphModule) -> set[str]:
    values = (value_of(node) for node in gm.graph.nodes)
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


__all__ = ["Findings", "FoundCall", "find"]
