"""From the product of q and k to what the softmax reads: scale, softcap, biases and masks, in program order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from attnpass.find.handwritten.axes import Atom, Axes, LostTrackError, reshaped
from attnpass.find.handwritten.links import (
    ADD,
    CAT,
    DIVIDE,
    FILL,
    PERMUTE,
    SAME,
    SCALE,
    SHIFT,
    TANH,
    VIEW,
    Element,
    RefusedError,
)
from attnpass.graph.ops import rounded, spelled
from attnpass.graph.symbolic import Size, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.hidden import HIDES, hides_when_written, is_moderate, may_be_outbid


@dataclass(frozen=True, slots=True)
class Change:
    """A bias or a mask.

    Attributes:
        node: the tensor.
        axes: what its dimensions are.
        at: the node of the program that applies it.
        fill: None for a bias, else the number that is written.
        where_true: is it written where the tensor is True?
        factor: what a bias is multiplied by.
    """

    node: Value
    axes: Axes
    at: Value
    fill: float | None = None
    where_true: bool = True
    factor: float = 1.0


@dataclass(slots=True)
class Scores:
    """The scores while they are replayed.

    Attributes:
        axes: what their dimensions are.
        scale: factor on q kᵀ, inside the softcap.
        softcap: ``softcap * tanh(scale * q kᵀ)``, or None.
        changes: biases and masks so far.
        scaled_by: tensors of one element, or symbolic numbers, that they are multiplied (or divided) by.
        shifts: where their own maximum was taken away, and over which dimension.
    """

    axes: Axes
    scale: float = 1.0
    softcap: float | None = None
    changes: list[Change] = field(default_factory=list)
    scaled_by: list[tuple[Value | torch.SymFloat, bool]] = field(default_factory=list)
    shifts: list[tuple[Value, tuple[Atom, ...]]] = field(default_factory=list)

    def apply(self, element: Element) -> None:
        """Replay one element.

        Raises:
            RefusedError: attention does nothing like it at this place.
        """
        if element.kind == VIEW:
            value = tensor(element.node)
            assert value is not None
            self.axes = _followed(self.axes, element.node, tuple(value.shape))
        elif element.kind == PERMUTE:
            self.axes = tuple(self.axes[i] for i in element.order)
        elif element.kind in (SCALE, DIVIDE):
            self._multiply(element)
        elif element.kind == TANH:
            if self.changes or self.softcap is not None:
                raise RefusedError(element.node, "`tanh` caps the scores after a mask or bias was added")
            self._refuse_shifts(element.node)
            self.softcap = 1.0
        elif element.kind in (ADD, FILL):
            self.change(element)
        elif element.kind == SHIFT:
            self.shifts.append((element.node, self.axes[-1]))
        elif element.kind == CAT:
            self._refuse_shifts(element.node)
        elif element.kind == SAME:
            self._cast(element)

    def _refuse_shifts(self, node: Value) -> None:
        """Softmax does not see that a row is shifted; ``tanh`` and a column of sinks do."""
        if self.shifts:
            reason = f"`{spelled(node)}` reads scores whose maximum was taken away"
            raise RefusedError(node, reason)

    def _cast(self, element: Element) -> None:
        """A cast into a narrower range makes -inf of large numbers, and that decides what hidden rows give."""
        before, after = tensor(element.x), tensor(element.node)
        if before is None or after is None or torch.finfo(after.dtype).max >= torch.finfo(before.dtype).max:
            return
        limit = torch.finfo(after.dtype).max / 2
        if not all(
            change.fill is not None or is_moderate(change.node, limit, infinite=True) for change in self.changes
        ):
            name = str(after.dtype).removeprefix("torch.")
            raise RefusedError(element.node, f"the scores are cast to {name} after a bias, which may overflow there")
        for place, change in enumerate(self.changes):
            self.changes[place] = replace(change, fill=rounded(change.fill, after))

    def change(self, element: Element) -> None:
        """Remember a bias or a mask, with the dimensions that it has at this place."""
        assert element.operand is not None
        axes = broadcast_axes(element.node, element.operand, self.axes)
        fill = element.factor if element.kind == FILL else None
        if fill is not None and not self._hides(fill, element):
            raise RefusedError(
                element.node, f"`{spelled(element.node)}` writes {fill:g} into the scores, which need not hide a key"
            )
        self._refuse_mixed_fills(element, fill)
        factor = 1.0 if fill is not None else element.factor
        self.changes.append(Change(element.operand, axes, element.node, fill, element.where_true, factor))

    def _hides(self, fill: float, element: Element) -> bool:
        """Is the number so low that no key it is written to counts beside one that is seen?"""
        value = tensor(element.x)
        return value is not None and hides_when_written(fill, value.dtype)

    def _refuse_mixed_fills(self, element: Element, fill: float | None) -> None:
        """What a row that is hidden as a whole averages over has to be the same in one mask tensor."""
        fills = [change.fill for change in self.changes if change.fill is not None]
        fills += [] if fill is None else [fill]
        name = spelled(element.node)
        if len(set(fills)) > 1:
            raise RefusedError(element.node, f"`{name}` hides scores with {fills[-1]:g} after {fills[0]:g} hid others")
        biased = fill is None or any(change.fill is None for change in self.changes)
        if biased and any(map(may_be_outbid, fills)):
            reason = f"`{name}`: scores are hidden by {fills[0]:g} and there is a bias, which may be lower still"
            raise RefusedError(element.node, reason)

    def _multiply(self, element: Element) -> None:
        by = element.operand if element.symbol is None else element.symbol
        if by is not None:
            if self.changes or self.softcap is not None:
                raise RefusedError(element.node, "a tensor scales the scores after a mask, bias or softcap")
            self.scaled_by.append((by, element.kind == DIVIDE))
            return
        factor = element.factor
        filled = any(change.fill is not None for change in self.changes)
        if not math.isfinite(factor) or (factor <= 0 and (filled or self.softcap is not None)):
            raise RefusedError(element.node, f"`{spelled(element.node)}` scales masked or capped scores by {factor:g}")
        if self.softcap is None:
            self.scale *= factor
        else:
            self.softcap *= factor
        self.changes = [_multiplied(change, factor) for change in self.changes]

    @property
    def rounded(self) -> bool:
        """Is something added to them in fp16 that may round them away?"""
        added = [change for change in self.changes if change.fill is None and not is_moderate(change.node)]
        sums = [tensor(change.at) for change in added]
        return any(each is not None and each.dtype == torch.float16 for each in sums)

    @property
    def torn(self) -> bool:
        """Beside what is written over them, is something added that may be -inf, or that learns from hidden rows?"""
        places = [place for place, change in enumerate(self.changes) if change.fill is not None]
        added = [(place, change.node) for place, change in enumerate(self.changes) if change.fill is None]
        behind = any(node.requires_grad and place > places[0] for place, node in added if places)
        return bool(places) and (behind or not all(is_moderate(node) for _, node in added))

    @property
    def canonical_scale(self) -> float:
        """The factor as an `AttentionCall` has it: ``softcap * tanh(scale * q kᵀ / softcap)``."""
        return self.scale * self.softcap if self.softcap is not None else self.scale


def _multiplied(change: Change, factor: float) -> Change:
    if change.fill is None:
        return replace(change, factor=change.factor * factor)
    scaled = change.fill * factor
    if scaled > HIDES:
        raise RefusedError(change.at, f"`{spelled(change.at)}` hides scores with {change.fill:g}, then they are scaled")
    return replace(change, fill=scaled)


def broadcast_axes(at: Value, operand: Value, axes: Axes) -> Axes:
    """The dimensions of a tensor that broadcasts to the scores, whose dimensions are ``axes``."""
    value = tensor(operand)
    assert value is not None
    if value.ndim > len(axes):
        raise RefusedError(at, f"`{spelled(at)}` makes the scores larger by broadcasting")
    made = []
    for size, axis in zip(value.shape, axes[len(axes) - value.ndim :], strict=True):
        whole = size_of(axis)
        if known_equal(size, whole):
            made.append(axis)
        elif known_equal(size, 1):
            made.append(())
        else:
            reason = f"a tensor of size {size} meets scores of size {whole}, which are not known to be the same"
            raise RefusedError(at, f"`{spelled(at)}`: {reason}")
    return tuple(made)


def size_of(axis: tuple[Atom, ...]) -> Size:
    """The size of a dimension."""
    size: Size = 1
    for atom in axis:
        size = size * atom.size
    return size


def followed(axes: Axes, node: Value) -> Axes:
    """The dimensions behind a view."""
    value = tensor(node)
    assert value is not None
    return _followed(axes, node, tuple(value.shape))


def _followed(axes: Axes, node: Value, shape: tuple[Size, ...]) -> Axes:
    try:
        return reshaped(axes, shape)
    except LostTrackError as error:
        raise RefusedError(node, f"`{spelled(node)}` mixes the dimensions of the scores: {error}") from None
