"""Registered buffers whose values are assumed, under a check at run time.

GPT-2's old causal mask is a buffer, so for Dynamo's graph it is an input like any other. Its values may be used only as
long as the very same, unmodified tensor is passed. A guard on the compiled code looks at identity and version counter
before every call. When it fails, the graph is compiled once more and the buffer is not trusted again at that place: a
program that changes its buffers pays for one compilation and no more.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._guards import CompileContext, TracingContext
from torch.fx import Node

from attnpass.masks.arrays import Array
from attnpass.masks.constants import recognised
from attnpass.staleness import add_check

_distrusted: set[tuple[Any, str]] = set()
PATH = re.compile(r"[LG](\.\w+|\[(\d+|'[^'\\]*'|\"[^\"\\]*\")\])+")  # attributes and items, nothing is called


def forget() -> None:
    """Trust every buffer again."""
    _distrusted.clear()


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

    def guard(self) -> None:
        """Let the code being compiled by Dynamo run only while the buffers are what they were."""
        context = TracingContext.try_get()
        if context is None:
            return
        for node, tensor in self.used.items():
            source = node.meta["grapharg"].source
            unchanged = _same_tensor(tensor, _place(source))

            def create(builder: Any, guard: Any, unchanged: Callable[[Any, Any], bool] = unchanged) -> None:
                known = {**builder.scope, "L": None}  # the frame's own values come with each call
                check = partial(unchanged, known)
                add_check(builder.guard_manager.root, check, "attnpass: a buffer whose values were read is unchanged")

            context.guards_context.dynamo_guards.add(source.make_guard(create))


def _buffer(node: Node) -> Tensor | None:
    """The real tensor of an input that is a module's registered buffer, if it may be trusted."""
    argument = node.meta.get("grapharg")
    if node.op != "placeholder" or argument is None or TracingContext.try_get() is None:
        return None
    place = _place(argument.source)
    if "_buffers[" not in place[1] or place[0] is None or place in _distrusted or not PATH.fullmatch(place[1]):
        return None
    tensor = argument.example
    plain = type(tensor) in (torch.Tensor, torch.nn.Buffer) and not tensor.is_inference()
    return tensor if plain and not tensor.requires_grad else None


def _place(source: Any) -> tuple[Any, str]:
    """Where a buffer is read: the frame that is compiled, and the path to the buffer."""
    compile_id = CompileContext.current_compile_id()
    name = source.name
    return (compile_id.frame_id if compile_id else None, str(name() if callable(name) else name))


def _same_tensor(tensor: Tensor, place: tuple[Any, str]) -> Callable[[dict[str, Any], Any], bool]:
    """Is what stands at ``place``, among what is known beside the frame's values and in these, the same as now?

    A check of the whole frame. Beside the buffer itself PyTorch 2.9 leaves it out where no dictionary on the way there
    was written to, and a buffer that is changed in place is missed (``use_recursive_dict_tags_for_guards``).
    """
    reference, version, path = weakref.ref(tensor), tensor._version, compile(place[1], "<buffer>", "eval")

    def unchanged(known: dict[str, Any], frame: Any) -> bool:
        try:
            value = eval(path, known, {"L": frame})
        except (AttributeError, KeyError, IndexError, TypeError):
            value = None
        if isinstance(value, Tensor) and value is reference() and value._version == version:
            return True
        _distrusted.add(place)
        return False

    return unchanged
