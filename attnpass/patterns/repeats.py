"""Calls of SDPA whose key/value heads were repeated for it: the same call on the heads before that."""

from __future__ import annotations

import torch
from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.patterns.canonical import tensor
from attnpass.patterns.gqa import HEADS, Repeated, undo_repeat
from attnpass.patterns.wiring import Operand, Wiring
from attnpass.symbolic import known_equal
from attnpass.writes import may_write, storage_of, written

LABELS = ("b", HEADS, "s", "d")


def repeated_operands(call: AttentionCall, wiring: Wiring) -> tuple[Operand, Operand] | None:
    """K and v before their heads were repeated, as (B, Hkv, S, D); None if they were not, or not alike."""
    if call.k.ndim != 4 or call.v.ndim != 4 or call.enable_gqa or call.context.functorch:
        return None
    if not known_equal(call.H, call.Hkv) or known_equal(call.H, 1):
        return None
    found = [undo_repeat(operand.node, LABELS) for operand in (wiring.k, wiring.v)]
    k, v = found
    if k is None or v is None or not known_equal(_heads(k), _heads(v)):
        return None
    if any(_may_change(repeated, operand.node) for repeated, operand in ((k, wiring.k), (v, wiring.v))):
        return None
    return _placed(k), _placed(v)


def _heads(repeated: Repeated) -> int | torch.SymInt:
    value = tensor(repeated.source)
    assert value is not None
    return value.shape[repeated.labels.index(HEADS)]


def _placed(repeated: Repeated) -> Operand:
    operand = Operand(repeated.source)
    order = [repeated.labels.index(label) for label in LABELS]
    return operand if order == [0, 1, 2, 3] else operand.then(torch.ops.aten.permute.default, tuple(order))


def _may_change(repeated: Repeated, repeat: Node) -> bool:
    """Could the source be written to after the program read it and before its last reader did?"""
    last = max(repeat.users)
    node = min(repeated.passed)
    storage = storage_of(repeated.source)
    while node is not last:
        if may_write(node) and any(storage_of(target) in (None, storage) for target in written(node)):
            return True
        node = node.next
    return storage is None
