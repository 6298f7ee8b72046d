"""Nodes that need not run, since what they are is known: half of a transformer's, and half of a Reading's time.

An allow list, by identity. Each of these functions is one op that gives a tensor of its own; where a node calls one on
plain tensors and numbers, outside of autocast and transforms, the value that the capture has for it will do.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.fx import Node

from attnpass.graph.regions import Region

aten = torch.ops.aten
FUNCTIONS: Mapping[Any, OpOverload] = {
    F.linear: aten.linear.default,
    F.silu: aten.silu.default,
    F.gelu: aten.gelu.default,
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.matmul: aten.matmul.default,
    operator.neg: aten.neg.default,
    torch.matmul: aten.matmul.default,
    torch.rsqrt: aten.rsqrt.default,
}
METHODS: Mapping[str, OpOverload] = {"pow": aten.pow.Tensor_Scalar, "matmul": aten.matmul.default}
UNARY = frozenset({F.silu, F.gelu, operator.neg, torch.rsqrt})
ASKING = frozenset({"size", "numel", "dim", "stride", "storage_offset", "item"})  # methods that write nothing
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def known_number(node: Node, known: Any) -> bool:
    """Does a node give a number that the capture has, and do nothing else?"""
    if not isinstance(known, SYMBOLIC):
        return False
    if node.op == "call_method":
        return node.target in ASKING
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"


def known_op(node: Node, args: Sequence[Any], kwargs: Mapping[str, Any], region: Region) -> OpOverload | None:
    """The one op that a node is, if it gives a tensor of its own; None where it has to run."""
    op = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    if op is None or kwargs or region.autocast or region.functorch:
        return None
    operands = (1,) if node.target in UNARY else (2, 3) if node.target is F.linear else (2,)
    if len(args) not in operands or type(args[0]) is not FakeTensor:
        return None
    numbers = (int, float) if op not in (aten.matmul.default, aten.linear.default) else type(None)
    for each in args[1:]:
        is_tensor = type(each) is FakeTensor and op is not aten.pow.Tensor_Scalar
        if not is_tensor and (isinstance(each, bool) or not isinstance(each, numbers)):
            return None
    return op


def is_own(known: Any, args: Sequence[Any]) -> bool:
    """Is a captured value a plain tensor in memory of its own?"""
    if type(known) is not FakeTensor:
        return False
    memory = known.untyped_storage()._cdata
    return all(each.untyped_storage()._cdata != memory for each in args if isinstance(each, Tensor))
