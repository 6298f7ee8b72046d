"""native_math: PyTorch's composite attention out of plain matrix products.

The op is ``aten::_scaled_dot_product_attention_math``.

Takes everything, materialises the scores. AOTAutograd decomposes it, so Inductor sees plain ops.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from attnpass.emit.emitter import Emitter, Operands, additive_mask, aten
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import ALL_FLOATS, Limits
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel

EVERYTHING = Limits(
    devices=frozenset({"cuda", "rocm", "cpu", "xpu", "mps", "npu"}),
    dtypes=ALL_FLOATS,
    head_dim_may_be_symbolic=True,
    value_dim_may_differ=True,
    gqa=True,
    broadcasts=True,
    terms=frozenset({Term.CAUSAL}),
    mask_tensor=True,
    mask_dtype_may_differ=True,
    mask_grad=True,
    empty_lengths=True,
    dropout=True,
    last_stride_one=False,
)


class NativeMath(Kernel):
    """PyTorch's composite attention, named explicitly instead of left to its dispatch."""

    name = "native_math"
    backend = "MATH"
    candidate = False
    title = "PyTorch's composite attention (matrix products and softmax)"
    aliases = ("_native_math", "eager")
    limits = EVERYTHING

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        return emit_math(emitter, call, args)


def emit_math(emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
    """The composite op on operands as they are. Autocast is off around it: it would lower the products' precision.

    The op adds its mask to the scores, whatever its dtype: a bool mask has to become 0 and -inf first.
    """
    mask = args.mask
    if mask is not None and emitter.value(mask).dtype == torch.bool:
        mask = additive_mask(emitter, mask, emitter.value(args.q).dtype)
    with emitter.without_autocast(call.device.type, call.context.autocast is not None):
        results = emitter(
            aten._scaled_dot_product_attention_math.default,
            args.q,
            args.k,
            args.v,
            mask,
            call.dropout_p,
            call.is_causal,
            None,  # dropout_mask
            scale=args.scale,
            enable_gqa=call.enable_gqa,
        )
    return emitter.item(results, 0)
