"""flash_decoding: our own kernel for calls of a few queries on many keys, such as the steps of `generate` (Triton).

Such a call is bound by reading K and V once. What there was does not reach that: a cache is mostly longer than what is
in it, its mask alone says by how much, and PyTorch's kernels read all of it. One H100, 32 heads on 8, head dim 64, a
batch of 8 and a cache of 16384, in a CUDA graph: full 95 us where memory allows 90 (cuDNN 93); a half 52 (cuDNN 93);
a tenth 14 (cuDNN 93, FlashAttention-3, which is told how many keys there are, 69 at a quarter on an H200).

- All query heads that share a key head, and all queries, are the rows of one product, so a key is read once.
- The keys are split over the multiprocessors; `attnpass.kernels.flash_decoding_programs` says how.
- Where the mask is a tensor, a split looks first where the range of keys lies that it shows; outside it nothing of K
  and V is read, and inside it every key asks the mask. Shapes stay as they are: a CUDA graph holds it.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Limits
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library

TRITON = Library("triton", "3.5", install="pip install triton (a PyTorch built for CUDA brings it)")
QUERIES = 16
ROWS = 64  # at most, of one program
SPLITS = 128  # at most
LOOK = 4096  # elements of the mask that are looked at in one go


class Tiling(NamedTuple):
    """How a program reads its keys.

    Attributes:
        tile: elements of K that a step reads, in at least ``keys[0]`` and at most ``keys[1]`` keys.
        keys: see there.
        waves: programs for each multiprocessor.
        stages: steps whose loads are under way at once.
        warps: of a program.
    """

    tile: int
    keys: tuple[int, int]
    waves: int
    stages: int
    warps: int


# The fastest of up to 36 on each of 14 sizes at head dims 64 and 128, on an H100 and an H200. From some 0.8 GB on, half
# as many, larger tiles read an H200's memory faster: 32 x 16384 x 128 in 495 us instead of 528 (cuDNN 468, all keys).
USUAL = Tiling(8192, (32, 128), waves=2, stages=3, warps=4)
LARGE = Tiling(16384, (64, 256), waves=4, stages=2, warps=8)
LARGE_BYTES = 3 << 28  # of K and V
# 64 rows of head dim 256 need 100 KiB of shared memory in three stages, and 99 KiB is what sm_86, sm_89 and sm_120 have
FLAT = USUAL._replace(stages=2)


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
        operands = (args.q, args.k, args.v, args.mask, args.sinks)
        return _ops.emit(emitter, call, *operands, args.scale, call.softcap or 0.0)


def _compute(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """(B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv) -> (B, H, Sq, Dv), contiguous.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: bool (True = take part) or additive, each size 1 or full.
        sinks: (H,).
        scale: factor on the scores.
        softcap: 0 for none.
    """
    from attnpass.kernels import flash_decoding_programs as programs

    B, H, Sq, D = q.shape
    Hkv, Sk, Dv = k.shape[1], k.shape[2], v.shape[3]
    rows = H // Hkv * Sq
    block_m, block_d, block_dv = min(_power_of_two(rows), ROWS), _power_of_two(D), _power_of_two(Dv)
    longest = max(block_d, block_dv)
    tiling = tiling_of(block_m, longest, k.nbytes + v.nbytes)
    block_n = min(max(tiling.tile // longest, tiling.keys[0]), tiling.keys[1])
    tiles = -(-rows // block_m)
    splits = max(1, min(_multiprocessors(q.device) * tiling.waves // (B * Hkv * tiles), -(-Sk // block_n), SPLITS))
    out = q.new_empty(B, H, Sq, Dv)
    parts = out if splits == 1 else q.new_empty(B * H * Sq * splits, Dv, dtype=torch.float32)
    seen = out if splits == 1 else q.new_empty(B * H * Sq * splits, 2, dtype=torch.float32)
    kind, looked_at, strides = _read_how(mask, (B, H, Sq, Sk))
    with torch.cuda.device_of(q):
        programs.part[(B * Hkv, splits, tiles)](
            q, k, v, mask, sinks, parts, seen,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *strides,
            Sq, Sk, Hkv, scale, softcap,
            G=H // Hkv, D=D, DV=Dv, MASK=kind, MASK_BY_ROW=looked_at != 1, CAPPED=softcap > 0, SINKS=sinks is not None,
            SPLITS=splits, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_DV=block_dv,
            LOOKED_AT=looked_at, CHUNK=LOOK // block_n, STAGES=tiling.stages, num_warps=tiling.warps,
        )  # fmt: skip
        if splits > 1:
            programs.join[(B * H * Sq,)](
                parts, seen, sinks, out, Sq, H,
                DV=Dv, SINKS=sinks is not None, SPLITS=splits, BLOCK_S=_power_of_two(splits, 2), BLOCK_DV=block_dv,
            )  # fmt: skip
    return out


def tiling_of(rows: int, longest: int, moved: int) -> Tiling:
    """The tiling of a call.

    Args:
        rows: of one program.
        longest: the larger head dim, as a power of two.
        moved: bytes of K and V.
    """
    if rows * longest > ROWS * 128:
        return FLAT
    return LARGE if moved >= LARGE_BYTES and rows == 16 else USUAL


def _read_how(mask: Tensor | None, full: tuple[int, int, int, int]) -> tuple[str, int, tuple[int, ...]]:
    """What a mask is, how many rows say which keys an example shows, and its strides over B, H, Sq and Sk.

    Where each head has a mask of its own, the rows are too many to look at beforehand: 0.
    """
    if mask is None:
        return "none", 0, (0, 0, 0, 0)
    rows = 0 if mask.shape[1] > 1 else mask.shape[2]
    return "bool" if mask.dtype == torch.bool else "bias", rows, mask.expand(full).stride()


def _power_of_two(size: int, least: int = 16) -> int:
    return max(least, 1 << (size - 1).bit_length())


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


_TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? sinks"
_ops = ops.attention(f"flash_decoding({_TENSORS}, float scale, float softcap)", _compute, layout="BHSD")
