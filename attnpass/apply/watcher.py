"""Somebody who compares rewritten calls with the program, as far as `apply` knows him."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch.fx import Node

from attnpass.emit.emitter import Emitter, Operands
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a rewritten call gives: the kernel, (B, H, Sq, Dv); that as the program expects it; the program itself."""

    kernel: Node
    result: Node
    program: Node


@dataclass(frozen=True, slots=True)
class Written:
    """A call as the program wrote it; ``operands`` emits what it reads."""

    call: AttentionCall
    operands: Callable[[], Operands]


class Watcher(Protocol):
    """Emits comparisons."""

    def watch(
        self, emitter: Emitter, outputs: Outputs, decision: Decision, written: Written, index: int
    ) -> Node | None:
        """Emit the comparison of the ``index``-th call with the program; None where there is nothing to compare."""
