"""native: the user's own call, untouched. PyTorch chooses the kernel when AOTAutograd traces it."""

from __future__ import annotations

from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.emit import Emitter
from attnpass.kernel import Kernel, Operands
from attnpass.limits import ALL_FLOATS, Limits
from attnpass.masks import Term

ANYWHERE = frozenset({"cuda", "rocm", "cpu", "npu", "tpu", "xpu", "mps", "hpu", "meta"})


class Native(Kernel):
    """Keeps the call: nothing is emitted, so nothing can be refused."""

    name = "native"
    title = "PyTorch's own choice, the call stays as it is"
    keeps = True
    limits = Limits(
        devices=ANYWHERE,
        dtypes=ALL_FLOATS,
        value_dim_may_differ=True,
        gqa=True,
        broadcasts=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        mask_grad=True,
        empty_lengths=True,
        dropout=True,
        functorch=True,
        last_stride_one=False,
    )

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        raise AssertionError("native keeps the call; there is nothing to emit")
