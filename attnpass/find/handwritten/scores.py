"""From the product of q and k to what the softmax reads: scale, softcap, biases and masks, in program order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch

from attnpass.find.handwritten.axes import Atom, Axes, leaves
from attnpass.find.handwritten.changes import (
    Change,
    Factor,
    broadcast_axes,
    change_of,
    hides_all,
    may_be_scaled,
    multiplied,
    need_not_hide,
    padded,
)
from attnpass.find.handwritten.joined import Part, read_part
from attnpass.find.handwritten.links import (
    Appended,
    Biased,
    Capped,
    Filled,
    Joined,
    Link,
    Partly,
    Permuted,
    Raised,
    RefusedError,
    Same,
    Scaled,
    Shifted,
    Viewed,
    axes_behind,
)
from attnpass.find.handwritten.partly import changed_part
from attnpass.graph.operand import Step
from attnpass.graph.ops import rounded, spelled
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.hidden import ABSORBS, HIDES, hides_when_written, is_moderate, may_be_outbid

aten = torch.ops.aten


@dataclass(slots=True)
class Scores:
    """The scores while they are replayed.

    Attributes:
        axes: what their dimensions are.
        scale: factor on q kᵀ, inside the softcap.
        softcap: ``softcap * tanh(scale * q kᵀ)``, or None.
        changes: biases and masks so far.
        factors: what q or k are multiplied by instead of them.
        blanked: masks of keys whose scores are replaced by a number that is a bias: such a key is 0.
        parts: other products that are added to q kᵀ.
        shifts: where their own maximum was taken away, and over which dimension.
    """

    axes: Axes
    scale: float = 1.0
    softcap: float | None = None
    changes: list[Change] = field(default_factory=list)
    factors: list[Factor] = field(default_factory=list)
    blanked: list[Change] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    shifts: list[tuple[Value, tuple[Atom, ...]]] = field(default_factory=list)

    def apply(self, link: Link) -> None:
        """Replay one link.

        Raises:
            RefusedError: attention does nothing like it at this place.
        """
        match link:
            case Same(node, x):
                self._cast(node, x)
            case Viewed() | Permuted():
                self.axes = axes_behind(self.axes, link)
            case Scaled(node, _, Value() | torch.SymFloat() as by, divides):
                self._scale_by(node, by, divides)
            case Scaled(node, _, float(factor)):
                self._multiply(node, factor)
            case Capped(node):
                if self.changes or self.softcap is not None:
                    raise RefusedError(node, "`tanh` caps the scores after a mask or bias was added")
                self._refuse_shifts(node)
                self.softcap = 1.0
            case Joined(node):
                if self.changes or self.factors or self.softcap is not None:
                    raise RefusedError(node, f"`{spelled(node)}` adds a product to scores that were changed before")
                self._refuse_shifts(node)
                self.parts.append(read_part(link, self.axes, self.scale))
            case Filled(_, x, _, fill) if not hides_all(x, fill):
                self._blank(link)
            case Biased() | Filled():
                self._add(change_of(link, self.axes))
            case Partly(node):
                part, axes, spans = changed_part(link, self.axes)
                self._add(padded(change_of(part, axes), self.axes, spans))
            case Raised(node, x, low):
                self._raise(node, x, low)
            case Shifted(node):
                self.shifts.append((node, self.axes[-1]))
            case Appended(node):
                self._refuse_shifts(node)

    def _scale_by(self, node: Value, by: Value | torch.SymFloat, divides: bool) -> None:
        """A tensor scales q or k in the place of the scores, and the biases so far."""
        known = isinstance(by, Value) or not self.changes
        learns = isinstance(by, Value) and by.requires_grad
        if self.softcap is not None or not known or not all(may_be_scaled(each, learns) for each in self.changes):
            raise RefusedError(node, "a tensor scales the scores after a mask, a bias that may be one, or softcap")
        axes = broadcast_axes(node, by, self.axes) if isinstance(by, Value) else ()
        if self.shifts and leaves(axes[-1] if axes else ()):
            self._refuse_shifts(node)
        by_this = Factor(by, axes, node, divides)
        self.factors.append(by_this)
        self.changes = [replace(change, times=(*change.times, by_this)) for change in self.changes]

    def _blank(self, link: Filled) -> None:
        """A number that need not hide a key, in the place of its scores: they are 0 if the key is, and it is a bias."""
        value, moderate = tensor(link.x), -HIDES > link.fill > HIDES
        if value is None or not moderate or self.changes or self.shifts:
            raise need_not_hide(link)
        axes = broadcast_axes(link.node, link.mask, self.axes)
        hides = () if link.where_true else (Step(aten.logical_not.default),)
        self.blanked.append(Change(link.mask, axes, link.node, link.fill, steps=hides))
        added = (*hides, Step(aten.to.dtype, (value.dtype,)))
        self._add(Change(link.mask, axes, link.node, factor=link.fill, steps=added))

    def _raise(self, node: Value, x: Value, low: float) -> None:
        """A number in the place of -inf. A bias that may be -inf is raised as well: it absorbs its score."""
        value = tensor(x)
        if low == -math.inf:
            return
        if value is None or not hides_when_written(low, value.dtype):
            raise RefusedError(node, f"`{spelled(node)}` raises scores to {low:g}, which need not hide a key")
        biases = not all(is_moderate(change.node) for change in self.changes if change.fill is None)
        if biases and (low > ABSORBS or any(change.raised is not None for change in self.changes)):
            raise RefusedError(node, f"`{spelled(node)}` raises scores to {low:g} behind a bias, which may be lower")
        for place, change in enumerate(self.changes):
            if change.fill is not None:
                self.changes[place] = replace(change, fill=max(change.fill, low))
            elif biases:
                self.changes[place] = replace(change, raised=low)

    def _refuse_shifts(self, node: Value) -> None:
        """Softmax does not see that a row is shifted; ``tanh`` and a column of sinks do."""
        if self.shifts:
            reason = f"`{spelled(node)}` reads scores whose maximum was taken away"
            raise RefusedError(node, reason)

    def _cast(self, node: Value, x: Value) -> None:
        """A cast into a narrower range makes -inf of large numbers, and that decides what hidden rows give."""
        before, after = tensor(x), tensor(node)
        if before is None or after is None or torch.finfo(after.dtype).max >= torch.finfo(before.dtype).max:
            return
        limit = torch.finfo(after.dtype).max / 2
        added = [change for change in self.changes if change.fill is None]
        if not all(is_moderate(each.node, limit / max(1.0, abs(each.factor)), infinite=True) for each in added):
            name = str(after.dtype).removeprefix("torch.")
            raise RefusedError(node, f"the scores are cast to {name} after a bias, which may overflow there")
        for place, change in enumerate(self.changes):
            self.changes[place] = replace(change, fill=rounded(change.fill, after))

    def _add(self, change: Change) -> None:
        """Remember a bias or a mask.

        What a row that is hidden as a whole averages over has to be the same in one mask tensor.
        """
        changes = [*self.changes, change]
        fills = [each.fill for each in changes if each.fill is not None]
        name = spelled(change.at)
        if len(set(fills)) > 1:
            raise RefusedError(change.at, f"`{name}` hides scores with {fills[-1]:g} after {fills[0]:g} hid others")
        if len(fills) < len(changes) and any(map(may_be_outbid, fills)):
            reason = f"`{name}`: scores are hidden by {fills[0]:g} and there is a bias, which may be lower still"
            raise RefusedError(change.at, reason)
        self.changes = changes

    def _multiply(self, node: Value, factor: float) -> None:
        filled = any(change.fill is not None for change in self.changes)
        if not math.isfinite(factor) or (factor <= 0 and (filled or self.softcap is not None)):
            raise RefusedError(node, f"`{spelled(node)}` scales masked or capped scores by {factor:g}")
        if self.softcap is None:
            self.scale *= factor
        else:
            self.softcap *= factor
        if any(change.raised is not None for change in self.changes):
            raise RefusedError(node, f"`{spelled(node)}` scales scores that were raised to a low number")
        self.changes = [multiplied(change, factor) for change in self.changes]

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
