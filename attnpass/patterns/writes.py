"""Does anything write into an operand between the place where the program reads it and the place where the call will?

Dynamo's graphs are not functionalised: ``mask.fill_(0)`` between the two products would reach a kernel that reads the
mask at the second one.
"""

from __future__ import annotations

from collections.abc import Sequence

from attnpass.patterns.canonical import spelled
from attnpass.patterns.chain import Chain, Surroundings, writers_between
from attnpass.patterns.elements import RefusedError
from attnpass.patterns.operands import Traced
from attnpass.patterns.scores import Change
from attnpass.writes import may_write, storage_of, written


def refuse_writes(chain: Chain, operands: Sequence[Traced], changes: Sequence[Change], around: Surroundings) -> None:
    """Refuse a chain if an operand may change after the program read it and before the call reads it.

    Args:
        chain: the chain.
        operands: q, k and v.
        changes: the masks and biases.
        around: the graph around it.

    Raises:
        RefusedError: naming the node that writes.
    """
    place = around.order.__getitem__
    first, last = chain.first.node, chain.last.node
    reads = [(change.node, place(change.at)) for change in changes]
    for traced, reader in zip(operands, (first, first, last), strict=True):
        reads.append((traced.node, min(map(place, (reader, *traced.passed)))))
    since = min(when for _, when in reads)
    theirs = [(storage_of(node), when) for node, when in reads]
    for node in writers_between(chain, since, around):
        if not may_write(node):
            continue
        read_before = {there for there, when in theirs if when < place(node)}
        if any(storage_of(target) in (None, *read_before) for target in written(node)) or None in read_before:
            raise RefusedError(node, f"`{spelled(node)}` may write into an operand between the two products")
