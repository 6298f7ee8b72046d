"""What is known of each axis of an expression: 0 <= q < Sq and so on, sizes symbolic or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from attnpass.masks.expr import (
    And,
    Expr,
    Lin,
    NonNeg,
    Zero,
)
from attnpass.masks.logic import negated
from attnpass.symbolic import Size, known

Range: TypeAlias = "tuple[Size, Size | None]"  # inclusive; None where no end is known


@dataclass(slots=True)
class Bounds:
    """What is known of each axis. An axis that is not named starts at 0 and has no known end."""

    ranges: Mapping[str, Range] = field(default_factory=dict)
    seen: dict[Expr, Expr] = field(default_factory=dict)

    @classmethod
    def of(cls, sizes: Mapping[str, Size]) -> Bounds:
        return cls({axis: (0, size - 1) for axis, size in sizes.items()})

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

    def narrowed(self, test: Expr, holds: bool) -> Bounds:
        """These bounds where a comparison of one index with a number is known to hold, or not to."""
        test = test if holds else negated(test)
        if isinstance(test, And):
            found = self
            for part in test.args:
                found = found.narrowed(part, True)
            return found
        if isinstance(test, Zero) and len(test.form.terms) == 1 and abs(test.form.terms[0][1]) == 1:
            ((axis, factor),) = test.form.terms
            value = -factor * test.form.const
            return Bounds({**self.ranges, axis: (value, value)})
        if not isinstance(test, NonNeg) or len(test.form.terms) != 1 or abs(test.form.terms[0][1]) != 1:
            return self
        ((axis, factor),), const = test.form.terms, test.form.const
        low, high = self.range(axis)
        if factor > 0 and known(-const >= low):
            low = -const
        elif factor < 0 and (high is None or known(const <= high)):
            high = const
        return Bounds({**self.ranges, axis: (low, high)})
