"""flash3_fp8: FlashAttention-3 for Hopper on numbers of 8 bits (e4m3), with the library of `attnpass.kernels.flash3`.

Approximate, so taken only by name: numbers keep 3 bits behind the first, those of the softmax too, which the kernel
rounds itself. What the source says (``hopper/flash_api.cpp``, ``mainloop_fwd_sm90_tma_gmma_ws.hpp``) beyond `flash3`:

- q, k and v are e4m3, their head dim a multiple of 16, and the output is bf16; there is no backward;
- ``q_descale``, ``k_descale`` and ``v_descale``, (B, Hkv) in fp32, are what 1 is worth in each head; that of q is one
  for all query heads that share a key head;
- a V whose last stride is not 1 goes to code that builds leave out (``ENABLE_VCOLMAJOR``).

The rounding is in the graph, where Inductor joins it with the norm and the rotary embedding that made q and k. K is
rounded without its mean over the keys: q times that mean is the same number for all keys of a query, which softmax does
not see (a softcap or a sink would), and what is left, without the channels in which all keys are far from 0, is rounded
more finely. Keys that are padding are no part of the mean, nor of the largest number.

The error grows with the spread of the scores, since larger ones have no more bits: on normal data at head dim 256 it is
0.052 at 1/sqrt(D), and 0.09 at a scale of 0.3 (the same rounding on a CPU). So no larger scale is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.emit.layout import bhsd, bshd, multiple_of
from attnpass.emit.padding import by_length
from attnpass.graph.symbolic import as_int
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import BOTTOM_RIGHT, FLOATS, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels import flash3
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
# What 1 is worth at least: the kernel multiplies hidden scores, -inf, by that of q and k, and -inf times 0 is NaN.
LEAST = {"q": 2.0**-40, "k": 2.0**-40, "v": torch.finfo(torch.float32).tiny}


class Flash3Fp8(Kernel):
    """FlashAttention-3 in 8 bits: for long sequences in inference where an error of some percent is no harm."""

    name = "flash3_fp8"
    stores_as_asked = True
    title = "FlashAttention-3 for Hopper in FP8 (e4m3)"
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_90", "sm_90"),
        library=FLASH_ATTN_3,
        dtypes=FLOATS,
        head_dim_min=32,  # fewer dims average less: at 32 the error is at most 0.057, at 16 0.072, at 8 0.080
        head_dim_max=256,
        head_dim_padding=16,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW, Term.KEY_PADDING}),
        padding_by_length=True,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        backward=False,
        vmap=True,
        exact=False,
        relative_error=0.07,  # 0.054 was measured on an H200, with channels of K far from 0
    )

    def limits_for(self, machine: Machine) -> Limits:
        return flash3.with_terms_built(self.limits, machine)

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        yield from flash3.head_dim_not_built(call, machine)
        if not machine.has_built(FLASH_ATTN_3, "fp8"):
            yield Rejection(Code.LIBRARY, "this build of flash-attn-3", "without fp8", "fp8 built")
        D = as_int(call.D)
        if call.scale is not None and D and call.scale > (1 + 1e-6) / math.sqrt(D):
            yield Rejection(Code.SCALE, "scale", call.scale, "at most 1/sqrt(head_dim), the error grows with it")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        args, lengths = by_length(emitter, call, args)
        heads = emitter.size(args.k, 1)
        rounded, worth = [], []
        for name, x in zip("qkv", bshd(emitter, args, multiple_of(16, call.D)), strict=True):
            both = emitter(_fp8_heads, x, heads, None if name == "q" else lengths, name == "k", LEAST[name])
            rounded.append(emitter.item(both, 0))
            worth.append(emitter.item(both, 1))
        out = _attention.emit(emitter, call, *rounded, *worth, lengths, args.scale, *call.mask.band(), args.heads_first)
        return emitter.cast(bhsd(emitter, out, call.Dv), call.dtype)


def fp8_heads(x: Tensor, heads: int, lengths: Tensor | None, centred: bool, least: float) -> tuple[Tensor, Tensor]:
    """``x`` (B, S, H, D) in e4m3: each head, or the query heads that share a key head, in steps of its own.

    Args:
        x: q, k or v.
        heads: Hkv.
        lengths: (B,), how many positions count; the rest becomes 0.
        centred: is the mean over the positions taken off?
        least: that 1 may be worth.

    Returns:
        The numbers, shaped as ``x``, and what 1 of them is worth: (B, Hkv), fp32.
    """
    x = x.float()
    places = torch.arange(x.shape[1], device=x.device)
    counts = None if lengths is None else (places < lengths[:, None])[..., None, None]
    number: int | Tensor = x.shape[1]
    real = x
    if counts is not None:
        real = torch.where(counts, x, torch.where(counts[:, :1], x[:, :1], 0.0))
        x, number = torch.where(counts, x, 0.0), counts.sum(1, keepdim=True).clamp_min(1)
    mean = x.sum(1, keepdim=True) / number if centred else torch.zeros_like(x[:, :1])
    # of each channel first, so that Inductor reads x once for all three sums instead of once more behind the mean
    largest = torch.maximum(real.amax(1, keepdim=True) - mean, mean - real.amin(1, keepdim=True)).amax((1, 3))
    worth = (largest.unflatten(1, (heads, -1)).amax(2) / LARGEST).clamp_min(least)
    x = x - mean if counts is None else torch.where(counts, x - mean, 0.0)
    each = worth.repeat_interleave(x.shape[2] // heads, 1)[:, None, :, None]
    return (x / each).clamp(-LARGEST, LARGEST).to(E4M3), worth


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_descale: Tensor,
    k_descale: Tensor,
    v_descale: Tensor,
    lengths: Tensor | None,
    scale: float,
    left: int,
    right: int,
    heads_first: bool,
) -> Tensor:
    """(B, Sq, H, D), twice (B, Sk, Hkv, D), all e4m3, and what `fp8_heads` gives beside -> (B, Sq, H, D), bf16."""
    worth = {"q_descale": q_descale, "k_descale": k_descale, "v_descale": v_descale}
    return flash3.attend({"q": q, "k": k, "v": v, **worth, "seqused_k": lengths}, heads_first, scale, left, right, 0.0)


_fp8_heads = ops.compose(
    "fp8_heads(Tensor x, SymInt heads, Tensor? lengths, bool centred, float least) -> (Tensor, Tensor)", fp8_heads
)
_attention = ops.attention(
    "flash3_fp8(Tensor q, Tensor k, Tensor v, Tensor q_descale, Tensor k_descale, Tensor v_descale, Tensor? lengths, "
    "float scale, SymInt left, SymInt right, bool heads_first)",
    _forward,
    output=flash3.output,
    vmap=True,
)
