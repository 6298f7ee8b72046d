"""Blocks of a mask: which (query block, key block) pairs hold work, and which need no look at single elements.

Per conjunct, not per element, wherever that is exact enough: a linear rule is looked at in the corners of a block, one
that depends on keys or on queries alone once per key or query. Only what mixes both in another way (chunks, segments)
is computed at every (q, k), inside one fused reduction that stores nothing of size Sq x Sk. A block may be called
partly visible without being it; the mask function decides there. ``create_block_mask`` of FlexAttention gives the same
sets after computing every element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attnpass.graph.symbolic import Size
from attnpass.index.evaluate import Values, as_tensor, evaluate
from attnpass.index.expr import AXES, B, Expr, H, K, Lin, NonNeg, Q
from attnpass.index.logic import axes_of
from attnpass.index.simplify import conjuncts

BLOCK = 128

ValuesAt = Callable[[dict[str, Tensor]], Values]


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
            size = values(grid).sizes
            low, high = (_corner(part.form, grid, ends, upper, size) for upper in (False, True))
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


def _corner(form: Lin, low: dict[str, Tensor], high: dict[str, Tensor], upper: bool, sizes: Any) -> Tensor:
    """The smallest or largest value of a linear form in each block."""
    total: Any = form.const if isinstance(form.const, int) else sizes[form.const.node.expr]
    for axis, factor in form.terms:
        end = (high if (factor > 0) == upper else low)[axis]
        total = total + factor * (end[:, None] if axis == Q else end)
    result: Tensor = total
    return result.broadcast_to((low[Q].shape[0], low[K].shape[0]))


def _computed(
    part: Expr, named: dict[str, Any], grid: dict[str, Tensor], values: ValuesAt, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Does the part hold somewhere in a block, and everywhere? Looked at for each element that it depends on."""
    axes = axes_of(part)
    lengths = {axis: grid[axis].shape[0] * BLOCK for axis in (Q, K)}
    shape: list[Any] = [named[axis] if axis in axes else 1 for axis in (B, H)]
    places: dict[str, Tensor] = {}
    for position, axis in enumerate(AXES):
        if axis not in axes:
            continue
        along = torch.arange(lengths.get(axis, named[axis]), device=device)
        if axis in lengths:
            along = torch.clamp(along, max=named[axis] - 1)  # repeats the last element, which changes nothing
        places[axis] = along.reshape([-1 if position == i else 1 for i in range(4)])
    value = as_tensor(evaluate(part, values(places)), torch.bool, device)
    folded: list[Any] = list(shape)
    reduced: list[int] = []
    for axis in (Q, K):
        folded += [grid[axis].shape[0], BLOCK] if axis in axes else [1]
        reduced += [len(folded) - 1] if axis in axes else []
    value = value.expand([*shape, *(lengths[axis] if axis in axes else 1 for axis in (Q, K))]).reshape(folded)
    some, every = value, value
    for dim in reversed(reduced):
        some, every = some.any(dim), every.all(dim)
    return some, every


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, and the numbers of those that are, first."""
    numbers = torch.argsort(dense.to(torch.int32), dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32), numbers.to(torch.int32)
