"""A proved mask's blocks, computed in the graph: what FlexAttention and FlashAttention-4 skip, and where they look.

`attnpass.emit.blocks` says which blocks hold work; here they are computed from the tensors of a call's graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node

from attnpass.emit.blocks import band_blocks, blocks
from attnpass.emit.emitter import Emitter
from attnpass.emit.fixed_layout import all_fixed
from attnpass.emit.mask_values import bounds_of, number_of, symbols_of, values_of
from attnpass.graph.symbolic import Size
from attnpass.index.evaluate import Values, outside_loads
from attnpass.index.expr import Expr, K, NonNeg, Q, size_key
from attnpass.index.logic import axes_of, loads_of
from attnpass.index.simplify import conjuncts
from attnpass.ir.call import AttentionCall


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


def side_of(part: Expr) -> tuple[int, Size] | None:
    """A bound on one side of the diagonal: ``(1, left)`` for ``q - left <= k``, ``(-1, right)`` for ``k <= q + right``.

    None for anything else.
    """
    if not isinstance(part, NonNeg) or axes_of(part) != {Q, K}:
        return None
    sign = part.form.factor(K)
    return (sign, part.form.const) if abs(sign) == 1 and part.form.factor(Q) == -sign else None


def _side(size: Size, symbols: dict[Any, Any]) -> Any:
    return size if isinstance(size, int) else number_of(size_key(size), symbols)
