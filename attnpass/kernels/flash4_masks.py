"""Masks for FlashAttention-4 that are rules and padding together, such as ``k <= q and padding[b, k]``.

The kernel takes a mask function (in CuTe DSL) and, as FlexAttention does, lists of the blocks that hold work: it skips
those that hold none, and asks the function only in those that are partly visible. So padding beside causal runs at the
speed of Hopper's matrix units: B2 H32 Hkv8 S4096 D128 took 0.52 ms so, 0.74 ms with FlexAttention's Triton code, and
1.65 ms in PyTorch with the mask as a tensor (H100, flash-attn-4 4.0.0b36; ``benchmarks/results/forms_h100.jsonl``).

What the source says (``flash_attn/cute``: ``interface.py``, ``block_sparsity.py``, ``mask.py``, 4.0.0b36): a block is
as wide as a tile of the kernel, 128 keys on sm_90 up to head dim 128; on sm_10x it is 256 queries high, which nobody
ran here; there are as many blocks as the lengths say, so lengths have to be numbers; and the function may be asked
about places behind the last key, so what it reads is longer than the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import EmitRefusedError, Emitter, Operands
from attnpass.emit.layout import bshd
from attnpass.emit.mask_blocks import BLOCK, block_lists
from attnpass.emit.mask_values import computed, sizes_of
from attnpass.graph.symbolic import as_int, known, shown
from attnpass.index.expr import TRUE, B, Expr, K
from attnpass.index.logic import all_of, axes_of
from attnpass.index.simplify import conjuncts, side_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import Term

FAR = 1 << 30  # from the diagonal; the kernel counts in int32
WIDEST = 128  # head dim up to which a tile is as wide as a block


def has_function(call: AttentionCall) -> bool:
    """Is the mask more than rules that the kernel has, or a number of keys?"""
    return call.mask.has(Term.KEY_PADDING) and not call.mask.is_only(Term.KEY_PADDING)


def refusals(call: AttentionCall) -> Iterator[Rejection]:
    """What the kernel does not take beside such a mask."""
    if not known(call.D <= WIDEST):
        yield Rejection(Code.HEAD_DIM, "head_dim beside this mask", shown(call.D), f"at most {WIDEST}")
    for name, size in (("Sq", call.Sq), ("Sk", call.Sk)):
        if as_int(size) is None:
            yield Rejection(Code.DYNAMIC, f"{name} beside this mask", shown(size), "a number")


def emit(emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
    """The call with its mask as a function: (B, Sq, H, D)."""
    mask = _shared(emitter, call, args)
    return _masked.emit(emitter, call, *bshd(emitter, args), *mask, args.scale, call.softcap or 0.0)


@dataclass(frozen=True, slots=True)
class Parts:
    """``q - left <= k <= q + right``, None for no bound, and a rule that depends on the example and the key alone."""

    left: int | None
    right: int | None
    keys: Expr


def parts_of(allowed: Expr) -> Parts:
    """A mask taken apart.

    Raises:
        EmitRefusedError: it says something else too.
    """
    sides: dict[int, int] = {}
    keys: list[Expr] = []
    for part in conjuncts(allowed):
        sign, bound = side_of(part) or (0, None)
        if axes_of(part) <= {B, K}:
            keys.append(part)
        elif isinstance(bound, int):
            sides[sign] = max(-FAR, min(bound, sides.get(sign, FAR)))
        else:
            raise EmitRefusedError(Rejection(Code.MASK, "mask", str(part), "a band, and padding for each example"))
    return Parts(sides.get(1), sides.get(-1), all_of(keys) if keys else TRUE)


def _shared(emitter: Emitter, call: AttentionCall, args: Operands) -> tuple[Any, ...]:
    """What the op takes behind q, k and v: the block lists, the keys that take part, and the bounds.

    Shared by all calls with the same mask.
    """
    assert args.meaning is not None, "a mask that was proved has a meaning"
    allowed = args.meaning.allowed
    key = ("flash4 mask", allowed, *map(str, sizes_of(call)), emitter.epoch)
    return emitter.once(key, lambda: _make(emitter, call, args, allowed))


def _make(emitter: Emitter, call: AttentionCall, args: Operands, allowed: Expr) -> tuple[Any, ...]:
    parts = parts_of(allowed)
    lists = block_lists(emitter, call, args.q, args.k, allowed)
    seen = computed(emitter, call, args.q, args.k, parts.keys, (B, K))
    axes = axes_of(parts.keys)

    def as_table(q: Tensor, k: Tensor, seen: Tensor) -> Tensor:
        whole = seen.reshape([k.shape[i] if axis in axes else 1 for i, axis in ((0, B), (2, K))])
        table = whole.expand(q.shape[0], k.shape[2]).to(torch.int32)
        return torch.cat([table, table.new_zeros(q.shape[0], -k.shape[2] % BLOCK + BLOCK)], dim=1)

    keys = emitter.inline(as_table, args.q, args.k, seen)
    return (*lists, keys, parts.left, parts.right)


@lru_cache
def _mask_function(left: int | None, right: int | None) -> Callable[..., Any]:
    """``keys[b, k] != 0`` inside the band, for single scores, as CuTe compiles it into the kernel."""
    import cutlass  # type: ignore[import-not-found]
    import cutlass.cute as cute  # type: ignore[import-not-found]
    from flash_attn.cute import utils

    @cute.jit  # type: ignore[untyped-decorator]
    def takes_part(batch: Any, head: Any, q: Any, k: Any, seqlen_info: Any, tables: Any) -> Any:
        listed = utils.scalar_to_ssa(tables[0][batch[0], k[0]], cutlass.Int32)
        seen = listed != utils.scalar_to_ssa(0, cutlass.Int32)
        if cutlass.const_expr(right is not None):
            seen = seen & (k <= q + utils.scalar_to_ssa(right, cutlass.Int32))
        if cutlass.const_expr(left is not None):
            seen = seen & (q <= k + utils.scalar_to_ssa(left, cutlass.Int32))
        return seen

    function: Callable[..., Any] = takes_part
    return function


def _masked_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    indices: Tensor,
    full_counts: Tensor,
    full_indices: Tensor,
    keys: Tensor,
    left: int | None,
    right: int | None,
    scale: float,
    softcap: float,
) -> Tensor:
    """(B, Sq, H, D), twice (B, Sk, Hkv, D) -> (B, Sq, H, D), contiguous.

    ``counts`` and ``indices`` say for each block of queries how many blocks of keys are partly visible, and which;
    ``full_`` those that are wholly visible. ``keys``: (B, Sk and a block more) int32, not 0 where a key takes part.
    ``left`` and ``right``: keys seen beside the top-left diagonal.
    """
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _flash_attn_fwd

    lists = BlockSparseTensorsTorch(counts, indices, full_counts, full_indices, block_size=(BLOCK, BLOCK))
    out: Tensor = _flash_attn_fwd(
        q=q,
        k=k,
        v=v,
        softmax_scale=scale,
        softcap=softcap,
        mask_mod=_mask_function(left, right),
        block_sparse_tensors=lists,
        aux_tensors=[keys],
        num_splits=1,
        return_lse=False,
    )[0]
    return out


_masked = ops.attention(
    "flash4_masked(Tensor q, Tensor k, Tensor v, Tensor counts, Tensor indices, Tensor full_counts, "
    "Tensor full_indices, Tensor keys, int? left, int? right, float scale, float softcap)",
    _masked_forward,
)
