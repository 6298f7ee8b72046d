"""The two Triton programs of `attnpass.kernels.flash_decoding`, imported by its first call, since they need Triton.

The split of the keys, and the sum of the parts behind it, is that of "Flash-Decoding" (Dao, Haziza, Massa and Sizov,
2023). Two things are done in another way, since how full a cache is stands in its mask alone. A split takes every n-th
block of keys instead of a run of them: so all splits have the same work, however many keys are hidden in front or
behind. And a split looks at the mask of its blocks first, and reads none before the first and behind the last that
shows a key: some 1 us, where the same range worked out once for all splits takes a launch of its own and 4 us.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def part(
    q_ptr, k_ptr, v_ptr, mask_ptr, sinks_ptr, out_ptr, seen_ptr,
    q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s,
    m_b, m_h, m_s, m_k,
    Sq, Sk, Hkv, scale, softcap,
    G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, MASK: tl.constexpr, MASK_BY_ROW: tl.constexpr,
    CAPPED: tl.constexpr, SINKS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    LOOKED_AT: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One split of the keys, for the rows of all query heads that share them.

    A row is a query token of a head: row r is token r % Sq of head r // Sq of the group. The scores are in fp32 and in
    units of e, as PyTorch has them: a mask of large finite numbers must not overflow.

    LOOKED_AT says at how many rows of the mask the split looks before it reads keys: Sq, 1 or 0.
    """
    group = tl.program_id(0)
    split = tl.program_id(1)
    b, kv = (group // Hkv).to(tl.int64), (group % Hkv).to(tl.int64)
    rows = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    real = rows < G * Sq
    head, token = kv * G + rows // Sq, rows % Sq
    dims, dims_v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    keys = tl.arange(0, BLOCK_N)
    HIDDEN: tl.constexpr = 0 if MASK == "bool" else float("-inf")
    q_at = b * q_b + head[:, None] * q_h + token[:, None] * q_s + dims[None]
    q = tl.load(q_ptr + q_at, mask=real[:, None] & (dims < D)[None], other=0.0)
    k_ptr += b * k_b + kv * k_h
    v_ptr += b * v_b + kv * v_h
    mine = tl.cdiv(tl.cdiv(Sk, BLOCK_N) - split, SPLITS)  # blocks: number `split`, and every SPLITS-th behind it
    first, end = 0, mine
    if LOOKED_AT > 0:
        first, end = mine, 0
        for chunk in tl.range(0, mine, CHUNK):
            i = chunk + tl.arange(0, CHUNK)
            at = (split + i * SPLITS)[:, None] * BLOCK_N + keys[None]
            seen = tl.zeros([CHUNK, BLOCK_N], tl.int32)
            for row in tl.static_range(LOOKED_AT):
                mask_at = b * m_b + row * m_s + at.to(tl.int64) * m_k
                mask = tl.load(mask_ptr + mask_at, mask=at < Sk, other=HIDDEN)
                seen |= (mask != HIDDEN).to(tl.int32)
            shows = tl.max(seen, 1) > 0
            first = tl.minimum(first, tl.min(tl.where(shows, i, mine), 0))
            end = tl.maximum(end, tl.max(tl.where(shows, i + 1, 0), 0))
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for i in tl.range(first, end, num_stages=STAGES):
        at = (split + i * SPLITS) * BLOCK_N + keys
        inside = at < Sk
        far = at.to(tl.int64)
        if BLOCK_D == D:
            k = tl.load(k_ptr + far[None] * k_s + dims[:, None], mask=inside[None], other=0.0)
        else:
            k = tl.load(k_ptr + far[None] * k_s + dims[:, None], mask=inside[None] & (dims < D)[:, None], other=0.0)
        scores = tl.dot(q, k) * scale
        if CAPPED:
            bent = tl.exp2(2 * LOG2E * tl.abs(scores / softcap))
            scores = tl.where(scores < 0, -softcap, softcap) * (1 - 2 / (bent + 1))
        shown = inside[None]
        if MASK != "none":
            if MASK_BY_ROW:
                mask_at = b * m_b + head[:, None] * m_h + token[:, None] * m_s + far[None] * m_k
                mask = tl.load(mask_ptr + mask_at, mask=real[:, None] & inside[None], other=0)
            else:
                mask = tl.load(mask_ptr + b * m_b + far * m_k, mask=inside, other=0)[None]
            if MASK == "bool":
                shown = shown & (mask != 0)
            else:
                scores += mask.to(tl.float32)
        scores = tl.where(shown, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2((scores - base[:, None]) * LOG2E)
        shrink = tl.exp2((top - base) * LOG2E)
        total = total * shrink + tl.sum(weights, 1)
        if BLOCK_DV == DV:
            v = tl.load(v_ptr + far[:, None] * v_s + dims_v[None], mask=inside[:, None], other=0.0)
        else:
            v = tl.load(
                v_ptr + far[:, None] * v_s + dims_v[None], mask=inside[:, None] & (dims_v < DV)[None], other=0.0
            )
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        top = higher
    wanted = real[:, None] & (dims_v < DV)[None]
    if SPLITS == 1:
        if SINKS:
            sink = tl.load(sinks_ptr + head, mask=real, other=0.0).to(tl.float32)
            higher = tl.maximum(top, sink)
            shrink = tl.exp2((top - higher) * LOG2E)
            total = total * shrink + tl.exp2((sink - higher) * LOG2E)
            acc = acc * shrink[:, None]
        acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        out_at = ((b * Hkv * G + head)[:, None] * Sq + token[:, None]) * DV + dims_v[None]
        tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=wanted)
    else:
        row = ((b * Hkv * G + head) * Sq + token) * SPLITS + split
        tl.store(out_ptr + row[:, None] * DV + dims_v[None], acc, mask=wanted)
        tl.store(seen_ptr + row * 2, top, mask=real)
        tl.store(seen_ptr + row * 2 + 1, total, mask=real)


@triton.jit
def join(
    part_ptr, seen_ptr, sinks_ptr, out_ptr, Sq, H,
    DV: tl.constexpr, SINKS: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """One row of the output from its splits: each is weighted by what the softmax of all keys gives it."""
    row = tl.program_id(0).to(tl.int64)
    splits, dims = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_DV)
    there = splits < SPLITS
    at = row * SPLITS + splits
    top = tl.load(seen_ptr + at * 2, mask=there, other=float("-inf"))
    total = tl.load(seen_ptr + at * 2 + 1, mask=there, other=0.0)
    acc = tl.load(part_ptr + at[:, None] * DV + dims[None], mask=there[:, None] & (dims < DV)[None], other=0.0)
    highest = tl.max(top, 0)
    if SINKS:
        sink = tl.load(sinks_ptr + (row // Sq) % H).to(tl.float32)
        highest = tl.maximum(highest, sink)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2((top - base) * LOG2E)
    sum_of_all = tl.sum(weights * total, 0)
    if SINKS:
        sum_of_all += tl.exp2((sink - base) * LOG2E)
    out = tl.sum(acc * weights[:, None], 0) / tl.where(sum_of_all == 0.0, 1.0, sum_of_all)
    tl.store(out_ptr + row * DV + dims, out.to(out_ptr.dtype.element_ty), mask=dims < DV)
