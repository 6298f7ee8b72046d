"""Tables of `benchmarks.ground`: what ``auto`` makes of calls that it used to lose, and how long a first call takes."""

from __future__ import annotations

from benchmarks.labels import GROUND, INDUCTOR, PYTORCH_ONLY
from benchmarks.records import Key, Record, Source, newest
from benchmarks.tables import Table, calls_of, measured_on, ms_of, ratio

H200 = Source("h200")
WHOLE, LAYERS = "whole", "layers"
YARDSTICKS = ("fused", "unmasked")  # forms that plain Inductor compiled, in turns with the row


def ground(*groups: str, source: Source = H200, ours: str = PYTORCH_ONLY) -> Table:
    """The rows of some groups (of all, if none is named): plain Inductor, ``ours``, and what the row is held to.

    That is the same call without its mask or softcap, or for a model compiled layer by layer ``ours`` on all of it. The
    times are the device's: other processes compiled beside, and kept the host.
    """
    lines = [{**line, "ms": line.get("device_ms", line.get("ms"))} for line in filter(_counts, source.read("ground"))]
    found = newest(lines, "row", "compiler", "way")
    there = {(row, way): line["group"] for (row, _, way), line in found.items() if way in (WHOLE, LAYERS)}
    order = list(GROUND)
    rows = [
        _row(found, row, way, ours)
        for row, way in sorted(there, key=lambda pair: (order.index(pair[0]), pair[1] == LAYERS))
        if not groups or there[row, way] in groups
    ]
    return Table(("what", "Inductor, ms", "`auto`, ms", "gain", "held to", "MiB", "calls", "measured"), rows)


def _row(found: dict[Key, Record], row: str, way: str, ours: str) -> list[str]:
    plain, line = found.get((row, INDUCTOR, way)), found.get((row, ours, way))
    held, name = found.get((row, ours, WHOLE)) if way == LAYERS else None, "whole"
    for form in YARDSTICKS:
        if (row, INDUCTOR, form) in found:
            held, name = found[row, INDUCTOR, form], form
    title = f"{GROUND[row]}, layer by layer" if way == LAYERS else GROUND[row]
    beside = f"{ratio(line, held)} {name} ({ms_of(held)})" if held else "–"
    cells = [ms_of(plain), ms_of(line), ratio(plain, line), beside]
    return [title, *cells, _memory(plain, line), calls_of(line or {}), measured_on(plain, line)]


def first_calls(source: Source = H200, ours: str = PYTORCH_ONLY) -> Table:
    """Seconds of a model's first call in a fresh process, with caches that are empty and with full ones."""
    found = newest(filter(_counts, source.read("ground")), "group", "compiler", "caches")
    rows = []
    for caches in ("empty", "full"):
        plain, line = (found.get(("first_call", compiler, caches)) for compiler in (INDUCTOR, ours))
        if plain or line:
            times = [one.get("seconds") if one else None for one in (plain, line)]
            cells = ["–" if seconds is None else f"{seconds:.1f}" for seconds in times]
            over = f"{times[1] / times[0]:.2f}×" if times[0] and times[1] else "–"
            rows.append([caches, *cells, over, measured_on(plain, line)])
    return Table(("caches", "Inductor, s", "`auto`, s", "times that", "measured"), rows)


def _counts(line: Record) -> bool:
    """Lines of tiny sizes only show that the script runs; one without a compiler is a model that could not be made."""
    return not line["small"] and "compiler" in line


def _memory(plain: Record | None, line: Record | None) -> str:
    peaks = [one.get("memory_mib") if one else None for one in (plain, line)]
    return " → ".join("–" if mib is None else f"{mib:.0f}" for mib in peaks)
