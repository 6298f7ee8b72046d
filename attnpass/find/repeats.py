"""Calls of SDPA whose key/value heads were repeated for it: the same call on the heads before that."""

from __future__ import annotations

import torch

from attnpass.find.gqa import HEADS, Repeated, undo_repeat
from attnpass.find.handwritten.operands import Held
from attnpass.graph.operand import Operand
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.call import AttentionCall
from attnpass.ir.wiring import Wiring

LABELS = ("b", HEADS, "s", "d")


def repeated_operands(
    call: AttentionCall, values: Wiring[Value], held: Held
) -> tuple[Operand[Value], Operand[Value]] | None:
    """K and V before their heads were repeated, as (B, Hkv, S, D); None if they were not, or not alike."""
    if call.k.ndim != 4 or call.v.ndim != 4 or call.enable_gqa or call.context.functorch:
        return None
    if not known_equal(call.H, call.Hkv) or known_equal(call.H, 1):
        return None
    k, v = (undo_repeat(operand.node, LABELS, held) for operand in (values.k, values.v))
    if k is None or v is None or not known_equal(_heads(k), _heads(v)):
        return None
    return _placed(k), _placed(v)


def _heads(repeated: Repeated) -> int | torch.SymInt:
    value = tensor(repeated.source)
    assert value is not None
    return value.shape[repeated.labels.index(HEADS)]


def _placed(repeated: Repeated) -> Operand[Value]:
    operand = Operand(repeated.source)
    order = [repeated.labels.index(label) for label in LABELS]
    return operand if order == [0, 1, 2, 3] else operand.then(torch.ops.aten.permute.default, tuple(order))
