"""Mask tensors for libraries that read them in another way than PyTorch: rows without keys, and biases added early.

A row that sees no key is 0 in PyTorch. Libraries give NaN, an average of all values, or 0 on request. So such a row is
shown every key, which is harmless, and its output is replaced by 0 in the graph; its gradients are 0 by that too.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from attnpass.emit.emitter import Emitter, Operands, aten
from attnpass.ir.call import AttentionCall

INF = float("inf")


def rows_with_keys(emitter: Emitter, mask: Node) -> Node:
    """(..., 1) bool: does the row see a key at all? For a bool mask (True = take part) or an additive one."""
    is_bool = emitter.spec(mask).dtype == torch.bool
    return emitter(aten.any.dim, mask if is_bool else emitter(aten.ne.Scalar, mask, -INF), -1, True)


def with_empty_rows_shown(emitter: Emitter, mask: Node, rows: Node) -> Node:
    """``mask``, where a row that sees no key sees all of them."""
    if emitter.spec(mask).dtype == torch.bool:
        return emitter(aten.logical_or.default, mask, emitter(aten.logical_not.default, rows))
    return emitter(aten.where.ScalarOther, rows, mask, 0.0)


def with_empty_rows_zero(emitter: Emitter, out: Node, rows: Node | None) -> Node:
    """A BHSD output, 0 in the rows that see no key."""
    return out if rows is None else emitter(aten.where.ScalarOther, rows, out, 0.0)


def raised(emitter: Emitter, bias: Node, lowest: float) -> Node:
    """An additive mask with its finite values raised to ``lowest``, where its dtype has lower ones; -inf stays."""
    if torch.finfo(emitter.spec(bias).dtype).min >= lowest:
        return bias
    hidden = emitter(aten.eq.Scalar, bias, -INF)
    return emitter(aten.where.self, hidden, bias, emitter(aten.clamp_min.default, bias, lowest))


def narrowed(emitter: Emitter, bias: Node, dtype: torch.dtype) -> Node:
    """An additive mask in ``dtype``; large finite numbers stay finite: -inf would turn an average into NaN."""
    return emitter.cast(raised(emitter, bias, torch.finfo(dtype).min), dtype)


def before_scale(emitter: Emitter, bias: Node, scale: float, lowest: float) -> Node:
    """An additive mask for a library that adds it *before* it multiplies by the scale: divided by it, in fp32.

    Large finite values stop at ``lowest``: a division that makes -inf of them would turn an average into NaN or 0.
    """
    divided = emitter(aten.div.Tensor, emitter.cast(bias, torch.float32), scale)
    return emitter(aten.clamp_min.default, divided, lowest)


def expanded(emitter: Emitter, call: AttentionCall, args: Operands, mask: Node, batch: bool, heads: bool) -> Node:
    """``mask`` as a view with all of its rows and keys; of its batch and heads too, where asked for."""
    sizes = [emitter.size(args.q, 0) if batch else -1, emitter.size(args.q, 1) if heads else -1]
    return emitter(aten.expand.default, mask, [*sizes, emitter.size(args.q, 2), emitter.size(args.k, 2)])
