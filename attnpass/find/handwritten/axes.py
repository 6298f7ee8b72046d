"""Which dimension of a tensor means what, through views: ``(B*H, Sq, Sk)`` and ``(B, H, Sq, Sk)`` are the same scores.

A dimension is a tuple of atoms, outermost first: one for a plain dimension, several for one that was folded, none for a
dimension of size 1 along which the tensor broadcasts. A view that unfolds a dimension splits its atom for everybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from attnpass.graph.operand import Operand
from attnpass.graph.symbolic import Size, as_int, known, known_equal, known_multiple
from attnpass.graph.value import Value

aten = torch.ops.aten


@dataclass(eq=False, slots=True)
class Atom:
    """One index that runs over ``size`` values."""

    size: Size
    parts: list[Atom] = field(default_factory=list)

    def split(self, outer: Size, inner: Size) -> None:
        self.parts = [Atom(outer), Atom(inner)]


Axes = tuple[tuple[Atom, ...], ...]


class LostTrackError(Exception):
    """A view whose dimensions cannot be told apart, in words."""


def leaves(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """``atoms`` with those that were split replaced by their parts."""
    return tuple(leaf for atom in atoms for leaf in (leaves(atom.parts) if atom.parts else (atom,)))


def fresh(axes: Axes) -> Axes:
    """``axes`` as they are after what was split meanwhile."""
    return tuple(leaves(axis) for axis in axes)


def size_of(axis: tuple[Atom, ...]) -> Size:
    """The size of a dimension."""
    size: Size = 1
    for atom in axis:
        size = size * atom.size
    return size


def reshaped(axes: Axes, sizes: Sequence[Size]) -> Axes:
    """The axes behind a view into ``sizes``; atoms are split where the view needs it.

    Raises:
        LostTrackError: the sizes do not fall on the borders of known factors.
    """
    waiting = deque(leaves(atom for axis in axes for atom in axis))
    made: list[tuple[Atom, ...]] = []
    for size in sizes:
        if known_equal(size, 1):
            made.append((waiting.popleft(),) if waiting and known_equal(waiting[0].size, 1) else ())
        else:
            made.append(_take(waiting, size))
    return tuple(made)


def _take(waiting: deque[Atom], size: Size) -> tuple[Atom, ...]:
    """The next atoms whose sizes multiply to ``size``."""
    taken: list[Atom] = []
    while not known_equal(size, 1):
        while waiting and known_equal(waiting[0].size, 1):
            waiting.popleft()
        if not waiting or not (known(size >= 1) and known(waiting[0].size >= 1)):
            raise LostTrackError("sizes that may be 0, or that are no factors of each other")
        atom = waiting.popleft()
        if known_equal(atom.size, size):
            taken.append(atom)
            size = 1
        elif known_multiple(size, atom.size):
            taken.append(atom)
            size = size // atom.size
        elif known_multiple(atom.size, size):
            atom.split(size, atom.size // size)
            waiting.extendleft(reversed(atom.parts))
        else:
            raise LostTrackError(f"a dimension of {atom.size} made into one of {size}")
    return tuple(taken)


def merged_dimension(before: Sequence[Size], after: Sequence[Size]) -> tuple[int, int] | None:
    """``(i, n)`` if a view merges dimensions i to i+n-1 of ``before`` into dimension i of ``after`` and no others."""
    count = len(before) - len(after) + 1
    if count < 2:
        return None
    for i in range(len(after)):
        same = [*zip(before[:i], after[:i], strict=True), *zip(before[i + count :], after[i + 1 :], strict=True)]
        if all(known_equal(a, b) for a, b in same):
            return i, count
    return None


def arranged(operand: Operand[Value], axes: Axes, groups: Sequence[tuple[Atom, ...]], whole: bool) -> Operand[Value]:
    """``operand`` with one dimension for each of ``groups``, by views (and by copies where no view can do it).

    Args:
        operand: a tensor whose dimensions are ``axes``.
        axes: what its dimensions are.
        groups: what the dimensions shall be.
        whole: repeat the tensor along what it has not; otherwise such a dimension has size 1.

    Raises:
        LostTrackError: a symbolic size would have to be written down.
    """
    groups, axes = [leaves(group) for group in groups], fresh(axes)
    if len(axes) < len(groups) and not whole and _lies_so(axes, groups[len(groups) - len(axes) :], whole):
        for _ in range(len(groups) - len(axes)):
            operand = operand.then(aten.unsqueeze.default, 0)
        return operand
    if len(axes) == len(groups) and _lies_so(axes, groups, whole):
        return operand
    operand, units = _unfolded(operand, axes, groups)
    order: list[tuple[Atom, ...]] = []
    for group in groups:
        if group in units:
            order.append(group)
        else:
            order += [(atom,) for atom in group if (atom,) in units]
    if len(order) != len(units):
        raise LostTrackError("a dimension that the scores do not have")
    places = [units.index(unit) for unit in order]
    if places != sorted(places):
        operand = operand.then(aten.permute.default, tuple(places))
    return _folded(operand, order, groups, whole)


def _lies_so(axes: Axes, groups: Sequence[tuple[Atom, ...]], whole: bool) -> bool:
    """Are the dimensions the wanted ones already, those of size 1 apart?"""
    return all(
        axis == group or (not axis and (not whole or all(known_equal(atom.size, 1) for atom in group)))
        for axis, group in zip(axes, groups, strict=True)
    )


def _unfolded(
    operand: Operand[Value], axes: Axes, groups: Sequence[tuple[Atom, ...]]
) -> tuple[Operand[Value], list[tuple[Atom, ...]]]:
    """One dimension for each atom, but for dimensions that are a group already; dimensions of size 1 are dropped."""
    units: list[tuple[Atom, ...]] = []
    for place in reversed(range(len(axes))):
        axis = axes[place]
        axis = tuple(atom for atom in axis if not known_equal(atom.size, 1)) if axis not in groups else axis
        if not axis:
            operand = operand.then(aten.squeeze.dim, place)
        elif axis in groups or len(axis) == 1:
            units.append(axis)
        else:
            operand = operand.then(aten.unflatten.int, place, _sizes(axis))
            units += [(atom,) for atom in reversed(axis)]
    return operand, units[::-1]


def _folded(
    operand: Operand[Value], order: list[tuple[Atom, ...]], groups: Sequence[tuple[Atom, ...]], whole: bool
) -> Operand[Value]:
    """The dimensions ``order`` put together as ``groups``; what is missing has size 1, or is expanded."""
    place, expanded, spans = 0, list[int](), list[tuple[int, int]]()
    for group in groups:
        if group in order and group:
            place, expanded = place + 1, [*expanded, -1]
            continue
        there = [atom for atom in group if (atom,) in order]
        wanted = [atom for atom in group if not known_equal(atom.size, 1) or (atom,) in order]
        if not there and not (whole and wanted):
            operand = operand.then(aten.unsqueeze.default, place)
            place, expanded = place + 1, [*expanded, -1]
            continue
        first = place
        for atom in wanted:
            missing = (atom,) not in order
            if missing:
                operand = operand.then(aten.unsqueeze.default, place)
            expanded.append(_number(atom.size) if missing else -1)
            place += 1
        spans.append((first, place - 1))
    if any(size != -1 for size in expanded):
        operand = operand.then(aten.expand.default, tuple(expanded))
    for first, last in reversed(spans):
        if last > first:
            operand = operand.then(aten.flatten.using_ints, first, last)
    return operand


def _number(size: Size) -> int:
    found = as_int(size)
    if found is None:
        raise LostTrackError(f"the symbolic size {size} would have to be expanded")
    return found


def _sizes(atoms: Sequence[Atom]) -> tuple[int, ...]:
    """Sizes for ``unflatten``: at most one may be symbolic, which is written as -1."""
    sizes = [as_int(atom.size) for atom in atoms]
    if sizes.count(None) > 1:
        raise LostTrackError("two symbolic sizes folded into one dimension")
    return tuple(-1 if size is None else size for size in sizes)
