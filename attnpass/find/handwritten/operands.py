"""q, k, v, masks and sinks of a chain: traced back through views, and brought into SDPA's layout by steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnpass.find.handwritten.axes import (
    Atom,
    Axes,
    LostTrackError,
    arranged,
    fresh,
    leaves,
    merged_dimension,
    reshaped,
)
from attnpass.find.handwritten.roles import Group, Roles
from attnpass.find.present import Present
from attnpass.find.repeats import undo_repeat
from attnpass.graph.operand import Operand, value_behind
from attnpass.graph.ops import is_copy, name_of, number, permutation
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

aten = torch.ops.aten


@dataclass(slots=True)
class Traced:
    """An operand while it is traced back.

    Attributes:
        node: the value that is read now.
        axes: its dimensions.
        scale: a factor that was folded into it.
    """

    node: Value
    axes: Axes
    scale: float = 1.0

    def to(self, node: Value, axes: Axes) -> None:
        self.node, self.axes = node, axes


def trace_back(
    start: tuple[Value, Axes],
    batch: Callable[[], Sequence[Atom]],
    present: Present,
    scaled: bool,
    down_to: torch.dtype | None,
) -> Traced:
    """Follow an operand back through transposes, copies, folded heads and numeric factors: as far as it is present.

    No gradient flows further back than in the program.

    Args:
        start: the operand and its dimensions.
        batch: the batch and head dimensions as they are now: only these are unfolded.
        present: which values are there where the call reads them.
        scaled: may a factor be taken out of it (and into the call's scale)?
        down_to: a cast up from this dtype is taken back, since the kernel computes scores and softmax in fp32 anyway.

    Raises:
        RefusedError: no value on the way is present.
    """
    traced = Traced(*start)
    found = replace(traced) if present(traced.node) else None
    while _one_step_back(traced, batch, present, scaled, down_to):
        if present.cuts_gradient(traced.node, start[0]):
            break
        if present(traced.node):
            found = replace(traced)
    if found is None:
        present.demand(start[0], start[0])
    assert found is not None
    return found


def _one_step_back(
    traced: Traced, batch: Callable[[], Sequence[Atom]], present: Present, scaled: bool, down_to: torch.dtype | None
) -> bool:
    node, name = traced.node, name_of(traced.node)
    source = node.args[0] if node.args else None
    before, after = tensor(source), tensor(node)
    if not isinstance(source, Value) or before is None or after is None:
        return False
    order = permutation(node)
    if order is not None:
        traced.to(source, tuple(traced.axes[order.index(i)] for i in range(len(order))))
        return True
    if is_copy(node):
        traced.to(source, traced.axes)
        return True
    if name == "to" and before.device == after.device and (before.dtype == down_to or present.is_autocasts(node)):
        traced.to(source, traced.axes)
        return True
    if scaled and name in ("mul", "div"):
        other = node.args[1]
        if name == "mul" and number(source) is not None and isinstance(other, Value):
            source, other = other, source
        return _unscaled(traced, source, other, divide=name == "div")
    return name == "view" and _unfold(traced, source, batch())


def _unscaled(traced: Traced, x: Any, factor: Any, divide: bool) -> bool:
    value, before, after = number(factor), tensor(x), tensor(traced.node)
    if value is None or before is None or after is None or before.dtype != after.dtype or before.shape != after.shape:
        return False
    if traced.node.kwargs.get("rounding_mode") or value == 0 or not abs(value) < float("inf"):
        return False
    traced.scale *= 1.0 / value if divide else value
    traced.to(x, traced.axes)
    return True


def _unfold(traced: Traced, source: Value, batch: Sequence[Atom]) -> bool:
    """``X.reshape(B * H, S, D)``: read X, unfolded."""
    before, after = tensor(source), tensor(traced.node)
    assert before is not None and after is not None
    merged = merged_dimension(tuple(before.shape), tuple(after.shape))
    if merged is None or len(traced.axes) != 3:  # of (B, H, S, D), what is merged are repeated heads
        return False
    place, count = merged
    axis = leaves(traced.axes[place])
    if not axis or not set(axis) <= set(batch):
        return False
    try:
        unfolded = reshaped((axis,), tuple(before.shape[place : place + count]))
    except LostTrackError:
        return False
    traced.to(source, (*traced.axes[:place], *unfolded, *traced.axes[place + 1 :]))
    return True


def without_repeats(k: Traced, v: Traced, roles: Roles, present: Present) -> tuple[Group, Traced, Traced] | None:
    """The heads before they were repeated, and k and v with them; None if they were not repeated, or not alike."""
    if len(roles.Hkv) != 1 or roles.own:
        return None
    fewer: Atom | None = None
    small = []
    for traced in (k, v):
        axes = fresh(traced.axes)
        repeated = undo_repeat(traced.node, axes.index(roles.Hkv), present) if roles.Hkv in axes else None
        if repeated is None:
            return None
        fewer = fewer or Atom(repeated.heads)
        if not known_equal(fewer.size, repeated.heads):
            return None
        axes = tuple((fewer,) if axes[dim] == roles.Hkv else axes[dim] for dim in repeated.order)
        small.append(replace(traced, node=repeated.source, axes=axes))
    assert fewer is not None
    return (fewer,), small[0], small[1]


def placed(traced: Traced, groups: Sequence[Group]) -> Operand[Value]:
    """The operand as (B, H, S, D); copied if its last dimension would not be dense.

    Raises:
        LostTrackError: a symbolic size would have to be written down.
    """
    operand = arranged(Operand(traced.node), fresh(traced.axes), groups, whole=True)
    value = value_behind(operand)
    if known_equal(value.stride(-1), 1) or known_equal(value.shape[-1], 1):
        return operand
    return operand.then(aten.contiguous.default)
