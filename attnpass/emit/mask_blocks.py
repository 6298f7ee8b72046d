"""Blocks of a mask: which (query block, key block) pairs hold work, and which need no look at single elements.

FlexAttention and FlashAttention-4 skip the blocks that hold none, and look only into those that are partly visible.
Per conjunct, not per element, wherever that is exact enough: a linear rule is looked at in the corners of a block, one
that depends on keys or on queries alone once per key or query. Only what mixes both in another way (chunks, segments)
is computed at every (q, k), inside one fused reduction that stores nothing of size Sq x Sk. A block may be called
partly visible without being it; the mask function decides there. ``create_block_mask`` of FlexAttention gives the same
sets after computing every element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit.emitter import Emitter
from attnpass.emit.fixed_layout import all_fixed
from attnpass.emit.mask_values import along, bounds_of, number_of, symbols_of, values_of
from attnpass.graph.symbolic import Size, known_equal, known_multiple
from attnpass.index.evaluate import Values, as_tensor, evaluate, outside_loads
from attnpass.index.expr import AXES, B, Expr, H, K, Lin, NonNeg, Q, size_key
from attnpass.index.logic import axes_of, loads_of
from attnpass.index.simplify import conjuncts, side_of
from attnpass.ir.call import AttentionCall

BLOCK = 128

ValuesAt = Callable[[dict[str, Tensor]], Values]


def block_lists(emitter: Emitter, call: AttentionCall, q: Node, k: Node, allowed: Expr) -> list[Node]:
    """The block lists of a mask, computed in the graph, in the order of `BlockMask`'s constructor.

    In inference only the first four: the others are for the backward.

    They are given a fixed layout: Inductor may give what it computes any strides, and FlexAttention's kernel takes the
    lists as contiguous (an illegal memory access on an H100, PyTorch 2.11).
    """
    nodes = [load.node for load in loads_of(allowed)]
    outside, band = outside_loads(allowed, bounds_of(call)), _band(allowed)

    def compute(q: Tensor, k: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        sizes = (*q.shape[:3], k.shape[2])
        if band is not None:
            left, right = (None if side is None else _side(side, symbols_of(q, k)) for side in band)
            return band_blocks(sizes[2], sizes[3], left, right, q.device)

        def values(places: dict[str, Tensor]) -> Values:
            return values_of(allowed, places, q, k, nodes, tensors, outside)

        return blocks(allowed, sizes, values, q.device)

    lists = list(emitter.inline(compute, q, k, *nodes))
    return all_fixed(emitter, lists if call.needs_grad else lists[:4])


def _band(allowed: Expr) -> tuple[Size | None, Size | None] | None:
    """``(left, right)`` of a mask that is one band around the diagonal; None for any other mask."""
    sides: dict[int, Size] = {}
    for part in conjuncts(allowed):
        side = side_of(part)
        if side is None or side[0] in sides:
            return None
        sides[side[0]] = side[1]
    return (sides.get(1), sides.get(-1)) if sides else None


def _side(size: Size, symbols: dict[Any, Any]) -> Any:
    return size if isinstance(size, int) else number_of(size_key(size), symbols)


def blocks(allowed: Expr, sizes: Sequence[Any], values: ValuesAt, device: torch.device) -> tuple[Tensor, ...]:
    """The blocks of ``allowed``, in the order of `BlockMask`'s constructor: kv side, then q side; partial, then full.

    Args:
        allowed: who takes part.
        sizes: B, H, Sq, Sk.
        values: what the expression is computed from, for index tensors of its axes.
        device: where.
    """
    named = dict(zip(AXES, sizes, strict=True))
    grid = {axis: torch.arange(block_count(named[axis]), device=device) * BLOCK for axis in (Q, K)}
    ends = {axis: torch.clamp(start + BLOCK - 1, max=named[axis] - 1) for axis, start in grid.items()}
    rows, cols = grid[Q][:, None], grid[K]
    maybe = ((rows < named[Q]) & (cols < named[K]))[None, None]
    surely = ((rows + BLOCK <= named[Q]) & (cols + BLOCK <= named[K]))[None, None]
    for part in conjuncts(allowed):
        if isinstance(part, NonNeg) and axes_of(part) <= {Q, K}:
            known = values(grid)
            low, high = (_corner(part.form, grid, ends, upper, known) for upper in (False, True))
            some, every = (high >= 0)[None, None], (low >= 0)[None, None]
        else:
            some, every = _computed(part, named, grid, values, device)
        maybe, surely = maybe & some, surely & every
    partial = maybe & ~surely
    return (
        *_ordered(partial),
        *_ordered(surely),
        *_ordered(partial.transpose(-2, -1)),
        *_ordered(surely.transpose(-2, -1)),
    )


def band_blocks(Sq: Any, Sk: Any, left: Any, right: Any, device: torch.device) -> tuple[Tensor, ...]:
    """The blocks of ``q - left <= k <= q + right`` (None for no bound) in closed form, in the order of `blocks`.

    A block that reaches over the end of q or k counts as partly visible.
    """
    lists = (*_band_side(Sq, Sk, left, right, device), *_band_side(Sk, Sq, right, left, device))
    return tuple(x.to(torch.int32)[None, None] for x in lists)


def _band_side(length: Any, others: Any, left: Any, right: Any, device: torch.device) -> tuple[Tensor, ...]:
    """For each block of one side: how many of the other's are partly visible, which, how many fully, and which."""
    cols = block_count(others)
    start = torch.arange(block_count(length), device=device) * BLOCK
    j = torch.arange(cols, device=device)
    zero, end = start * 0, torch.clamp(start + BLOCK - 1, max=length - 1)
    nearest = zero if left is None else torch.clamp(start - left, min=0)
    farthest = zero + others - 1 if right is None else torch.clamp(end + right, max=others - 1)
    low = _block_of(nearest)
    visible = torch.where((start < length) & (nearest <= farthest), _block_of(farthest) - low + 1, 0)
    first = zero if left is None else torch.clamp(_block_of(start + 2 * BLOCK - 2 - left), min=0)
    last = zero + others // BLOCK - 1
    last = last if right is None else torch.minimum(_block_of(start + right - BLOCK + 1), last)
    full = torch.where(start + BLOCK <= length, torch.clamp(last - first + 1, min=0), 0)
    before = torch.where(full > 0, first - low, 0)[:, None]
    behind = torch.where(full > 0, first + full, low)[:, None]  # where the partly visible ones go on
    partial = torch.where(j < before, low[:, None] + j, behind + j - before) % cols
    return visible - full, partial, full, (first[:, None] + j) % cols


