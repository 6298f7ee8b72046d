"""sage1: SageAttention 1.0 (Triton, int8 scores), the newest on PyPI (https://github.com/thu-ml/SageAttention).

What its source says (``sageattention/core.py``, 1.0.6):

- ``sageattn`` rounds q and k to int8 in two Triton kernels, casts v to fp16, and calls the kernel proper. Our op is the
  kernel alone: the graph rounds and casts, and Inductor fuses that with what computed q, k and v;
- ``sageattn``'s ``smooth_k``, the default, subtracts K's mean *in place* from the caller's K; the graph subtracts it;
- before 1.0.5 the scale was ignored;
- unknown keywords are swallowed by ``sageattn``: a mask handed over would be dropped in silence;
- head dims 64, 96 and 128, nothing is padded; the value head dim is not checked and has to be the same;
- causal wants Sq == Sk; the number of heads is divided without a check;
- there is no backward, and the output has no ``grad_fn``: gradients would vanish.

Measured on an H100: without causal, lengths of k that are no multiple of 64 come out wrong without any error (0.28
relative at Sk = 77, 0.15 at 197), because the last block of keys is read beyond its end.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands, aten
from attnpass.emit.layout import either_layout, from_layout
from attnpass.graph.symbolic import Size, as_int, known, known_multiple, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import FLOATS, SQUARE_ONLY, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine

SAGE_1 = Library(
    "sageattention", "1.0.5", below="2", modules=("sageattention",), install="pip install sageattention==1.0.6"
)
QUERY_BLOCK, KEY_BLOCK = 128, 64  # positions of a head that share one step
LOG2_E = 1.44269504  # as the library writes it: its softmax is one of powers of 2
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
        q, q_steps = _rounded(emitter, q, layout, QUERY_BLOCK, (args.scale or 0.0) * LOG2_E)
        k, k_steps = _rounded(emitter, without_mean(emitter, k, layout), layout, KEY_BLOCK, 1.0)
        v = emitter.cast(v, torch.float16)
        out = _attention.emit(emitter, call, q, k, v, q_steps, k_steps, layout, call.is_causal, call.dtype)
        return from_layout(emitter, out, layout, call.Dv)


def _rounded(emitter: Emitter, x: Node, layout: str, block: int, factor: float) -> tuple[Node, Node]:
    both = emitter(_int8_blocks, x, layout, block, factor)
    return emitter.item(both, 0), emitter.item(both, 1)


def int8_blocks(x: Tensor, layout: str, block: int, factor: float) -> tuple[Tensor, Tensor]:
    """``x * factor`` in steps of 1/127 of the largest number among ``block`` positions of a head.

    As ``sageattention/quant_per_block.py`` rounds: to the nearest, halves away from 0.

    Returns:
        The numbers of steps, int8, shaped as ``x``; and the steps, fp32: (B, H, ceil(S / block), 1).
    """
    at = 1 if layout == "NHD" else 2
    x = x.float() * factor
    S = x.shape[at]
    count = (S + block - 1) // block
    whole = x
    if not known_multiple(S, block):  # the last position again, which is no larger than itself
        whole = x.index_select(at, torch.arange(count * block, device=x.device).clamp_max(S - 1))
    steps = whole.unflatten(at, (count, block)).abs().amax((at + 1, 4), keepdim=True) / 127.0
    each = steps.expand(*[block if dim == at + 1 else -1 for dim in range(5)]).flatten(at, at + 1).narrow(at, 0, S)
    numbers = x / each
    rounded = (numbers + torch.where(numbers >= 0, 0.5, -0.5)).to(torch.int8)
    steps = steps.squeeze(at + 1)
    return rounded, (steps if layout == "HND" else steps.transpose(1, 2)).contiguous()


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_steps: Tensor, k_steps: Tensor, layout: str, is_causal: bool, dtype: torch.dtype
) -> Tensor:
    """(B, Sq, H, D) and (B, Sk, Hkv, D) int8, (B, Sk, Hkv, D) fp16, their steps -> (B, Sq, H, D), contiguous.

    "HND" is BHSD.
    """
    name = f"attn_qk_int8_per_block{'_h96' if q.shape[-1] == 96 else ''}{'_causal' if is_causal else ''}"
    kernel: Any = importlib.import_module(f"sageattention.{name}")
    out: Tensor = kernel.forward(
        q=q, k=k, v=v, q_scale=q_steps, k_scale=k_steps, tensor_layout=layout, output_dtype=dtype
    )
    return out


_int8_blocks = ops.compose(
    "int8_blocks(Tensor x, str layout, int block, float factor) -> (Tensor, Tensor)", int8_blocks
)
_attention = ops.attention(
    "sage1(Tensor q, Tensor k, Tensor v, Tensor q_steps, Tensor k_steps, str layout, bool is_causal, ScalarType dtype)",
    _forward,
    output=lambda q, *rest: q.new_empty(q.shape, dtype=rest[-1]),
    vmap=True,
)
