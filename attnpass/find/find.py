"""find: graph -> attention calls and near misses. Read only.

A call of SDPA is a node of the program; attention written by hand is found in the program's `Reading`. Both end as a
`FoundCall`: what is computed, the nodes of the program that hold the operands at that place, and the operands' values.

To add a spelling, write a file beside `sdpa` that makes an `AttentionCall` of a node or value, and name it in `find`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from attnpass.find.found import Findings, FoundCall, NearMiss
from attnpass.find.handwritten.chain import is_softmax
from attnpass.find.handwritten.links import RefusedError
from attnpass.find.handwritten.read import read_handwritten
from attnpass.find.kind.kind import with_kinds
from attnpass.find.multihead import Opened, is_multihead, open_up
from attnpass.find.near_misses import near_miss, near_misses
from attnpass.find.present import Present
from attnpass.find.repeats import repeated_operands
from attnpass.find.sdpa import is_sdpa, read_call, wiring_of
from attnpass.graph import read
from attnpass.graph.operand import Operand, spec_of
from attnpass.graph.regions import Region, walk
from attnpass.graph.value import Value
from attnpass.graph.values import module_path, source_of, value_of
from attnpass.ir.call import Pattern
from attnpass.ir.wiring import Wiring

if TYPE_CHECKING:
    pass


BEHIND = 3  # ops behind an attention that another layout may turn from copies into views: transposes and a reshape


def find(gm: GraphModule, grad: bool | None = None) -> Findings:
    """Every attention call of ``gm`` and of the bodies of its higher-order ops, in program order.

    ``grad`` says whether gradients flow, where the values on the nodes do not know it.
    """
    owners: dict[Node, GraphModule] = {}
    regions: dict[Node, Region] = {}
    torn: set[Node] = set()
    for owner, node, region in walk(gm, Region.around(_device_types(gm))):
        if node not in owners:
            owners[node], regions[node] = owner, region
        elif regions[node] != region:  # a body that several ops share, as invoke_subgraph's, is rewritten once
            torn.add(node)
    layers = {node: open_up(owner, node, regions[node]) for node, owner in owners.items() if is_multihead(node)}
    finder = _Finder(_with_layers(owners, layers), regions, layers, grad)
    finder.search(gm)
    calls = [_undecided(found) if found.node in torn else found for found in finder.calls]
    calls = with_kinds(gm, finder.reading, calls)
    misses = (*finder.misses, *near_misses(finder.reading))
    return Findings(tuple(calls), misses, len(owners), finder.reading)


class _Finder:
    """The search through one graph."""

    def __init__(
        self,
        owners: Mapping[Node, GraphModule],
        regions: dict[Node, Region],
        layers: Mapping[Node, Opened | str],
        grad: bool | None,
    ) -> None:
        self.calls: list[FoundCall] = []
        self.misses: list[NearMiss] = []
        self._owners, self._regions, self._layers, self._grad = owners, regions, layers, grad
        self._inside: dict[Node, Opened] = {}
        for node, opened in layers.items():
            if isinstance(opened, Opened):
                for inner in opened.body.graph.nodes:
                    self._inside[inner] = opened
                    regions[inner] = regions[node]

    def search(self, gm: GraphModule) -> None:
        self.reading = read(gm, self._regions, self._opened)
        softmaxes: dict[Node | None, list[Value]] = {}
        for value in self.reading.values:
            named = value.maker is not None and not isinstance(value.maker.target, HigherOrderOperator)
            if named and is_softmax(value):
                softmaxes.setdefault(value.maker, []).append(value)
        for node in self._owners:
            layer = self._layers.get(node)
            if is_sdpa(node) and node in self.reading.places:
                self.calls.append(self._sdpa(node))
            elif isinstance(layer, str):
                self.misses.append(NearMiss(node.name, layer, source_of(node.meta)))
            for softmax in softmaxes.get(node, ()):
                self._by_hand(softmax)
        order = {node: place for place, node in enumerate(self._owners)}
        self.calls.sort(key=lambda found: order[found.node])  # by where they end: the first makes what is shared

    def _opened(self, gm: GraphModule, node: Node) -> GraphModule | None:
        opened = self._layers.get(node)
        return opened.body if isinstance(opened, Opened) else None

    def _sdpa(self, node: Node) -> FoundCall:
        """An SDPA call; if its k and v are repeats of fewer heads, reading those."""
        opened = self._inside.get(node)
        region = self._regions[node]
        if opened is None:
            call = read_call(node, region, grad=self._grad)
        else:
            call = read_call(node, region, Pattern.MULTIHEAD, opened.node, _any_grad(opened))
        wiring = wiring_of(node)
        found = FoundCall(call, self._owners[node], node, wiring, self._values(wiring, node), opened)
        found = self._placed(found)
        small = None
        if found.values is not None and opened is None:
            small = repeated_operands(found.call, found.values, Present(self.reading, node))
        if small is None or found.values is None:
            return found
        k, v = small
        call = replace(found.call, k=spec_of(k), v=spec_of(v), enable_gqa=True)
        values: Wiring[Value] = replace(found.values, k=k, v=v)
        held = Present(self.reading, node).node
        small_k, small_v = k.map_nodes(held), v.map_nodes(held)
        wiring = replace(wiring, k=small_k, v=small_v)
        return replace(found, call=call, wiring=wiring, values=values, repeated=(found.wiring.k, found.wiring.v))

    def _by_hand(self, softmax: Value) -> None:
        """The attention around a softmax, or why it is none if it looks like one."""
        try:
            hand = read_handwritten(softmax, self.reading, self._grad)
        except RefusedError as refused:
            self.misses += near_miss(softmax, refused)
            return
        held = Present(self.reading, hand.node).node
        repeated: tuple[Operand[Node], Operand[Node]] | None = None
        if hand.repeated is not None:
            repeated = hand.repeated[0].map_nodes(held), hand.repeated[1].map_nodes(held)
        opened, call = self._inside.get(hand.node), hand.call
        if opened is not None:
            meta = opened.node.meta
            call = replace(call, node=opened.node.name, module=module_path(meta), source=source_of(meta))
        owner, wiring = self._owners[hand.node], hand.values.map_nodes(held)
        found = FoundCall(call, owner, hand.node, wiring, hand.values, opened, hand.dead, repeated)
        self.calls.append(self._placed(found))

    def _placed(self, found: FoundCall) -> FoundCall:
        before, behind = self.reading.writes_before(found.node), self.reading.written_behind(found.node, BEHIND)
        return replace(found, epoch=before, changed=behind)

    def _values(self, wiring: Wiring[Node], place: Node) -> Wiring[Value] | None:
        """The operands of an SDPA node as values."""
        values = {node: self.reading.value_at(node, place) for node in wiring.nodes()}
        if any(value is None for value in values.values()):
            return None
        return wiring.map_nodes(values.__getitem__)  # type: ignore[arg-type]


def _with_layers(owners: Mapping[Node, GraphModule], layers: Mapping[Node, Opened | str]) -> Mapping[Node, GraphModule]:
    """The nodes of opened layers in the place of the layer, so that what is found stands in program order."""
    result: dict[Node, GraphModule] = {}
    for node, owner in owners.items():
        opened = layers.get(node)
        if isinstance(opened, Opened):
            result.update(dict.fromkeys(opened.body.graph.nodes, opened.body))
        result[node] = owner
    return result


def _any_grad(opened: Opened) -> bool:
    return any(isinstance(v, torch.Tensor) and v.requires_grad for v in map(value_of, opened.inputs))


def _undecided(found: FoundCall) -> FoundCall:
    """A call in a body that runs under different autocast, grad mode or transforms; no kernel suits all of them."""
    context = replace(found.call.context, unreadable="the state around a body that several ops share")
    return replace(found, call=replace(found.call, context=context))


def _device_types(gm: GraphModule) -> set[str]:
    values = (value_of(node) for node in gm.graph.nodes)
    return {value.device.type for value in values if isinstance(value, torch.Tensor)}


__all__ = ["Findings", "FoundCall", "find"]
