"""What is known of each axis of an expression: 0 <= q < Sq and so on, sizes symbolic or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from attnpass.graph.symbolic import Size, known
from attnpass.index.expr import And, Expr, Lin, NonNeg, Zero, size_key
from attnpass.index.logic import axes_of, flattened

Range: TypeAlias = "tuple[Size, Size | None]"  # inclusive; None where no end is known
DEEPEST = 12  # contexts inside one another; models nest two or three
# How many parts may be read again under narrower bounds: so many, and so many more for each that is read at all.
CREDIT, CREDIT_OF_A_PART = 2000, 4


@dataclass(slots=True)
class Work:
    """What reading parts again under narrower bounds may still cost: in proportion to the expression, no more."""

    left: int = CREDIT
    spent: int = 0
    contexts: dict[Any, Bounds] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Bounds:
    """What is known of each axis. An axis that is not named starts at 0 and has no known end.

    Attributes:
        ranges: of each axis.
        seen: what was simplified under these bounds.
        around: the wider bounds that these narrow, or None.
        depth: how many there are around these.
        changed: the axes of which these say more than those.
        work: shared by all bounds inside the same.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    seen: dict[Expr, Expr] = field(default_factory=dict)
    around: Bounds | None = None
    depth: int = 0
    changed: frozenset[str] = frozenset()
    work: Work = field(default_factory=Work)

    @classmethod
    def of(cls, sizes: Mapping[str, Size]) -> Bounds:
        return cls({axis: (0, size - 1) for axis, size in sizes.items()})

    @classmethod
    def inside(cls, index: Sequence[Expr], shape: Sequence[Size]) -> Bounds:
        """What holds where ``index`` lies inside of ``shape``: elsewhere, no element is asked for."""
        found = cls()
        for form, size in zip(index, shape, strict=True):
            if isinstance(form, Lin) and form.terms:
                ranges = dict(found.ranges)
                for axis, factor in form.terms:
                    ranges[axis] = _tighter(found.range(axis), _of_one(form, axis, factor, size))
                found = cls(ranges)
        return found

    def range(self, axis: str) -> Range:
        return self.ranges.get(axis, (0, None))

    def least(self, form: Lin) -> Size | None:
        """The smallest value that ``form`` can take; None if there is no known one."""
        return self._end(form, 0)

    def most(self, form: Lin) -> Size | None:
        return self._end(form, 1)

    def _end(self, form: Lin, upper: int) -> Size | None:
        total: Size = form.const
        for axis, factor in form.terms:
            bound = self.range(axis)[upper if factor > 0 else 1 - upper]
            if bound is None:
                return None
            total = total + factor * bound
        return total

    def always(self, form: Lin) -> bool:
        """Is ``form >= 0`` for every index?"""
        least = self.least(form)
        return least is not None and known(least >= 0)

    def never(self, form: Lin) -> bool:
        most = self.most(form)
        return most is not None and known(most < 0)

    def narrowed(self, tests: Iterable[Expr]) -> Bounds:
        """These bounds where all ``tests`` hold; these themselves if that says nothing, or would be too much work."""
        if self.depth >= DEEPEST or self.work.left <= 0:
            return self
        ranges = dict(self.ranges)
        for test in tests:
            for part in flattened(test, And)[:DEEPEST]:
                _narrow(ranges, part)
        key = _key(ranges)
        changed = frozenset(axis for axis, _, _ in key - _key(self.ranges))
        if not changed:
            return self
        if key not in self.work.contexts:
            self.work.contexts[key] = Bounds(ranges, {}, self, self.depth + 1, changed, self.work)
        return self.work.contexts[key]

    def untouched(self, expr: Expr) -> bool:
        """Do these bounds say no more of ``expr`` than those around them?"""
        around = self.around
        return around is not None and not self.changed & axes_of(expr)


def _key(ranges: Mapping[str, Range]) -> frozenset[tuple[str, Any, Any]]:
    ends = ((axis, size_key(low), None if high is None else size_key(high)) for axis, (low, high) in ranges.items())
    return frozenset(ends)


def _narrow(ranges: dict[str, Range], test: Expr) -> None:
    """Enter what a comparison of one index with a number says."""
    if not isinstance(test, (NonNeg, Zero)) or len(test.form.terms) != 1 or abs(test.form.terms[0][1]) != 1:
        return
    ((axis, factor),), const = test.form.terms, test.form.const
    low, high = ranges.get(axis, (0, None))
    if isinstance(test, Zero):
        low = high = -factor * const
    elif factor > 0 and known(-const >= low):
        low = -const
    elif factor < 0 and (high is None or known(const <= high)):
        high = const
    ranges[axis] = low, high


def _of_one(form: Lin, axis: str, factor: int, size: Size) -> Range:
    """Where one axis of a form lies if the form lies in ``[0, size)``; all axes start at 0."""
    one_sign = all((n > 0) == (factor > 0) for _, n in form.terms)
    room: Any = size - 1 - form.const if factor > 0 else form.const
    if not one_sign or (abs(factor) > 1 and not isinstance(room, int)):
        return 0, None
    low: Any = 0
    if len(form.terms) == 1 and abs(factor) == 1:
        low = -form.const if factor > 0 else form.const - size + 1
    return low, room // abs(factor) if abs(factor) > 1 else room


def _tighter(one: Range, other: Range) -> Range:
    low = other[0] if known(other[0] >= one[0]) else one[0]
    if one[1] is None or (other[1] is not None and known(other[1] <= one[1])):
        return low, other[1]
    return low, one[1]
