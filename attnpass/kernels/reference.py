"""reference: the meaning of attention, computed. PyTorch's composite attention in fp32 (fp64 stays fp64).

Slow and large; for finding out whether a kernel is at fault, and what every other kernel is tested against.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Node

from attnpass.emit.emitter import Emitter, Operands
from attnpass.ir.call import AttentionCall
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.native_math import EVERYTHING, emit_math


class Reference(Kernel):
    """Every call in fp32, then back to the call's dtype."""

    name = "reference"
    candidate = False
    title = "The reference: composite attention in fp32"
    limits = EVERYTHING

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        exact = torch.promote_types(call.dtype, torch.float32)
        q, k, v = (emitter.cast(node, exact) for node in (args.q, args.k, args.v))
        return emitter.cast(emit_math(emitter, call, replace(args, q=q, k=k, v=v)), call.dtype)
