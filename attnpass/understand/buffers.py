"""Registered buffers whose values are assumed, under a check at run time.

GPT-2's old causal mask is a buffer, so for Dynamo's graph it is an input like any other. Its values may be used only as
long as the very same, unmodified tensor is passed. A guard on the compiled code looks at identity and version counter
before every call. When it fails, the graph is compiled once more and the buffer is not trusted again at that place: a
program that changes its buffers pays for one compilation and no more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._guards import CompileContext, TracingContext
from torch.fx import Node

from attnpass.index.arrays import Array
from attnpass.index.constants import recognised

Place = tuple[Any, str]

_distrusted: set[Place] = set()
PATH = re.compile(r"[LG](\.\w+|\[(\d+|'[^'\\]*'|\"[^\"\\]*\")\])+")  # attributes and items, nothing is called


def forget() -> None:
    """Trust every buffer again."""
    _distrusted.clear()


def distrust(place: Place) -> None:
    """A buffer changed: what stands here is not assumed again."""
    _distrusted.add(place)


@dataclass(slots=True)
class Assumptions:
    """The buffers of one graph whose values were read.

    Attributes:
        used: each such input, with the tensor that it was.
        asked: what each input was recognised as.
    """

    used: dict[Node, Tensor] = field(default_factory=dict)
    asked: dict[Node, Array | None] = field(default_factory=dict)

    def array(self, node: Node) -> Array | None:
        """The array that an input is, if it is a registered buffer with values that mean something."""
        if node not in self.asked:
            tensor = _buffer(node)
            self.asked[node] = None if tensor is None else recognised(tensor)
            if tensor is not None and self.asked[node] is not None:
                self.used[node] = tensor
        return self.asked[node]


def _buffer(node: Node) -> Tensor | None:
    """The real tensor of an input that is a module's registered buffer, if it may be trusted."""
    argument = node.meta.get("grapharg")
    if node.op != "placeholder" or argument is None or TracingContext.try_get() is None:
        return None
    place = place_of(argument.source)
    if "_buffers[" not in place[1] or place[0] is None or place in _distrusted or not PATH.fullmatch(place[1]):
        return None
    tensor = argument.example
    plain = type(tensor) in (torch.Tensor, torch.nn.Buffer) and not tensor.is_inference()
    return tensor if plain and not tensor.requires_grad else None


def place_of(source: Any) -> Place:
    """Where a buffer is read: the frame that is compiled, and the path to the buffer."""
    compile_id = CompileContext.current_compile_id()
    name = source.name
    return (compile_id.frame_id if compile_id else None, str(name() if callable(name) else name))