def _block_of(position: Tensor) -> Tensor:
    """``position // BLOCK`` as a shift: Inductor 2.13 fails on the division of an index that may be negative."""
    return position >> (BLOCK.bit_length() - 1)


def block_count(length: Size) -> Any:
    """Blocks in a length; a symbolic one gets an empty block more, since a size that may be 1 makes tracers guard."""
    count = (length + BLOCK - 1) // BLOCK
    return count if isinstance(count, int) else count + 1


def _corner(form: Lin, starts: dict[str, Tensor], ends: dict[str, Tensor], upper: bool, values: Values) -> Tensor:
    """The smallest or largest value of a linear form in each block."""
    corner = {axis: (ends if (factor > 0) == upper else starts)[axis] for axis, factor in form.terms}
    places = {axis: along[:, None] if axis == Q else along for axis, along in corner.items()}
    result: Tensor = evaluate(form, replace(values, axes=places))
    return result.broadcast_to((starts[Q].shape[0], starts[K].shape[0]))


def _computed(
    part: Expr, named: dict[str, Any], grid: dict[str, Tensor], values: ValuesAt, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Does the part hold somewhere in a block, and everywhere? Looked at for each element that it depends on."""
    axes = [axis for axis in AXES if axis in axes_of(part)]
    lengths = {axis: grid[axis].shape[0] * BLOCK for axis in (Q, K)}
    shape: list[Any] = [named[axis] if axis in axes else 1 for axis in (B, H)]
    places: dict[str, Tensor] = {}
    for axis in axes:
        index = torch.arange(lengths.get(axis, named[axis]), device=device)
        if axis in lengths and not known_multiple(named[axis], BLOCK):
            index = torch.clamp(index, max=named[axis] - 1)  # repeats the last element, which changes nothing
        places[axis] = along(axis, index)
    value = as_tensor(evaluate(part, values(places)), torch.bool, device)
    folded: list[Any] = list(shape)
    reduced: list[int] = []
    for axis in (Q, K):
        folded += [grid[axis].shape[0], BLOCK] if axis in axes else [1]
        reduced += [len(folded) - 1] if axis in axes else []
    value = value.expand([*shape, *(lengths[axis] if axis in axes else 1 for axis in (Q, K))]).reshape(folded)
    if not reduced:
        return value, value
    shown = value.sum(reduced, dtype=torch.int32)  # one reading: any and all by themselves took 41 us, this takes 8
    return shown > 0, shown == BLOCK ** len(reduced)


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, and the numbers of those that are, first; what follows them is any number.

    The p-th is the first up to which p are set: a sum and a search. Triton compiled a sort of 32 in 1.4 s, in each of
    four configurations (and of 64 in 2.7), a sum in 0.05 s: the first call of a Llama took 58 s with it, 24 s without
    any mask of ours.
    """
    places = dense.to(torch.int32).cumsum(-1, dtype=torch.int32).contiguous()
    blocks = places.shape[-1]
    if known_equal(blocks, 1):  # Inductor 2.11 generates a search for a constant that does not compile
        return places[..., -1], places * 0
    wanted = torch.arange(1, blocks + 1, dtype=torch.int32, device=dense.device).expand(places.shape).contiguous()
    found = torch.searchsorted(places, wanted, out_int32=True)
    return places[..., -1], found.clamp(max=blocks - 1)
