"""native: the user's own call, untouched. PyTorch chooses the kernel when AOTAutograd traces it.

A chain written by hand that no kernel takes is written as one call of SDPA, so that PyTorch chooses there too
(`attnpass.select.decide`).
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from attnpass.emit.emitter import Emitter, Operands, aten
from attnpass.ir.call import AttentionCall
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.native_math import EVERYTHING

ANYWHERE = frozenset({"cuda", "rocm", "cpu", "npu", "tpu", "xpu", "mps", "hpu", "meta"})


class Native(Kernel):
    """Keeps the call: nothing can be refused, and nothing is emitted but for a chain written by hand.

    The limits are those of the chain: PyTorch may choose a kernel whose gradients are wrong in rows that a large number
    hides, where the chain's are right.
    """

    name = "native"
    title = "PyTorch's own choice, the call stays as it is"
    aliases = ("sdpa",)
    keeps = True
    limits = replace(EVERYTHING, devices=ANYWHERE, hidden_rows_train=False)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        return emitter(
            aten.scaled_dot_product_attention.default,
            args.q,
            args.k,
            args.v,
            args.mask,
            call.dropout_p,
            call.is_causal,
            scale=args.scale,
            enable_gqa=call.is_gqa,
        )
