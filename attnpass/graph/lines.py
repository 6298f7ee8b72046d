"""One node of a graph as a line of Python, as reports show it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.fx import Node

from attnpass.graph.symbolic import shown
from attnpass.graph.tensor import dtype_name
from attnpass.graph.values import tensor


def line(node: Node) -> str:
    """``add: "f32[2, 4]" = _operator.add(x, 1)``."""
    made = tensor(node)
    value = ""
    if made is not None:
        value = f': "{dtype_name(made.dtype)}[{", ".join(str(shown(size)) for size in made.shape)}]"'
    return f"{node.name}{value} = {_right_side(node)}"


def _right_side(node: Node) -> str:
    if node.op in ("placeholder", "get_attr"):
        return str(node.target)
    args = [_spelled(arg) for arg in node.args]
    named = [f"{name}={_spelled(value)}" for name, value in node.kwargs.items()]
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join([*args[1:], *named])})"
    return f"{_function(node.target)}({', '.join([*args, *named])})"


def _function(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    if isinstance(target, str):
        return target
    name = getattr(target, "__name__", str(target))
    module = getattr(target, "__module__", None)
    return f"{module.replace('_operator', 'operator')}.{name}" if module else str(name)


def _spelled(value: Any) -> str:
    if isinstance(value, Node):
        return value.name
    if isinstance(value, (tuple, list)):
        return _bracketed(map(_spelled, value), "()" if isinstance(value, tuple) else "[]")
    if isinstance(value, Mapping):
        return _bracketed((f"{_spelled(key)}: {_spelled(each)}" for key, each in value.items()), "{}")
    if isinstance(value, slice):
        return f"slice({_spelled(value.start)}, {_spelled(value.stop)}, {_spelled(value.step)})"
    return str(value) if isinstance(value, (torch.dtype, torch.device, torch.SymInt)) else repr(value)


def _bracketed(parts: Iterable[str], brackets: str) -> str:
    inside = list(parts)
    comma = "," if brackets == "()" and len(inside) == 1 else ""
    return f"{brackets[0]}{', '.join(inside)}{comma}{brackets[1]}"
