"""Nodes that need not run, since what they are is known: most of a transformer's, and most of a Reading's time.

An allow list, by identity. Each of these functions is one op; where a node calls one on plain tensors and numbers,
outside of autocast and transforms, the value that the capture has for it will do.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.fx import Node

from attnpass.graph.values import value_of

aten = torch.ops.aten
Given = tuple[Any, ...]
Named = Mapping[str, Any]
Call = tuple[OpOverload, Given]
Rule = Callable[[Given, Named], "Call | None"]

ASKING = frozenset({"size", "numel", "dim", "stride", "storage_offset", "item"})  # methods that write nothing
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
END = 2**63 - 1  # how PyTorch spells the open end of a slice


def known_number(node: Node, known: Any) -> bool:
    """Does a node give a number that the capture has, and do nothing else?"""
    if not isinstance(known, SYMBOLIC):
        return False
    if node.op == "call_method":
        return node.target in ASKING
    return node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"


def known_call(node: Node, args: Given, kwargs: Named) -> Call | None:
    """The one op that a node is, and its arguments as they would be dispatched; None where it has to run."""
    rule = METHODS.get(str(node.target)) if node.op == "call_method" else FUNCTIONS.get(node.target)
    return None if rule is None or not args or not _plain(args[0]) else rule(args, kwargs)


def lies_as_captured(node: Node, first: Any) -> bool:
    """Is a captured value a plain tensor in memory of its own, or in that of the captured operand itself?

    Args:
        node: the node that it is the value of.
        first: the first operand as it is in this run.
    """
    known, operands = value_of(node), [value_of(each) for each in node.all_input_nodes]
    if type(known) is not FakeTensor:
        return False
    memory = known.untyped_storage()._cdata
    sharing = [each for each in operands if isinstance(each, Tensor) and each.untyped_storage()._cdata == memory]
    return not sharing or (len(sharing) == 1 and sharing[0] is first)


def _plain(value: Any) -> bool:
    tensors = value if isinstance(value, (list, tuple)) else (value,)
    return bool(tensors) and all(type(each) is FakeTensor for each in tensors)


def _is_size(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def _on_operands(op: OpOverload, *counts: int) -> Rule:
    """``op`` on so many operands: tensors, and Python's own numbers or None where the program that ran has them."""

    def rule(args: Given, kwargs: Named) -> Call | None:
        plain = all(each is None or _plain(each) or type(each) in (int, float) for each in args[1:])
        return (op, args) if len(args) in counts and not kwargs and plain else None

    return rule


def _power(args: Given, kwargs: Named) -> Call | None:
    plain = len(args) == 2 and not kwargs and type(args[1]) in (int, float)
    return (aten.pow.Tensor_Scalar, args) if plain else None


def _shaped(op: OpOverload) -> Rule:
    """A view or a copy of another shape, which is read off the result; the sizes one by one, or as one sequence."""

    def rule(args: Given, kwargs: Named) -> Call | None:
        sizes = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        return (op, (args[0], tuple(sizes))) if sizes and not kwargs and all(map(_is_size, sizes)) else None

    return rule


def _by_dims(op: OpOverload, dims: int) -> Rule:
    def rule(args: Given, kwargs: Named) -> Call | None:
        return (op, args) if len(args) == 1 + dims and not kwargs and all(type(d) is int for d in args[1:]) else None

    return rule


def _mean(args: Given, kwargs: Named) -> Call | None:
    plain = len(args) == 2 and type(args[1]) is int and set(kwargs) <= {"keepdim"}
    return (aten.mean.dim, (args[0], (args[1],), bool(kwargs.get("keepdim", False)))) if plain else None


def _joined(args: Given, kwargs: Named) -> Call | None:
    dims = [*args[1:], *kwargs.values()]
    plain = isinstance(args[0], (list, tuple)) and len(dims) == 1 and type(dims[0]) is int and set(kwargs) <= {"dim"}
    return (aten.cat.default, (args[0], dims[0])) if plain else None


def _taken(args: Given, kwargs: Named) -> Call | None:
    """``x[..., a:b]``, one slice; or new axes alone, ``x[:, None]``."""
    x, items = args[0], args[1] if len(args) == 2 and isinstance(args[1], tuple) else None
    if items is None or not all(each is None or each is Ellipsis or isinstance(each, slice) for each in items):
        return None
    parts = [i for i, each in enumerate(items) if isinstance(each, slice) and each != slice(None)]
    if not parts:
        return (aten.unsqueeze.default, (x, 0)) if None in items and not kwargs else None  # its form is a view
    bounds = items[parts[0]]
    if len(parts) > 1 or None in items or bounds.step is not None:
        return None
    start, stop = 0 if bounds.start is None else bounds.start, END if bounds.stop is None else bounds.stop
    axis = parts[0] if Ellipsis not in items[: parts[0]] else x.ndim - len(items) + parts[0]
    return (aten.slice.Tensor, (x, axis, start, stop)) if _is_size(start) and _is_size(stop) else None


FUNCTIONS: Mapping[Any, Rule] = {
    F.linear: _on_operands(aten.linear.default, 2, 3),
    F.silu: _on_operands(aten.silu.default, 1),
    F.gelu: _on_operands(aten.gelu.default, 1),
    operator.add: _on_operands(aten.add.Tensor, 2),
    operator.sub: _on_operands(aten.sub.Tensor, 2),
    operator.mul: _on_operands(aten.mul.Tensor, 2),
    operator.truediv: _on_operands(aten.div.Tensor, 2),
    operator.neg: _on_operands(aten.neg.default, 1),
    operator.matmul: _on_operands(aten.matmul.default, 2),
    torch.matmul: _on_operands(aten.matmul.default, 2),
    torch.rsqrt: _on_operands(aten.rsqrt.default, 1),
    torch.cat: _joined,
    operator.getitem: _taken,
}
METHODS: Mapping[str, Rule] = {
    "pow": _power,
    "matmul": _on_operands(aten.matmul.default, 2),
    "mean": _mean,
    "view": _shaped(aten.view.default),
    "reshape": _shaped(aten.reshape.default),
    "expand": _shaped(aten.expand.default),
    "transpose": _by_dims(aten.transpose.int, 2),
    "unsqueeze": _by_dims(aten.unsqueeze.default, 1),
}
