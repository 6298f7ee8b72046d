"""sage3: SageAttention 3 for Blackwell (fp4), ``sageattn3`` (https://github.com/thu-ml/SageAttention).

What its source says (``sageattention3_blackwell/sageattn3/api.py``, 1.0.0):

- sm_120 and sm_121 only; head dims 64 and 128 (256 and more run PyTorch's attention and print a line);
- no grouped heads; the scale is 1/sqrt(D), a scale handed over is swallowed, and so is a mask;
- K's mean is subtracted *in place* from the caller's K: it gets a copy;
- there is no backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.graph.symbolic import as_int
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import SQUARE_ONLY, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine

SAGE_3 = Library(
    "sageattn3",
    "1.0",
    modules=("sageattn3",),
    install="build sageattention3_blackwell/ of github.com/thu-ml/SageAttention",
)


class Sage3(Kernel):
    """SageAttention 3: 4-bit scores and values, for images and video on consumer Blackwell."""

    name = "sage3"
    title = "SageAttention 3 (fp4, Blackwell)"
    aliases = ("sage_blackwell_hub",)
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_120", "sm_121"),
        library=SAGE_3,
        head_dim_min=64,
        head_dim_max=128,
        head_dim_multiple=64,
        terms=frozenset({Term.CAUSAL}),
        alignments=SQUARE_ONLY,
        backward=False,
        vmap=True,
        exact=False,
        relative_error=0.2,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        D = as_int(call.D)
        if call.scale is not None and (D is None or not math.isclose(call.scale, 1 / math.sqrt(D), rel_tol=1e-6)):
            yield Rejection(Code.SCALE, "scale", call.scale, "1/sqrt(head_dim), the library takes no other")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        return _attention.emit(emitter, call, args.q, args.k, args.v, call.is_causal)


def _forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """(B, H, Sq, D), (B, H, Sk, D), (B, H, Sk, D) -> (B, H, Sq, D), contiguous. K is not changed."""
    from sageattn3 import sageattn3_blackwell

    out: Tensor = sageattn3_blackwell(q=q, k=k.clone(), v=v, is_causal=is_causal)
    return out


_attention = ops.attention(
    "sage3(Tensor q, Tensor k, Tensor v, bool is_causal)", _forward, vmap=True, graphs=False, layout="BHSD"
)
