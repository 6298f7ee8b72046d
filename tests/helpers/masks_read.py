"""Read the masks of a function as the pass does, without compiling it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule

from attnpass.find.find import find
from attnpass.find.found import FoundCall
from attnpass.understand.buffers import Assumptions
from attnpass.understand.understand import Reader


def understood(fn: Callable[..., Any], *args: Any, dynamic: bool = False, **kwargs: Any) -> list[FoundCall]:
    """The calls of ``fn(*args, **kwargs)``, with what their masks were understood to mean."""
    found: list[FoundCall] = []

    def backend(gm: GraphModule, _: Any) -> Callable[..., Any]:
        findings = find(gm)
        reader = Reader(findings.reading, Assumptions().array)
        found.extend(map(reader.understood, findings.calls))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(fn, backend=backend, dynamic=dynamic)(*args, **kwargs)
    return found
