"""Self-attention or cross-attention: does K come from Q's sequence? Proved from the graph, or unknown.

- **self**: everything that Q is made from, K is made from too (`attnpass.find.kind.origin`). A decode step whose K is a
  cache joined with this step's key is self-attention.
- **cross**: K is projected here, and its tokens and Q's come from different inputs (`attnpass.find.kind.lineage`).
- **unknown**: neither is proved, as where Q and K are inputs of the graph themselves. Lengths prove nothing: with a
  cache or pooled keys, self-attention has Sq and Sk that differ.

What happened before the graph, such as in front of a graph break, is out of sight: two inputs count as two sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.fx import GraphModule

from attnpass.find.found import FoundCall
from attnpass.find.kind.lineage import Lineages
from attnpass.find.kind.origin import origin_of, same_origin
from attnpass.graph.reading import Reading
from attnpass.ir.call import Kind


def with_kinds(gm: GraphModule, reading: Reading, calls: Sequence[FoundCall]) -> list[FoundCall]:
    """The same calls with what is proved about where their K comes from. Read only; adds no guard."""
    known = [_with_kind(found, None) for found in calls]
    if all(found.call.kind is Kind.SELF for found in known):
        return known  # the usual model: no need to follow the whole graph
    outputs = {reading.result(found.node): found.values.q.node for found in calls if found.values is not None}
    lineages = Lineages.of(reading, {out: q for out, q in outputs.items() if out is not None}, gm.graph)
    return [_with_kind(found, lineages) for found in calls]


def _with_kind(found: FoundCall, lineages: Lineages | None) -> FoundCall:
    call = found.call
    if call.context.functorch or call.context.subclass or found.values is None:
        return found
    q, k = found.values.q.node, found.values.k.node
    kind = Kind.UNKNOWN
    if same_origin(call, q, k):
        kind = Kind.SELF
    elif lineages is not None and lineages.apart(q, k) and origin_of(k).projected:
        kind = Kind.CROSS
    return replace(found, call=replace(call, kind=kind))
