"""Self-attention or cross-attention: does K come from Q's sequence? Proved from the graph, or unknown.

- **self**: everything that Q is made from, K is made from too (`attnpass.patterns.origin`). A decode step whose K is a
  cache joined with this step's key is self-attention.
- **cross**: K is projected here, and its tokens and Q's come from different inputs (`attnpass.patterns.lineage`).
- **unknown**: neither is proved, as where Q and K are inputs of the graph themselves. Lengths prove nothing: with a
  cache or pooled keys, self-attention has Sq and Sk that differ.

What happened before the graph, such as in front of a graph break, is out of sight: two inputs count as two sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch.fx import GraphModule

from attnpass.call import Kind
from attnpass.patterns.lineage import Lineages
from attnpass.patterns.origin import Origins, same_origin

if TYPE_CHECKING:
    from attnpass.patterns import FoundCall


def with_kinds(gm: GraphModule, calls: Sequence[FoundCall]) -> list[FoundCall]:
    """The same calls with what is proved about where their K comes from. Read only; adds no guard."""
    alone = Origins({})
    known = [_with_kind(found, alone, apart=False) for found in calls]
    if all(found.call.kind is Kind.SELF for found in known):
        return known  # the usual model: no need to follow the whole graph
    lineages = Lineages(calls)
    lineages.trace(gm)
    origins = Origins({inside: outer for inside, outer in lineages.outside.items() if outer is not None})
    return [_with_kind(found, origins, lineages.apart.get(found.node, False)) for found in calls]


def _with_kind(found: FoundCall, origins: Origins, apart: bool) -> FoundCall:
    call, q, k = found.call, found.wiring.q.node, found.wiring.k.node
    if call.context.functorch or call.context.subclass:
        return found
    kind = Kind.UNKNOWN
    if same_origin(origins, call, q, k, found.node):
        kind = Kind.SELF
    elif apart and origins.of(k, found.node).projected:
        kind = Kind.CROSS
    return replace(found, call=replace(call, kind=kind))
