"""q, k and v of a chain as SDPA takes them, with what the scores were multiplied by and the products added to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.fx import Node

from attnpass.find.handwritten.axes import arranged, fresh, leaves
from attnpass.find.handwritten.chain import Chain
from attnpass.find.handwritten.changes import Change, Factor
from attnpass.find.handwritten.links import RefusedError
from attnpass.find.handwritten.operands import Traced, aten, placed, trace_back, without_repeats
from attnpass.find.handwritten.roles import Group, Roles
from attnpass.find.handwritten.scores import Scores
from attnpass.find.present import Present
from attnpass.graph.operand import Operand, value_behind
from attnpass.graph.ops import spelled
from attnpass.graph.symbolic import as_int
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

HALF = (torch.float16, torch.bfloat16)
ALIGNED = 8  # elements: no kernel for half precision takes a head dim that is no multiple


@dataclass(slots=True)
class TracedOperands:
    """q, k and v followed back, and q and k of each further product with its D and its ratio."""

    q: Traced
    k: Traced
    v: Traced
    parts: list[tuple[Traced, Traced, Group, float]]


class LaidOut(NamedTuple):
    """The operands, the factor that was taken out of them, and k and v before the repeats of heads were undone."""

    q: Operand[Value]
    k: Operand[Value]
    v: Operand[Value]
    scale: float
    repeated: tuple[Operand[Node], Operand[Node]] | None


def traced_back(chain: Chain, roles: Roles, present: Present) -> TracedOperands:
    """The operands followed back."""

    def batch() -> tuple:  # type: ignore[type-arg]
        return leaves((*roles.shared, *roles.own))

    weights, value = tensor(chain.weights), tensor(roles.v[0])
    assert weights is not None and value is not None
    down_to = value.dtype if value.dtype in HALF and weights.dtype == value.dtype else None
    q, k = (trace_back(side, batch, present, True, down_to) for side in (roles.q, roles.k))
    v = trace_back(roles.v, batch, present, False, None)
    parts = []
    for part in roles.parts:
        theirs = [trace_back(side, batch, present, True, down_to) for side in (part.q, part.k)]
        parts.append((theirs[0], theirs[1], part.D, part.ratio))
    return TracedOperands(q, k, v, parts)


def laid_out(traced: TracedOperands, scores: Scores, roles: Roles, present: Present) -> LaidOut:
    """The operands as (B, H, S, D).

    Raises:
        LostTrackError: a symbolic size would have to be written down.
        RefusedError: a factor is none of q or k.
    """
    k, v, heads, repeated = traced.k, traced.v, roles.Hkv, None
    on_keys = [factor for factor in scores.factors if _atoms(factor) & set(roles.K)]
    changed: list[Factor | Change] = [*on_keys, *scores.blanked]
    of_heads = any(_atoms(each) & set(heads) for each in changed)
    small = None if of_heads or traced.parts else without_repeats(k, v, roles, present)
    if small is not None:
        as_written = (placed(k, (roles.B, heads, roles.K, roles.D)), placed(v, (roles.B, heads, roles.K, roles.Dv)))
        repeated = as_written[0].map_nodes(present.node), as_written[1].map_nodes(present.node)
        heads, k, v = small
    of_q, of_k = (roles.B, roles.H, roles.Q, roles.D), (roles.B, heads, roles.K, roles.D)
    queries, keys, scale = placed(traced.q, of_q), placed(k, of_k), traced.q.scale * k.scale
    for q2, k2, D, ratio in traced.parts:
        ratio *= q2.scale * k2.scale / scale
        more = arranged(Operand(q2.node), fresh(q2.axes), (*of_q[:3], leaves(D)), whole=True)
        queries = _joined(queries, more if ratio == 1 else more.then(aten.mul.Scalar, ratio))
        keys = _joined(keys, arranged(Operand(k2.node), fresh(k2.axes), (*of_k[:3], leaves(D)), whole=True))
    there = {atom for group in of_k for atom in group}
    for factor in scores.factors:
        if factor not in on_keys:
            queries = times(queries, factor, of_q, present)
        elif not _atoms(factor) <= there:
            raise RefusedError(factor.at, f"`{spelled(factor.at)}` scales the scores by what differs over q and k both")
        else:
            keys = times(keys, factor, of_k, present)
    for change in scores.blanked:
        if not _atoms(change) <= there:
            reason = f"writes {change.fill:g} into the scores, which need not hide a key"
            raise RefusedError(change.at, f"`{spelled(change.at)}` {reason}")
        hidden = arranged(Operand(change.node, change.steps), fresh(change.axes), of_k, whole=False)
        keys = keys.then(aten.masked_fill.Scalar, hidden, 0.0)
    return LaidOut(queries, keys, placed(v, (roles.B, heads, roles.K, roles.Dv)), scale, repeated)


def _joined(operand: Operand[Value], more: Operand[Value]) -> Operand[Value]:
    """Both along the head dimension; with zeros up to a length that kernels take, which add nothing."""
    joined = operand.then(aten.cat.default, more, -1)
    short = -(as_int(value_behind(joined).shape[-1]) or 0) % ALIGNED
    return joined.then(aten.constant_pad_nd.default, (0, short)) if short else joined


def _atoms(changed: Factor | Change) -> set[object]:
    return {atom for axis in fresh(changed.axes) for atom in axis}


def times(operand: Operand[Value], factor: Factor, groups: Sequence[Group], present: Present) -> Operand[Value]:
    """Queries, keys or a bias times a factor of the scores, in its own dtype."""
    op = aten.div if factor.divides else aten.mul
    if not isinstance(factor.by, Value):
        return operand.then(op.Scalar, factor.by)
    present.demand(factor.by, factor.at)
    by, value = Operand(factor.by), tensor(factor.by)
    if value is not None and value.ndim:  # a number of the CPU meets tensors of any device, as long as it is one
        by = arranged(by, fresh(factor.axes), groups, whole=False)
    made, dtype = operand.then(op.Tensor, by), value_behind(operand).dtype
    return made if value_behind(made).dtype == dtype else made.then(aten.to.dtype, dtype)
