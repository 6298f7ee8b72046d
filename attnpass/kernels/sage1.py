"""sage1: SageAttention 1.0 (Triton, int8 scores), the newest on PyPI (https://github.com/thu-ml/SageAttention).

What its source says (``sageattention/core.py``, 1.0.6):

- ``smooth_k=True``, the default, subtracts K's mean *in place* from the caller's K; so it is off here and the graph
  subtracts it;
- before 1.0.5 there is no ``sm_scale`` (1.0.1 to 1.0.4 take a ``scale`` and a mask, and read neither);
- unknown keywords are swallowed: a mask handed over would be dropped in silence;
- head dims 64, 96 and 128, nothing is padded; the value head dim is not checked and has to be the same;
- causal wants Sq == Sk; the number of heads is divided without a check;
- there is no backward, and the output has no ``grad_fn``: gradients would vanish.

Measured on an H100: without causal, lengths of k that are no multiple of 64 come out wrong without any error (0.28
relative at Sk = 77, 0.15 at 197), because the last block of keys is read beyond its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.fx import Node

from attnpass import ops
from attnpass.call import AttentionCall
from attnpass.emit import Emitter, aten
from attnpass.kernel import Kernel, Operands
from attnpass.layout import either_layout, from_layout
from attnpass.library import Library
from attnpass.limits import FLOATS, SQUARE_ONLY, Code, Limits, Rejection
from attnpass.machine import Machine
from attnpass.masks import Term
from attnpass.symbolic import Size, as_int, known, known_multiple, shown

SAGE_1 = Library(
    "sageattention", "1.0.5", below="2", modules=("sageattention",), install="pip install sageattention==1.0.6"
)
KEY_BLOCK = 64
EVEN_BLOCKS = "a length whose number of blocks of 64 keys is known to be even (may be NaN else)"


def has_even_blocks(Sk: Size) -> bool:
    """Is the number of key blocks known to be even? Else a causal Triton kernel reads a scale beyond the last block."""
    return known_multiple(Sk, 2 * KEY_BLOCK) or known(Sk % (2 * KEY_BLOCK) > KEY_BLOCK)


def without_mean(emitter: Emitter, k: Node, layout: str) -> Node:
    """K less its mean over the keys: softmax does not see the difference, and what is left is quantised more finely.

    In the graph, where Inductor fuses it; the libraries launch two kernels for it.
    """
    mean = emitter(aten.mean.dim, k, [1 if layout == "NHD" else 2], True)
    return emitter(aten.sub.Tensor, k, mean)


class Sage1(Kernel):
    """SageAttention 1: for GPUs where SageAttention 2 cannot be built."""

    name = "sage1"
    title = "SageAttention 1 (Triton, int8 scores)"
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_80", "sm_90"),
        library=SAGE_1,
        dtypes=FLOATS,
        head_dim_min=64,
        head_dim_max=128,
        head_dim_multiple=32,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        alignments=SQUARE_ONLY,
        backward=False,
        vmap=True,
        row_alignment=16,
        exact=False,
        relative_error=0.025,  # 0.0193 at most on an H200
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if not call.is_causal and not known_multiple(call.Sk, KEY_BLOCK):
            wanted = f"a known multiple of {KEY_BLOCK} without causal (0.28 off at Sk = 77 on an H100)"
            yield Rejection(Code.KNOWN_BUG, "Sk", shown(call.Sk), wanted)
        if call.is_causal and not has_even_blocks(call.Sk):
            yield Rejection(Code.KNOWN_BUG, "Sk of a causal call", shown(call.Sk), EVEN_BLOCKS)
        if as_int(call.D) == 96 and call.is_gqa:
            yield Rejection(Code.GQA, "head_dim of a grouped call", 96, "64 or 128")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        layout, q, k, v = either_layout(emitter, args)
        k = without_mean(emitter, k, layout)
        return from_layout(emitter, emitter(_infer, q, k, v, layout, call.is_causal, args.scale), layout, call.Dv)


def _infer_impl(q: Tensor, k: Tensor, v: Tensor, layout: str, is_causal: bool, scale: float) -> Tensor:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, D) -> (B, Sq, H, D), contiguous; "HND" is BHSD.

    K is best given `without_mean`.
    """
    from sageattention import sageattn

    out: Tensor = sageattn(q=q, k=k, v=v, tensor_layout=layout, is_causal=is_causal, sm_scale=scale, smooth_k=False)
    return out


def _infer_fake(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


_infer = ops.define(
    "sage1(Tensor q, Tensor k, Tensor v, str layout, bool is_causal, float scale) -> Tensor",
    _infer_impl,
    _infer_fake,
    vmap=True,
)
