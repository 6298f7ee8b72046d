"""flash_decoding: our own kernel for calls of a few queries on many keys, such as the steps of `generate` (Triton).

Such a call is bound by reading K and V once. What there was does not reach that: a cache is mostly longer than what is
in it, its mask alone says by how much, and PyTorch's kernels read all of it. One H100, 32 heads on 8, head dim 64, a
batch of 8 and a cache of 16384, in a CUDA graph: full 95 us where memory allows 90 (cuDNN 93); a half 52 (cuDNN 93);
a tenth 14 (cuDNN 93, FlashAttention-3, which is told how many keys there are, 69 at a quarter on an H200).

- All query heads that share a key head, and all queries, are the rows of one product, so a key is read once.
- The keys are split over the multiprocessors; `attnpass.kernels.flash_decoding_programs` says how.
- Where the mask is a tensor, the range of keys that it shows is worked out on the device, once for all layers that
  share the mask; outside it nothing is read, and inside it every key asks the mask. Nothing is read back, and shapes
  stay as they are: a CUDA graph holds it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.graph.symbolic import known_equal
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Limits
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library

TRITON = Library("triton", "3.5", install="a PyTorch built for CUDA brings it")
QUERIES = 16
TILE = 8192  # elements of K that a step reads: of 32 to 128 keys the fastest at head dims 64 and 128
ROWS = 64  # at most, of one program
WAVES = 2  # programs for each multiprocessor
SPLITS = 128  # at most
STAGES, WARPS = 3, 4
INF = float("inf")


class FlashDecoding(Kernel):
    """Few queries, many keys: as fast as memory gives K and V, and no key that is hidden in front or behind is read."""

    name = "flash_decoding"
    title = "attnpass's own kernel for decoding (Triton)"
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_80", "sm_121"),
        library=TRITON,
        queries_max=QUERIES,
        head_dim_max=256,
        value_dim_may_differ=True,
        gqa=True,
        mask_tensor=True,
        mask_dtype_may_differ=True,
        softcap=True,
        sinks=True,
        backward=False,
    )

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        shown = None if args.mask is None else shown_keys(emitter, args.mask)
        operands = (args.q, args.k, args.v, args.mask, shown, args.sinks)
        return _ops.emit(emitter, call, *operands, args.scale, call.softcap or 0.0)


def shown_keys(emitter: Emitter, mask: Node) -> Node:
    """(B or 1, 2) int32: for each example the first key that a query of any head sees, and the one behind the last."""

    def compute(mask: Tensor) -> Tensor:
        seen = mask if mask.dtype == torch.bool else mask != -INF
        for dim in (2, 1):
            seen = seen.squeeze(dim) if known_equal(seen.shape[dim], 1) else seen.any(dim)
        key, keys = torch.arange(seen.shape[1], dtype=torch.int32, device=mask.device), seen.shape[1]
        return torch.stack([torch.where(seen, key, keys).amin(1), torch.where(seen, key + 1, 0).amax(1)], 1).int()

    node: Node = emitter.once(("shown keys", mask, emitter.epoch), lambda: emitter.inline(compute, mask))
    return node


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    shown: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """(B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv) -> (B, H, Sq, Dv), contiguous.

    Args:
        q, k, v: the operands.
        mask: bool (True = take part) or additive, each size 1 or full.
        shown: (B or 1, 2): outside this range of keys no query sees one.
        sinks: (H,).
        scale: factor on the scores.
        softcap: 0 for none.
    """
    from attnpass.kernels import flash_decoding_programs as programs

    B, H, Sq, D = q.shape
    Hkv, Sk, Dv = k.shape[1], k.shape[2], v.shape[3]
    rows = H // Hkv * Sq
    block_m, block_d, block_dv = min(_power_of_two(rows), ROWS), _power_of_two(D), _power_of_two(Dv)
    block_n = min(max(TILE // max(block_d, block_dv), 32), 128)
    tiles = -(-rows // block_m)
    splits = max(1, min(_multiprocessors(q.device) * WAVES // (B * Hkv * tiles), -(-Sk // block_n), SPLITS))
    out = q.new_empty(B, H, Sq, Dv)
    parts = out if splits == 1 else q.new_empty(B * H * Sq * splits, Dv, dtype=torch.float32)
    seen = out if splits == 1 else q.new_empty(B * H * Sq * splits, 2, dtype=torch.float32)
    kind, by_row, strides = _read_how(mask, (B, H, Sq, Sk))
    with torch.cuda.device_of(q):
        programs.part[(B * Hkv, splits, tiles)](
            q, k, v, mask, shown, sinks, parts, seen,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides,
            0 if shown is None or shown.shape[0] == 1 else 2,
            Sq, Sk, Hkv, scale, softcap,
            G=H // Hkv, D=D, DV=Dv, MASK=kind, MASK_BY_ROW=by_row, CAPPED=softcap > 0, SINKS=sinks is not None,
            SPLITS=splits, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_DV=block_dv,
            STAGES=STAGES, num_warps=WARPS,
        )  # fmt: skip
        if splits > 1:
            programs.join[(B * H * Sq,)](
                parts, seen, sinks, out, Sq, H,
                DV=Dv, SINKS=sinks is not None, SPLITS=splits, BLOCK_S=_power_of_two(splits, 2), BLOCK_DV=block_dv,
            )  # fmt: skip
    return out


def _read_how(mask: Tensor | None, full: tuple[int, int, int, int]) -> tuple[str, bool, tuple[int, ...]]:
    """What a mask is, whether it differs between the rows of an example, and its strides over B, H, Sq and Sk."""
    if mask is None:
        return "none", False, (0, 0, 0, 0)
    by_row = mask.shape[1] > 1 or mask.shape[2] > 1
    return "bool" if mask.dtype == torch.bool else "bias", by_row, mask.expand(full).stride()


def _power_of_two(size: int, least: int = 16) -> int:
    return max(least, 1 << (size - 1).bit_length())


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? shown, Tensor? sinks"
_ops = ops.attention(f"flash_decoding({_TENSORS}, float scale, float softcap)", _compute, layout="BHSD")
