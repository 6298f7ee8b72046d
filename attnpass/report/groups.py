"""Equal calls told once: how a graph of 40 calls fits on a screen. Used by the text block and by the HTML page."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from attnpass.find.found import NearMiss
from attnpass.graph.values import Source
from attnpass.ir.call import Pattern
from attnpass.ir.decision import Answer, Decision, Reason
from attnpass.report.record import Report

MAX_NAMES = 3  # module patterns shown for one group
TOLD_BY_NOTE = (Reason.LIMIT, Reason.USER_CHOICE)
_SITE_PACKAGES = re.compile(r"^.*(?:site|dist)-packages[/\\]")

Names = tuple[frozenset[str], ...]  # a dotted name whose parts may stand for several


@dataclass(frozen=True, slots=True)
class Group:
    """Calls that a reader need not tell apart, in graph order; never empty. ``names`` are those of their modules."""

    decisions: tuple[Decision, ...]
    names: str

    @property
    def first(self) -> Decision:
        return self.decisions[0]

    @property
    def modules(self) -> str:
        """The modules, and the spelling if it is not the usual one."""
        pattern = self.first.call.pattern
        return self.names if pattern is Pattern.SDPA else f"{self.names} ({pattern.value})"

    @property
    def sources(self) -> str:
        """``"wan/model.py:212"``, and how many more places there are."""
        places = list(dict.fromkeys(short_source(decision.call.source) for decision in self.decisions))
        more = f" and {counted(len(places) - 1, 'more place')}" if len(places) > 1 else ""
        return places[0] + more


def group_calls(report: Report, every_answer: bool = False) -> list[Group]:
    """The report's calls, equal ones together.

    Args:
        report: the report.
        every_answer: also keep calls apart whose reasons differ only for kernels that nobody asked about.
    """
    groups: dict[object, list[Decision]] = {}
    for decision in report.decisions:
        told = decision.answers if every_answer else told_answers(decision)
        reasons = tuple((answer.kernel, tuple(map(str, answer.rejections))) for answer in told)
        call = decision.call
        clause = (decision.clause, decision.skipped)
        key = (decision.kernel, decision.reason, decision.note, clause, call.text(), call.pattern, reasons)
        groups.setdefault(key, []).append(decision)
    everything = [decision.call.module for decision in report.decisions]
    return [
        Group(tuple(members), compress([member.call.module for member in members], everything))
        for members in groups.values()
    ]


def told_answers(decision: Decision) -> tuple[Answer, ...]:
    """The refusals that explain this decision; none where the note says it all."""
    return () if decision.reason in TOLD_BY_NOTE else decision.refused


def group_misses(misses: Iterable[NearMiss]) -> list[tuple[int, NearMiss]]:
    """Equal near misses (same reason, same place in the source) with their number, in graph order."""
    groups: dict[tuple[str, str], list[NearMiss]] = {}
    for miss in misses:
        groups.setdefault((miss.reason, str(miss.source)), []).append(miss)
    return [(len(members), members[0]) for members in groups.values()]


def status(decision: Decision) -> str:
    """The kernel as the reader is told it."""
    return decision.kernel if decision.rewritten else f"kept ({decision.kernel})"


def short_source(source: Source) -> str:
    """The source without the part of the path that is the same for everything on this machine."""
    if not source.file:
        return str(source)
    file = _SITE_PACKAGES.sub("", source.file)
    here = os.getcwd() + os.sep
    if file.startswith(here):
        file = file[len(here) :]
    elif os.path.isabs(file):
        file = "/".join(PurePath(file).parts[-2:])
    return f"{file}:{source.line}"


def counted(number: int, noun: str) -> str:
    """``"1 call"``, ``"2 calls"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def compress(names: Sequence[str], everything: Sequence[str]) -> str:
    """Module names as a few patterns: ``blocks.*.attn``, ``blocks.[0,20].cross``.

    A ``*`` means every number that stands at this place among ``everything``, if these are 0, 1, 2, ... without gaps.
    """
    patterns = _merge(dict.fromkeys(names))
    known = [tuple(name.split(".")) for name in dict.fromkeys(everything)]
    texts = [_pattern_text(pattern, known) for pattern in patterns]
    more = f" and {len(texts) - MAX_NAMES} more" if len(texts) > MAX_NAMES else ""
    return ", ".join(texts[:MAX_NAMES]) + more


def _merge(names: Iterable[str]) -> list[Names]:
    """Join names that differ in one part only, the last part that differs first."""
    patterns: list[Names] = [tuple(frozenset({part}) for part in name.split(".")) for name in names]
    for place in reversed(range(max(map(len, patterns), default=0))):
        joined: dict[tuple[Names, Names], frozenset[str]] = {}
        shorter = [pattern for pattern in patterns if len(pattern) <= place]
        for pattern in patterns:
            if len(pattern) > place:
                around = (pattern[:place], pattern[place + 1 :])
                joined[around] = joined.get(around, frozenset()) | pattern[place]
        patterns = shorter + [(*before, parts, *after) for (before, after), parts in joined.items()]
    return patterns


def _pattern_text(pattern: Names, known: Sequence[tuple[str, ...]]) -> str:
    parts = []
    for place, part in enumerate(pattern):
        beside = {
            name[place]
            for name in known
            if len(name) > place and all(name[i] in pattern[i] for i in range(place)) and name[place].isdigit()
        }
        parts.append(_part_text(part, beside))
    return ".".join(parts) or "(top level)"


def _part_text(part: frozenset[str], beside: set[str]) -> str:
    if len(part) == 1:
        return next(iter(part))
    if not all(text.isdigit() for text in part):
        return f"[{','.join(sorted(part))}]"
    numbers = sorted(map(int, part))
    if part == beside and numbers == list(range(len(numbers))):
        return "*"
    return f"[{','.join(_ranges(numbers))}]"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """``[0, 1, 2, 5]`` -> ``["0-2", "5"]``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [piece for run in runs for piece in (map(str, run) if len(run) < 3 else [f"{run[0]}-{run[-1]}"])]
