"""Padding as a number of keys: for kernels that take how many keys each example has, and skip the rest.

Softmax does not know the order of its keys. So where a mask says no more than which keys of an example take part, those
are moved to the front, K and V alike, and the kernel is told how many they are. That is exact for any padding, left,
right or scattered; nothing is read from the device to decide it; and keys that are padding cost nothing, where a mask
tensor makes every kernel slower. The order is worked out once for all layers that share the mask; a mask that is a
prefix by its meaning (``k < lengths[b]``) needs none. A kernel that looks keys up in a table is given the order
instead, and K and V stay where they are (`by_order`).

With causal or a window the places of the keys matter, and in training the gradients of the keys behind the last one
would be whatever lies in memory: such calls are refused (`Limits.padding_by_length`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit.emitter import EmitRefusedError, Emitter, Operands, aten
from attnpass.emit.layout import transposed
from attnpass.emit.mask_values import computed, sizes_of
from attnpass.index.expr import Apply, B, Expr, K, Lin, NonNeg
from attnpass.index.logic import axes_of
from attnpass.index.simplify import conjuncts
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import EmptyRows, Term


def by_length(emitter: Emitter, call: AttentionCall, args: Operands) -> tuple[Operands, Node | None]:
    """The operands with the keys that take part in front, and how many they are: (B,) int32, None without padding.

    Raises:
        EmitRefusedError: the mask is another for each head, or reads a size that no operand has.
    """
    args, lengths, order = by_order(emitter, call, args)
    if order is not None:
        example = _examples(emitter, call, args)
        args = replace(args, k=_moved(emitter, args.k, example, order), v=_moved(emitter, args.v, example, order))
    return args, lengths


def by_order(emitter: Emitter, call: AttentionCall, args: Operands) -> tuple[Operands, Node | None, Node | None]:
    """As `by_length`, with K and V as they were, and the order in which to read their keys.

    The order is (B, Sk) int32, those that take part first; None without padding, and where they stand in front already.
    """
    if not call.mask.has(Term.KEY_PADDING):
        return args, None, None
    assert args.meaning is not None, "a mask that was proved has a meaning"
    order, lengths, empty = _shared(emitter, call, args, args.meaning.allowed)
    if empty is not None and call.mask.empty is not EmptyRows.RAW:  # equal scores for all keys: their average
        zero = emitter(aten.full.default, [], 0.0, dtype=call.dtype, device=call.device)
        args = replace(args, q=emitter(aten.where.self, empty, zero, args.q))
    return args, lengths, order


def _shared(
    emitter: Emitter, call: AttentionCall, args: Operands, allowed: Expr
) -> tuple[Node | None, Node, Node | None]:
    """The order of the keys, their number, and which examples give an average: once for all calls with this mask."""
    averages = call.mask.shows_empty_rows
    key = ("padding", allowed, averages, *map(str, sizes_of(call)), emitter.epoch)
    return emitter.once(key, lambda: _make(emitter, call, args, allowed, averages))


def _make(
    emitter: Emitter, call: AttentionCall, args: Operands, allowed: Expr, averages: bool
) -> tuple[Node | None, Node, Node | None]:
    if not axes_of(allowed) <= {B, K}:
        raise EmitRefusedError(Rejection(Code.MASK, "padding", "another one for each head", "one for all heads"))
    seen = computed(emitter, call, args.q, args.k, allowed, (B, K))
    is_prefix = all(map(_hides_a_tail, conjuncts(allowed)))

    def compute(q: Tensor, k: Tensor, seen: Tensor) -> tuple[Tensor | None, ...]:
        seen = seen.expand(q.shape[0], k.shape[2])
        found = seen.sum(1, dtype=torch.int32)
        empty = (found == 0)[:, None, None, None] if averages else None
        lengths = torch.where(found == 0, k.shape[2], found).to(torch.int32) if averages else found
        return None if is_prefix else in_order(seen, found), lengths, empty

    order, lengths, empty = emitter.inline(compute, args.q, args.k, seen)
    return order, lengths, empty


def in_order(seen: Tensor, found: Tensor) -> Tensor:
    """The keys of each example, those that are ``seen`` (B, Sk) first: (B, Sk) int32, by counting, not by sorting."""
    key = torch.arange(seen.shape[1], dtype=torch.int32, device=seen.device).expand(seen.shape)
    before = seen.cumsum(1, dtype=torch.int32)  # seen keys up to and with this one
    place = torch.where(seen, before - 1, found.unsqueeze(1) + key - before)
    return torch.empty_like(key, memory_format=torch.contiguous_format).scatter(1, place.long(), key)


def _examples(emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
    """The number of each example, (B, 1): once for all calls with as many."""

    def make() -> Node:
        count = emitter.size(args.q, 0)
        numbers = emitter(aten.arange.default, count, dtype=torch.int32, device=call.device)
        return emitter(aten.unsqueeze.default, numbers, 1)

    node: Node = emitter.once(("examples", str(call.B), str(call.device)), make)
    return node


def _moved(emitter: Emitter, x: Node, example: Node, order: Node) -> Node:
    """K or V (B, Hkv, Sk, D) with its keys in another order, stored as (B, Sk, Hkv, D)."""
    return transposed(emitter, emitter(aten.index.Tensor, transposed(emitter, x), [example, order]))


def _hides_a_tail(part: Expr) -> bool:
    """Does a key that takes part mean that all keys before it do: ``k < n``, where ``n`` does not depend on k?"""
    if isinstance(part, NonNeg):
        return part.form.factor(K) < 0
    if isinstance(part, Apply) and part.op in ("lt", "le"):
        left, right = part.args
        return isinstance(left, Lin) and left.factor(K) > 0 and K not in axes_of(right)
    return False
