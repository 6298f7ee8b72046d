"""flash3's padding: keys are read where they lie, through tables of pages, in two launches.

The C++ op of FlashAttention-3 can look up keys in pages of any size (``page_table``), and pages may overlap: of K and V
as they are, each key begins one. So nothing is moved (`attnpass.emit.padding` moves for other kernels), and

- where an example's keys that take part follow each other, which is all that tokenizers make, they are whole pages and
  a last one of which only the front is read. Pages are as long as the kernel's tile of keys, which it then reads by TMA
  (``tile_size_fwd_sm90`` in ``hopper/tile_size.h``, ``get_pagedkv_tma`` in ``flash_api.cpp``), as fast as without a
  table;
- where they do not, or are fewer than a page, each key is a page of its own, read by cp.async: 1.12 times the time at
  head dim 128, 1.05 at 64.

Few queries (decoding) are one launch, each key a page: only so may the keys be read in parts, at the same time.

Which of both an example is, only the GPU knows. So both are launched: the first sees no key of the second kind's
examples, and the second computes no query of the first kind's, which takes it 8 us (H100, S 4096 and 8192).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter

FEW = 64  # query tokens: 1 x 131072 keys and one query took 1.45 ms in one part, 0.15 in as many as fill an H200
ARGUMENTS = {"page_table", "seqused_k", "seqused_q", "out"}  # of the C++ op, without which there is no padding
TILES = {64: 192, 128: 176, 192: 112, 256: 80}  # head dim -> keys; another size is as right, and read by cp.async


def emit(
    emitter: Emitter,
    operands: tuple[Node, Node, Node],
    order: Node,
    lengths: Node,
    numbers: tuple[float | None, float],
    heads_first: bool,
) -> Node:
    """Insert a call with padding; its tables are made once for all calls with this order.

    Args:
        emitter: inserts it.
        operands: q (B, Sq, H, D), k and v (B, Sk, Hkv, D).
        order: (B, Sk) int32, the keys of each example, those that take part first and in their own order.
        lengths: (B,) int32, how many take part.
        numbers: the scale and the softcap.
        heads_first: is the output (B, Sq, H, D) stored as (B, H, Sq, D)?
    """
    q, k, v = operands
    size = page_size(emitter.value(k).shape[-1])

    def compute(order: Tensor, lengths: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return tables_of(order, lengths, q.shape[1], size)

    key = ("flash3 pages", order, lengths, size, str(emitter.value(q).shape[1]))
    tables = emitter.once(key, lambda: emitter.inline(compute, order, lengths, q))
    return emitter(_paged.infer, q, k, v, lengths, *tables, *numbers, heads_first)


def page_size(head_dim: int) -> int:
    """Keys in a page of the first launch."""
    return next(tile for largest, tile in TILES.items() if head_dim <= largest)


def tables_of(order: Tensor, lengths: Tensor, Sq: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What both launches read, from `emit`'s ``order`` and ``lengths``; all int32.

    Returns:
        The first key of each page of the first launch, and behind them the order: (B, ceil(Sk / size) + Sk).
        How many keys the first launch reads, and how many queries the second computes: (B,).
    """
    Sk = order.shape[1]
    first = order[:, 0]
    last = order.gather(1, (lengths - 1).clamp_min(0).long().unsqueeze(1)).squeeze(1)
    is_run = (last - first + 1 == lengths) & (first + size <= Sk)
    page = torch.arange((Sk + size - 1) // size, dtype=torch.int32, device=order.device)
    whole, rest = (lengths // size).unsqueeze(1), (lengths % size).unsqueeze(1)
    # whole pages end with the run; the page cut short begins it, so that no page ends behind the last key
    starts = first.unsqueeze(1) + torch.where(page < whole, rest + page * size, 0)
    tables = torch.cat([starts * is_run.unsqueeze(1), order], 1)
    return tables.to(torch.int32), lengths * is_run, is_run.logical_not().to(torch.int32) * Sq


def splits(q: Tensor) -> int:
    """In how many parts the keys are read, at the same time: 0 lets the library choose as many as fill the GPU."""
    return 0 if q.shape[1] < FEW else 1


def empty_output(q: Tensor, heads_first: bool) -> Tensor:
    """An output (B, Sq, H, D), stored so or as (B, H, Sq, D); of fp8 operands it is bf16."""
    B, Sq, H, D = q.shape
    dtype = torch.bfloat16 if q.dtype.itemsize == 1 else q.dtype
    if heads_first:
        return q.new_empty((B, H, Sq, D), dtype=dtype).transpose(1, 2)
    return q.new_empty(q.shape, dtype=dtype)


def _paged_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    tables: Tensor,
    in_runs: Tensor,
    queries: Tensor,
    scale: float,
    softcap: float,
    heads_first: bool,
) -> Tensor:
    """(B, Sq, H, D), twice (B, Sk, Hkv, D), and what `tables_of` gives -> (B, Sq, H, D)."""
    import flash_attn_interface

    attend = flash_attn_interface.flash_attn_3_gpu.fwd.default
    Sk, size = k.shape[1], page_size(k.shape[-1])
    k, v, tables = in_place(k, v, tables)
    out = empty_output(q, heads_first)
    both = {"q": q, "out": out, "softmax_scale": scale, "softcap": softcap, "num_splits": splits(q)}
    single = {"k": pages(k, 1), "v": pages(v, 1), "page_table": tables[:, -Sk:], "seqused_k": lengths}
    if both["num_splits"] != 1:  # with `seqused_q` beside them its parts are joined wrong (H100, 3.0.0.post20260810)
        attend(**single, **both)
        return out
    if size <= Sk:
        attend(k=pages(k, size), v=pages(v, size), page_table=tables[:, :-Sk], seqused_k=in_runs, **both)
    attend(**single, seqused_q=queries, **both)
    return out


def _paged_output(q: Tensor, *rest: object) -> Tensor:
    return empty_output(q, heads_first=rest[-1] is True)


def in_place(k: Tensor, v: Tensor, tables: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K, V and the tables with their keys counted from the first example's first.

    K and V are copied only if the examples of one lie a fraction of a key apart, or those of both differently.
    """
    apart, B = keys_apart(k), tables.shape[0]
    if apart is None or apart != keys_apart(v):
        # not contiguous(), which leaves any stride to a dimension of size 1, such as that of a single key
        k, v = (x.clone(memory_format=torch.contiguous_format) for x in (k, v))
        apart = keys_apart(k)
    if apart:
        tables = tables + torch.arange(0, B * apart, apart, dtype=tables.dtype, device=tables.device).unsqueeze(1)
    return k, v, tables


def keys_apart(x: Tensor) -> int | None:
    """How many keys behind an example of (B, Sk, Hkv, D) the next one begins; None if that is no whole number."""
    example, key = x.stride()[:2]
    if x.shape[0] == 1:
        return 0
    return None if key == 0 or example % key else example // key


def pages(x: Tensor, size: int) -> Tensor:
    """K or V, which came from `in_place`, as all runs of ``size`` keys: (keys - size + 1, size, Hkv, D), a view."""
    B, Sk, Hkv, D = x.shape
    count = (B - 1) * (keys_apart(x) or 0) + Sk - size + 1
    return x.as_strided((count, size, Hkv, D), (x.stride(1), *x.stride()[1:]))


_paged = ops.attention(
    "flash3_paged(Tensor q, Tensor k, Tensor v, Tensor lengths, Tensor tables, Tensor in_runs, Tensor queries, "
    "float scale, float softcap, bool heads_first)",
    _paged_forward,
    output=_paged_output,
    vmap=True,
)
