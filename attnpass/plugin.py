"""The one stable path for kernels of somebody else's: all that the page on adding a kernel speaks of.

`Kernel`, `Limits`, `Rejection`, `AttentionCall` and `Machine` are in ``attnpass`` too; here they stand with what a
kernel is written with. Every other module may move.
"""

from __future__ import annotations

from attnpass.emit.emitter import EmitRefusedError, Emitter, Operands
from attnpass.emit.layout import aligned_bias, bhsd, bshd, either_layout, from_layout, multiple_of, repeated_heads
from attnpass.emit.mask_tensors import expanded, rows_with_keys, with_empty_rows_shown, with_empty_rows_zero
from attnpass.emit.ops import (
    aligned,
    attention,
    compose,
    contiguous_gradients,
    contiguous_output,
    define,
    differentiable,
    gradients_like_operands,
    log_sum_exp,
    output_like_q,
    rng_state,
)
from attnpass.emit.undecorated import undecorated
from attnpass.graph.symbolic import as_int, known, known_equal, known_multiple, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import (
    ALL_FLOATS,
    BOTTOM_RIGHT,
    FLOATS,
    HALF,
    SQUARE_ONLY,
    TOP_LEFT,
    Alignment,
    Code,
    Limits,
    Rejection,
)
from attnpass.ir.mask import MaskSpec, Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import PYTORCH, Build, Library, UnusableError
from attnpass.machine.machine import Machine

__all__ = [
    "ALL_FLOATS",
    "BOTTOM_RIGHT",
    "FLOATS",
    "HALF",
    "PYTORCH",
    "SQUARE_ONLY",
    "TOP_LEFT",
    "Alignment",
    "AttentionCall",
    "Build",
    "Code",
    "EmitRefusedError",
    "Emitter",
    "Kernel",
    "Library",
    "Limits",
    "Machine",
    "MaskSpec",
    "Operands",
    "Rejection",
    "Term",
    "UnusableError",
    "aligned",
    "aligned_bias",
    "as_int",
    "attention",
    "bhsd",
    "bshd",
    "compose",
    "contiguous_gradients",
    "contiguous_output",
    "define",
    "differentiable",
    "either_layout",
    "expanded",
    "from_layout",
    "gradients_like_operands",
    "known",
    "known_equal",
    "known_multiple",
    "log_sum_exp",
    "multiple_of",
    "output_like_q",
    "repeated_heads",
    "rng_state",
    "rows_with_keys",
    "shown",
    "undecorated",
    "with_empty_rows_shown",
    "with_empty_rows_zero",
]
