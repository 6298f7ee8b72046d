"""native: the user's own call, untouched. PyTorch chooses the kernel when AOTAutograd traces it."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.emit import Emitter
from attnpass.kernel import Kernel, Operands
from attnpass.kernels.native_math import EVERYTHING

ANYWHERE = frozenset({"cuda", "rocm", "cpu", "npu", "tpu", "xpu", "mps", "hpu", "meta"})


class Native(Kernel):
    """Keeps the call: nothing is emitted, so nothing can be refused."""

    name = "native"
    title = "PyTorch's own choice, the call stays as it is"
    keeps = True
    limits = replace(EVERYTHING, devices=ANYWHERE, functorch=True)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        raise AssertionError("native keeps the call; there is nothing to emit")
