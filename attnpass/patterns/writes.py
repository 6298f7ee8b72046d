"""Does anything write into an operand between the place where the program reads it and the place where the call will?

Dynamo's graphs are not functionalised: ``mask.fill_(0)`` between the two products would reach a kernel that reads the
mask at the second one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.fx import Node

from attnpass.patterns.canonical import spelled, tensor
from attnpass.patterns.chain import Chain, Surroundings, writers_between
from attnpass.patterns.elements import RefusedError
from attnpass.patterns.operands import Traced
from attnpass.patterns.scores import Change
from attnpass.patterns.sdpa import unwrapped
from attnpass.writing import may_write


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
        target = node.kwargs.get("out", node.args[0] if node.args else None)
        read_before = {there for there, when in theirs if when < place(node)}
        if not isinstance(target, Node) or tensor(target) is None or storage_of(target) in read_before:
            raise RefusedError(node, f"`{spelled(node)}` may write into an operand between the two products")


def storage_of(node: Node) -> int:
    """Identifies the memory that a tensor lies in."""
    value = unwrapped(tensor(node))
    assert isinstance(value, Tensor)
    return int(value.untyped_storage()._cdata)
