"""find: graph -> attention calls and near misses. Read only.

A call of SDPA is a node of the program; attention written by hand is found in the program's `Reading`. Both end as a
`FoundCall`: what is computed, the nodes of the program that hold the operands at that place, and the operands' values.

To add a spelling, write a file beside `sdpa` that makes an `AttentionCall` of a node or value, and name it in `find`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from attnpass.find.chosen import NotKnownError, chosen_by, read_chosen
from attnpass.find.found import Findings, FoundCall, NearMiss
from attnpass.find.handwritten.links import RefusedError
from attnpass.find.handwritten.read import read_handwritten
from attnpass.find.handwritten.softmaxes import Softmax, read_softmax
from attnpass.find.kind import with_kinds
from attnpass.find.multihead import Opened, is_multihead, open_up
from attnpass.find.near_misses import near_miss, near_misses
from attnpass.find.present import Present
from attnpass.find.repeats import repeated_operands
from attnpass.find.sdpa import is_sdpa, read_call, wiring_of
from attnpass.graph.operand import spec_of
from attnpass.graph.reading import read
from attnpass.graph.regions import Region, walk
from attnpass.graph.value import Value
from attnpass.graph.values import module_path, source_of, value_of
from attnpass.ir.call import Pattern
from attnpass.ir.wiring import Wiring

BEHIND = 3  # ops behind an attention that another layout may turn from copies into views: transposes and a reshape


def find(gm: GraphModule, grad: bool | None = None) -> Findings:
    """Every attention call of ``gm`` and of the bodies of its higher-order ops, in program order.

    ``grad`` says whether gradients flow, where the values on the nodes do not know it.
    """
    regions: dict[Node, Region] = {}
    torn: set[Node] = set()
    for _, node, region in walk(gm, Region.around(_device_types(gm))):
        if regions.setdefault(node, region) != region:  # a body that several ops share is rewritten once
            torn.add(node)
    layers = {node: open_up(node, region) for node, region in regions.items() if is_multihead(node)}
    finder = _Finder(regions, layers, grad)
    finder.search(gm)
    calls = [_undecided(found) if found.node in torn else found for found in finder.calls]
    calls = with_kinds(gm, finder.reading, calls)
    misses = (*finder.misses, *near_misses(finder.reading))
    return Findings(tuple(calls), misses, len(regions), finder.reading)


class _Finder:
    """The search through one graph."""

    def __init__(self, regions: Mapping[Node, Region], layers: Mapping[Node, Opened | str], grad: bool | None) -> None:
        self.calls: list[FoundCall] = []
        self.misses: list[NearMiss] = []
        self._layers, self._grad = layers, grad
        self._inside: dict[Node, Opened] = {}
        self._regions: dict[Node, Region] = {}  # in program order, the nodes of an opened layer in its place
        for node, region in regions.items():
            opened = layers.get(node)
            if isinstance(opened, Opened):
                self._inside.update(dict.fromkeys(opened.body.graph.nodes, opened))
                self._regions.update(dict.fromkeys(opened.body.graph.nodes, region))
            self._regions[node] = region

    def search(self, gm: GraphModule) -> None:
        self.reading = read(gm, self._regions, self._opened)
        softmaxes: dict[Node | None, list[Softmax]] = {}
        for value in self.reading.values:
            named = value.maker is not None and not isinstance(value.maker.target, HigherOrderOperator)
            softmax = read_softmax(value) if named else None
            if softmax is not None:
                softmaxes.setdefault(value.maker, []).append(softmax)
        for node in self._regions:
            layer = self._layers.get(node)
            if is_sdpa(node) and node in self.reading.places:
                self.calls.append(self._sdpa(node))
            elif chosen_by(node) and node in self.reading.places:
                self._chosen(gm, node)
                continue  # what an op is made of is not the program's
            elif isinstance(layer, str):
                self.misses.append(NearMiss(node.name, layer, source_of(node.meta)))
                continue  # of what is inside, that is all there is to say
            for softmax in softmaxes.get(node, ()):
                self._by_hand(softmax)
        order = {node: place for place, node in enumerate(self._regions)}
        self.calls.sort(key=lambda found: order[found.node])  # by where they end: the first makes what is shared

    def _opened(self, gm: GraphModule, node: Node) -> GraphModule | None:
        opened = self._layers.get(node)
        return opened.body if isinstance(opened, Opened) else None

    def _sdpa(self, node: Node) -> FoundCall:
        """An SDPA call; if its k and v are repeats of fewer heads, reading those."""
        opened, region, wiring = self._inside.get(node), self._regions[node], wiring_of(node)
        if opened is not None:
            call = read_call(node, region, Pattern.MULTIHEAD, _any_grad(opened))
            return self._placed(FoundCall(call, node, wiring, self._values(wiring, node)))
        call = read_call(node, region, grad=self._grad)
        return self._placed(self._on_fewer_heads(FoundCall(call, node, wiring, self._values(wiring, node))))

    def _on_fewer_heads(self, found: FoundCall) -> FoundCall:
        present = Present(self.reading, found.node)
        small = None if found.values is None else repeated_operands(found.call, found.values, present)
        if small is None or found.values is None:
            return found
        k, v = small
        return replace(
            found,
            call=replace(found.call, k=spec_of(k), v=spec_of(v), enable_gqa=True),
            wiring=replace(found.wiring, k=k.map_nodes(present.node), v=v.map_nodes(present.node)),
            values=replace(found.values, k=k, v=v),
            repeated=(found.wiring.k, found.wiring.v),
        )

    def _chosen(self, gm: GraphModule, node: Node) -> None:
        """A call whose kernel the program names itself, or what of it is not known."""
        try:
            read = read_chosen(gm, node, self.reading, self._grad)
        except NotKnownError as unknown:
            reason = f"the program calls {chosen_by(node)} itself; it is left as it is: {unknown}"
            self.misses.append(NearMiss(node.name, reason, source_of(node.meta)))
            return
        values = self._values(read.wiring, read.node)
        found = FoundCall(read.call, read.node, read.wiring, values, lse=read.lse, dead=read.dead)
        self.calls.append(self._placed(found))

    def _by_hand(self, softmax: Softmax) -> None:
        """The attention around a softmax, or why it is none if it looks like one."""
        try:
            self.calls.append(self._placed(read_handwritten(softmax, self.reading, self._grad)))
        except RefusedError as refused:
            self.misses += near_miss(softmax.node, refused)

    def _placed(self, found: FoundCall) -> FoundCall:
        """The call with where it stands; in an opened layer, that is where the user's program has the layer."""
        reading, opened, call = self.reading, self._inside.get(found.node), found.call
        if opened is not None:
            meta = opened.node.meta
            call = replace(call, node=opened.node.name, module=module_path(meta), source=source_of(meta))
        before, behind = reading.writes_before(found.node), reading.written_behind(found.node, BEHIND)
        return replace(found, call=call, opened=opened, epoch=before, changed=behind)

    def _values(self, wiring: Wiring[Node], place: Node) -> Wiring[Value] | None:
        """The operands of an SDPA node as values."""
        values = {node: self.reading.value_at(node, place) for node in wiring.nodes()}
        if any(value is None for value in values.values()):
            return None
        return wiring.map_nodes(values.__getitem__)  # type: ignore[arg-type]


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
