"""What a node of a graph carries: its fake value, its source line, its module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.graph.value import Value


@dataclass(frozen=True, slots=True)
class Source:
    """Where a node stands in the user's program."""

    file: str = ""
    line: int = 0
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "unknown source"


def value_of(node: Node) -> Any:
    """The fake value of a node: Dynamo keeps it in ``example_value``, torch.export in ``val``."""
    return node.meta.get("example_value", node.meta.get("val"))


def tensor(holder: Any) -> Tensor | None:
    """The fake tensor of a node or of a value of a Reading; None for anything else."""
    found = holder.fake if isinstance(holder, Value) else value_of(holder) if isinstance(holder, Node) else None
    return found if isinstance(found, Tensor) else None


def unwrapped(value: Any) -> Any:
    """The tensor inside functorch's wrappers; anything else as it is."""
    while isinstance(value, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return value


_FRAME = re.compile(r'File "(.*)", line (\d+), in (.*)')
_LIBRARY = re.compile(
    r"[/\\](?:torch|einops|opt_einsum)[/\\]"
)  # what a model is written with; a line of it says nothing
_STRUCTURE = re.compile(r"\.(?:__dict__\['_modules'\]|_modules)\['([^']+)'\]|\['([^']+)'\]|\[(\d+)\]")


def source_of(meta: Mapping[str, Any]) -> Source:
    """The innermost frame of the user's program that made a node, not of a library; empty if the code has no file."""
    frames = _FRAME.findall(meta.get("stack_trace") or "")
    if not frames:
        return Source()
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])]
    file, line, function = (own or frames)[-1]
    return Source(file, int(line), function.strip())


def module_path(meta: Mapping[str, Any]) -> str:
    """``"layers.0.attn"`` from Dynamo's ``L['self'].layers.0.attn`` or torch.export's plain path; "" at the top."""
    stack = meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = str(list(stack.values())[-1][0])
    path = re.sub(r"^[LG]\['[^']*'\]", "", path)
    path = _STRUCTURE.sub(lambda m: "." + next(group for group in m.groups() if group), path)
    return path.strip(".")


def attribute(module: Any, path: str) -> Any:
    """What a ``get_attr`` node with this path reads; None if it is not there."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def spelled(node: Node) -> str:
    """The operation as the user would recognise it, for messages; the node's own name if it has no better one."""
    target = node.target
    if isinstance(target, str):
        return target
    if target is getattr and len(node.args) > 1:
        return str(node.args[1])
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).partition("::")[2]
    return str(getattr(target, "__name__", target))
