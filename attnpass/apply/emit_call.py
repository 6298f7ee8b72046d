"""One call as the nodes of its kernel: views and casts in, the kernel, views and the wanted layout out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch.fx import Node

from attnpass.emit.emitter import EmitRefusedError, Emitter, Operands, aten
from attnpass.emit.layout import is_heads_first, layout_is_free, repeated_heads, restore_layout, takes_heads_last
from attnpass.emit.mask_tensors import narrowed, rows_with_keys
from attnpass.graph.operand import Operand
from attnpass.graph.symbolic import known_all_equal, known_equal
from attnpass.index.expr import B, H
from attnpass.index.logic import axes_of
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.hidden import ABSORBS_IN_FP16, absorbing
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import EmptyRows
from attnpass.ir.meaning import Meaning
from attnpass.ir.wiring import Addition, Wiring
from attnpass.kernels.kernel import Kernel


@dataclass(frozen=True, slots=True)
class Made:
    """What was emitted for a call.

    Attributes:
        kernel: what the kernel gives, (B, H, Sq, Dv).
        out: that as the program expects it.
        lse: the log-sum-exp as the program expects it, if it wants one.
    """

    kernel: Node
    out: Node
    lse: Node | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """Where a call stands in the graph.

    Attributes:
        node: gives its value.
        wiring: what it is computed from.
        meaning: what a proved mask means, for a kernel that computes it.
        free: may the result lie in another layout where its readers make the same of it?
    """

    node: Node
    wiring: Wiring[Node]
    meaning: Meaning | None = None
    free: bool = True


def emit_call(emitter: Emitter, call: AttentionCall, kernel: Kernel, site: Site) -> Made:
    """Emit ``kernel`` in the place of a node: views and casts in, the kernel, views and the wanted layout out.

    Args:
        emitter: inserts before the node.
        call: what is computed.
        kernel: who computes it.
        site: the node, and what stands around it.

    Returns:
        What the kernel gives, and what takes the place of the node.
    """
    node, wiring = site.node, site.wiring
    wanted, args = emitter.spec(node), operands_of(emitter, call, wiring)
    if args.mask is None:
        args = replace(args, meaning=site.meaning)
    elif site.meaning is not None and not call.needs_grad:
        args = replace(args, mask=_as_proved(emitter, args.mask, site.meaning))
    by_hand = call.pattern is Pattern.HANDWRITTEN
    free = site.free and by_hand
    if kernel.stores_as_asked and not wiring.out and is_heads_first(wanted):
        args = replace(args, heads_first=not (free and takes_heads_last(emitter, node)))
    emitted, lse = kernel.emit(emitter, call, args), None
    if args.sinks is not None and not any(user in emitter.made for user in args.sinks.users):
        raise EmitRefusedError(Rejection(Code.SINKS, "sinks", "read by nothing that the kernel emits", "read"))
    if isinstance(emitted, Node):
        out = emitted
    else:
        out, lse = emitted[0], _log_sum_exp(emitter, call, wiring, (args.q, emitted[1]))
    if call.mask.rows_may_be_empty and not call.mask.empty.is_zero:
        out = _as_softmax_leaves_empty_rows(emitter, call, wiring, args, out)
    made = out
    for step in wiring.out:
        out = emitter(step.op, out, *step.args)
    for _ in range(0 if by_hand else 4 - wanted.ndim):
        out = emitter(aten.squeeze.dim, out, 0)
    if free and layout_is_free(emitter, emitter.value(out), node):
        return Made(made, out, lse)
    return Made(made, restore_layout(emitter, out, wanted), lse)


def _as_proved(emitter: Emitter, mask: Node, meaning: Meaning) -> Node:
    """A mask that is read as a tensor, of one batch element or head where its meaning does not depend on them.

    T5 adds its bias to padding: (B, H, Sq, Sk), of which B are equal, 0.5 GB at 4 x 16 x 2048 x 2048.
    """
    axes = axes_of(meaning.allowed) | (axes_of(meaning.bias) if meaning.bias is not None else frozenset())
    shape = emitter.spec(mask).shape
    for dim, axis in enumerate((B, H) if len(shape) == 4 else ()):
        if axis not in axes and not known_equal(shape[dim], 1):
            mask = emitter(aten.slice.Tensor, mask, dim, 0, 1)
    return mask


def _log_sum_exp(emitter: Emitter, call: AttentionCall, wiring: Wiring[Node], given: tuple[Node, Node]) -> Node:
    """What a kernel gives of each row of q, (B, H, Sq or more), as the program has it."""
    wanted, (q, lse) = call.lse, given
    assert wanted is not None
    if not known_equal(emitter.spec(lse).shape[2], call.Sq):
        lse = emitter(aten.slice.Tensor, lse, 2, 0, emitter.size(q, 2))
    lse = emitter.cast(lse, wanted.dtype)
    for step in wiring.lse:
        lse = emitter(step.op, lse, *step.args)
    if not known_all_equal(emitter.spec(lse).shape, wanted.shape):
        raise EmitRefusedError(
            Rejection(Code.LOG_SUM_EXP, "shape of the log-sum-exp", str(wanted.shape), "that of the scores' rows")
        )
    return restore_layout(emitter, lse, wanted)


def operands_of(emitter: Emitter, call: AttentionCall, wiring: Wiring[Node]) -> Operands:
    """The nodes that a kernel is emitted from."""
    q, k, v = (_operand(emitter, each, call) for each in (wiring.q, wiring.k, wiring.v))
    sinks = None if wiring.sinks is None else emitter.apply(wiring.sinks)
    mask = _mask(emitter, wiring.additions, call) if call.mask.spelled is None else None
    rows = None if mask is None else _rows_that_read_scores(emitter, call, wiring.additions, mask)
    if rows is not None:  # in the others, queries of 0 give every key the same score, and get no gradient
        zero = emitter(aten.full.default, [], 0.0, dtype=emitter.spec(q).dtype, device=call.device)
        q = emitter(aten.where.self, rows, q, zero)
    return Operands(q, k, v, mask, call.scale_or_default(), sinks)


def _rows_that_read_scores(
    emitter: Emitter, call: AttentionCall, additions: Sequence[Addition[Node]], mask: Node
) -> Node | None:
    """(..., 1) bool: the rows in which scores count, where adding ``mask`` to them does not say it."""
    if not call.mask.rows_may_be_empty or call.mask.bias is None:
        return None
    if call.mask.empty is EmptyRows.AVERAGE and all(each.fill is not None for each in additions):  # written, as one sum
        return rows_with_keys(emitter, _all_of(emitter, additions))
    if call.mask.empty is EmptyRows.ROUNDED:
        return emitter(aten.any.dim, emitter(aten.gt.Scalar, mask, ABSORBS_IN_FP16), -1, True)
    return None


def _operand(emitter: Emitter, operand: Operand[Node], call: AttentionCall) -> Node:
    """4-D, and in the dtype that the kernel computes in."""
    node = emitter.apply(operand)
    for _ in range(4 - emitter.spec(node).ndim):
        node = emitter(aten.unsqueeze.default, node, 0)
    if emitter.spec(node).dtype != torch.bool and call.context.autocast is not None:
        node = emitter.cast(node, call.dtype)
    return node


def _mask(emitter: Emitter, additions: Sequence[Addition[Node]], call: AttentionCall) -> Node | None:
    """What is done to the scores, as the one mask tensor that a kernel takes."""
    if not additions:
        return None
    if call.pattern is not Pattern.HANDWRITTEN:
        (only,) = additions
        return _operand(emitter, only.operand, call)
    if call.mask.bias is None:
        return _all_of(emitter, additions)
    total, dtype = None, call.mask.bias.dtype
    for node, fill in [(emitter.apply(each.operand), each.fill) for each in additions]:
        if fill is None:
            node = narrowed(emitter, node, dtype)
            total = node if total is None else emitter(aten.add.Tensor, total, node)
        else:
            lowest = emitter(aten.full.default, [], absorbing(fill, dtype), dtype=dtype, device=call.device)
            kept = emitter(aten.full.default, [], 0.0, dtype=dtype, device=call.device) if total is None else total
            total = emitter(aten.where.self, node, kept, lowest)
    return total


def _all_of(emitter: Emitter, additions: Sequence[Addition[Node]]) -> Node:
    """Bool masks as one: a key takes part where all of them say so."""
    seen = [emitter.apply(each.operand) for each in additions]
    return reduce(lambda one, other: emitter(aten.logical_and.default, one, other), seen)


def _as_softmax_leaves_empty_rows(
    emitter: Emitter, call: AttentionCall, wiring: Wiring[Node], args: Operands, out: Node
) -> Node:
    """SDPA gives 0 for a query that sees no key; softmax over -inf gives NaN, over one finite number an average.

    An additive mask that hides a row by a finite number gives the average by itself, and so does a kernel that computes
    the mask from its meaning.
    """
    dtype = emitter.spec(out).dtype
    if call.mask.empty is EmptyRows.MIXED and args.mask is not None:  # two low numbers may add up to -inf
        factor = _one_or_nan(emitter, rows_with_keys(emitter, args.mask))
        return emitter(aten.mul.Tensor, out, emitter.cast(factor, dtype))
    if not call.mask.empty.is_nan:
        if args.mask is None or emitter.spec(args.mask).dtype != torch.bool:
            return out
        rows = rows_with_keys(emitter, args.mask)
        return emitter(aten.where.self, rows, out, emitter.cast(_average(emitter, call, args, out), dtype))
    mask = args.mask or _mask(emitter, wiring.additions, replace(call, mask=call.mask.as_spelled()))
    assert mask is not None
    written = [each for each in wiring.additions if each.fill is not None]
    # rows of which a score is not written over; written over as a whole, they give only V a gradient
    read = rows_with_keys(emitter, _all_of(emitter, written)) if written else None
    if len(written) < len(wiring.additions):  # -inf is added: a factor, so that gradients are NaN too
        rows = rows_with_keys(emitter, mask)
        if read is not None:
            rows = emitter(aten.logical_or.default, rows, emitter(aten.logical_not.default, read))
        out = emitter(aten.mul.Tensor, out, emitter.cast(_one_or_nan(emitter, rows), dtype))
    if read is not None:
        nan = emitter(aten.mul.Tensor, _average(emitter, call, args, out), _one_or_nan(emitter, read))
        out = emitter(aten.where.self, read, out, emitter.cast(nan, dtype))
    return out


def _one_or_nan(emitter: Emitter, rows: Node) -> Node:
    """A factor: NaN alone, in a row that is chosen, would make NaN of the gradients of all that are not."""
    return emitter(aten.where.Scalar, rows, 1.0, math.nan)


def _average(emitter: Emitter, call: AttentionCall, args: Operands, out: Node) -> Node:
    """What a row gives to which all keys count the same."""
    values = repeated_heads(emitter, args.v, call.H, call.Hkv)
    dtype = torch.promote_types(emitter.spec(out).dtype, torch.float32)
    return emitter(aten.mean.dim, values, [2], True, dtype=dtype)
