"""Attention written by hand: softmax between two matrix products -> `AttentionCall` and `Wiring`. Read only.

One matcher with optional parts instead of a list of patterns:

    v-product( dropout( cast( softmax( mask( bias( softcap( scale( q kᵀ ))))))), v )

Beside this file `chain` follows the values, `scores` replays what they do to the scores, `roles` names the dimensions,
and `operands` brings the operands into SDPA's layout.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Node

from attnpass.find.found import FoundCall
from attnpass.find.handwritten.axes import LostTrackError, arranged, leaves, size_of
from attnpass.find.handwritten.chain import Chain, added_sinks, dropout_of, read_chain, softmax_dim
from attnpass.find.handwritten.changes import Change, broadcast_axes
from attnpass.find.handwritten.layout import laid_out, times, traced_back
from attnpass.find.handwritten.links import Joined, RefusedError
from attnpass.find.handwritten.log_sum_exp import holder, steps_to
from attnpass.find.handwritten.operands import aten
from attnpass.find.handwritten.products import label_axes
from attnpass.find.handwritten.roles import Roles, check_total, read_roles
from attnpass.find.handwritten.rows import NEGATIONS, settle_rows
from attnpass.find.handwritten.scores import Scores
from attnpass.find.handwritten.softmaxes import Softmax, Way
from attnpass.find.present import Present
from attnpass.find.sdpa import context_of
from attnpass.graph.operand import Operand, spec_of
from attnpass.graph.ops import name_of
from attnpass.graph.reading import Reading
from attnpass.graph.regions import Region
from attnpass.graph.symbolic import Size, known, known_equal
from attnpass.graph.tensor import TensorSpec
from attnpass.graph.value import Value
from attnpass.graph.values import module_path, source_of, tensor, value_of
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.mask import EmptyRows, MaskSpec, MaskTerm, Term
from attnpass.ir.wiring import Addition, Wiring


def read_handwritten(softmax: Softmax, reading: Reading, grad: bool | None = None) -> FoundCall:
    """The attention around a softmax of the reading.

    Raises:
        RefusedError: it is none, with the node at fault and one sentence.
    """
    chain = read_chain(softmax, reading, joins=True)
    try:
        return _read(chain, reading, grad)
    except RefusedError:
        if not any(isinstance(link, Joined) for link in chain.scores):
            raise
    return _read(read_chain(softmax, reading, joins=False), reading, grad)


def _read(chain: Chain, reading: Reading, grad: bool | None) -> FoundCall:
    first = label_axes(chain.first)
    scores = Scores(first.out, chain.first.alpha)
    if chain.first.added is not None:
        scores.changes.append(_added_by_product(chain, scores))
    for link in chain.scores:
        scores.apply(link)
    roles = read_roles(chain, scores, first)
    check_total(chain, scores.axes, roles)
    try:
        return _assembled(chain, scores, roles, reading, grad)
    except LostTrackError as error:
        raise RefusedError(chain.last.node, f"the dimensions of its operands cannot be followed: {error}") from None


def _added_by_product(chain: Chain, scores: Scores) -> Change:
    """The tensor that ``baddbmm`` adds."""
    node, added = chain.first.node, chain.first.added
    assert added is not None
    return Change(added, broadcast_axes(node, added, scores.axes), node, factor=chain.first.beta)


def _assembled(chain: Chain, scores: Scores, roles: Roles, reading: Reading, grad: bool | None) -> FoundCall:
    if not known(size_of(roles.K) >= 1):
        raise RefusedError(chain.softmax, f"the number of keys, {size_of(roles.K)}, may be 0")
    node = reading.result_of(chain.out)
    if node is None:
        raise RefusedError(chain.out, "no node of the program gives the product with V alone")
    present = Present(reading, node)
    traced = traced_back(chain, roles, present)
    roles.update()
    q, k, v, scale, repeated = laid_out(traced, scores, roles, present)
    empty = settle_rows(chain, scores)
    lse, sunk = (None, ()) if chain.lse is None else holder(chain.lse, reading, node, chain.nodes)
    values = Wiring(
        q,
        k,
        v,
        tuple(_addition(change, roles, present) for change in scores.changes),
        _sinks(chain, scores, roles, present),
        _steps_out(roles),
        () if chain.lse is None else steps_to(chain.lse, scores.axes, (roles.B, roles.H, roles.Q)),
    )
    call = _call(chain, values, scores, scores.canonical_scale * scale, (reading, node), grad)
    call = call if empty is None else replace(call, mask=_with_rows(call.mask, empty, chain))
    call = call if lse is None else replace(call, lse=TensorSpec.of(value_of(lse)))
    dead = _dead(chain, (node, lse), reading)
    at = values.map_nodes(present.node)
    return FoundCall(call, node, at, values, lse=lse, sunk=sunk, dead=dead, repeated=repeated)


def _dead(chain: Chain, kept: tuple[Node | None, ...], reading: Reading) -> tuple[Node, ...]:
    """The nodes of the program that made the chain, and those that asked them for nothing but their sizes."""
    makers = {value.maker for value in chain.nodes if value.maker is not None} - set(kept)
    makers |= {user for maker in makers for user in maker.users if not user.users and user in reading.quiet}
    return tuple(sorted(makers, key=reading.places.__getitem__))


def _addition(change: Change, roles: Roles, present: Present) -> Addition[Value]:
    """A change of the scores, as (B, H, Sq, Sk) with size 1 where it broadcasts."""
    groups = (roles.B, roles.H, roles.Q, roles.K)
    node, hides_true = change.node, change.where_true
    inner = node.args[0] if node.args else None
    if (
        change.fill is not None
        and hides_true
        and not change.steps
        and name_of(node) in NEGATIONS
        and isinstance(inner, Value)
    ):
        value = tensor(inner)
        if value is not None and value.dtype == torch.bool and present(inner):
            node, hides_true = inner, False
    present.demand(node, change.at)
    operand = arranged(Operand(node, change.steps), change.axes, groups, whole=False)
    if change.fill is None:
        operand = operand if change.factor == 1 else operand.then(aten.mul.Scalar, change.factor)
        for factor in change.times:
            operand = times(operand, factor, groups, present)
        return Addition(operand if change.raised is None else operand.then(aten.clamp_min.default, change.raised))
    return Addition(operand.then(aten.logical_not.default) if hides_true else operand, change.fill)


def _sinks(chain: Chain, scores: Scores, roles: Roles, present: Present) -> Operand[Value] | None:
    """The column that was appended to the scores, as (H,)."""
    column = added_sinks(chain, softmax_dim(chain))
    if column is None:
        return None
    node = column
    while name_of(node) in ("expand", "clone") and isinstance(node.args[0], Value) and present(node.args[0]):
        node = node.args[0]
    present.demand(node, chain.softmax)
    if scores.softcap is not None:
        raise RefusedError(chain.softmax, "the scores have a softcap and sinks")
    axes = broadcast_axes(chain.softmax, node, scores.axes)
    return arranged(Operand(node), axes, (roles.H,), whole=True)


def _steps_out(roles: Roles) -> tuple:  # type: ignore[type-arg]
    """From (B, H, Sq, Dv) to the dimensions of the product with V."""
    from_axes = tuple(leaves(group) for group in (roles.B, roles.H, roles.Q, roles.Dv))
    nobody: Value = None  # type: ignore[assignment]
    return arranged(Operand(nobody), from_axes, tuple(leaves(axis) for axis in roles.out), whole=False).steps


def _call(
    chain: Chain,
    wiring: Wiring[Value],
    scores: Scores,
    scale: float,
    at: tuple[Reading, Node],
    grad: bool | None,
) -> AttentionCall:
    reading, node = at
    region = reading.regions[node]
    specs = [spec_of(operand) for operand in (wiring.q, wiring.k, wiring.v)]
    masks = [spec_of(each.operand) for each in wiring.additions]
    sinks = None if wiring.sinks is None else spec_of(wiring.sinks)
    trained = any(spec.requires_grad for spec in (*specs, *masks, *([sinks] if sinks else [])))
    values = [tensor(node) for node in replace(wiring, sinks=None).nodes()]
    return AttentionCall(
        q=specs[0],
        k=specs[1],
        v=specs[2],
        out=TensorSpec.of(value_of(node)),
        mask=_mask(chain, wiring, masks, scores, specs[0], region),
        scale=scale,
        softcap=scores.softcap,
        sinks=sinks,
        dropout_p=dropout_of(chain),
        enable_gqa=not known_equal(specs[0].shape[1], specs[1].shape[1]),
        needs_grad=region.grad and (trained if grad is None else grad),
        context=context_of(region, specs[0], [value for value in values if value is not None], ""),
        node=node.name,
        module=module_path(node.meta),
        source=source_of(node.meta),
        pattern=Pattern.HANDWRITTEN,
    )


def _mask(
    chain: Chain, wiring: Wiring[Value], masks: list[TensorSpec], scores: Scores, q: TensorSpec, region: Region
) -> MaskSpec:
    """One bool tensor if all that is done hides keys, else one bias. Rows that see no key give what softmax gives."""
    if not masks:
        return MaskSpec()
    fills = [each.fill for each in wiring.additions if each.fill is not None]
    raised = any(change.raised is not None for change in scores.changes)
    finite = raised or (bool(fills) and fills[0] > -float("inf"))
    empty = EmptyRows.AVERAGE if finite else EmptyRows.NAN if fills else EmptyRows.NAN_ADDED
    if wiring.sinks is not None or (chain.normalised.way is Way.SAFE and not finite):
        empty = EmptyRows.ZERO
    spec = masks[0] if len(masks) == 1 else _together(masks)
    bias = len(fills) < len(masks)
    if finite and bias and empty is EmptyRows.AVERAGE:
        if chain.normalised.way is Way.SAFE:
            raise RefusedError(
                chain.softmax, "a softmax that gives 0 for -inf, of scores that are hidden in several ways"
            )
        empty = EmptyRows.MIXED
    elif bias and empty.is_nan and scores.rounded:
        empty = EmptyRows.ROUNDED
    elif empty is EmptyRows.NAN and scores.torn:
        empty = EmptyRows.NAN_MIXED
    averaged = finite and dropout_of(chain) > 0  # the average of such a row drops out too
    if not bias and not averaged:
        return MaskSpec((MaskTerm(Term.TENSOR, tensor=spec),), rows_may_be_empty=True, empty=empty)
    dtypes = [mask.dtype for mask in masks if mask.dtype != torch.bool]
    dtype = q.dtype if all(each == q.dtype for each in dtypes) else torch.float32
    autocast = region.autocast.get(q.device.type)
    if autocast is not None and q.dtype != torch.float64:
        dtype = autocast
    if finite and dtype == torch.float16:
        dtype = torch.float32  # fp16 has no number that hides a score: -65504 + 10 is not -65504 in fp32
    return MaskSpec(bias=replace(spec, dtype=dtype), rows_may_be_empty=True, empty=empty)


def _with_rows(mask: MaskSpec, empty: EmptyRows, chain: Chain) -> MaskSpec:
    """``mask`` with what its hidden rows give; what made 0 of NaN changes nothing where they give something else."""
    if mask.empty in (EmptyRows.ROUNDED, EmptyRows.MIXED):
        raise RefusedError(chain.softmax, "rows hidden in several ways, or rounded ones, are made 0 behind the softmax")
    return replace(mask, empty=empty) if mask.empty.is_nan else mask


def _together(masks: list[TensorSpec]) -> TensorSpec:
    """The metadata of several masks combined: broadcast, dense."""
    shape: list[Size] = [1, 1, 1, 1]
    for mask in masks:
        shape = [a if known_equal(b, 1) else b for a, b in zip(shape, mask.shape, strict=True)]
    stride: Size = 1
    strides: list[Size] = []
    for size in reversed(shape):
        strides.insert(0, stride)
        stride = stride * size
    grad = any(mask.requires_grad for mask in masks)
    return TensorSpec(tuple(shape), tuple(strides), masks[0].dtype, masks[0].device, grad)


__all__ = ["RefusedError", "read_handwritten"]
