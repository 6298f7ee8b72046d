"""Many lines in a few: gains over all forms, how near the choice is to the best, what tuning takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from benchmarks.labels import AUTO, COMPILERS, INDUCTOR
from benchmarks.records import Record, Source, has_time, newest, state
from benchmarks.tables import HERE, Table, forms_of, measured_on, ms_of, shapes_of

CHOSEN_BY = {
    "default": "default",
    "table": "`ATTNPASS_TUNE=0`: the table alone",
    "clock": "`ATTNPASS_TUNE=1`",
    "unknown GPU": "default, the table's curves taken away (a GPU that nobody measured)",
}
LIMITS = (0.03, 0.05, 0.10)
PADDED, CAUSAL_AND_PADDED = "padding", "causal_and_padding"


def gains(source: Source = HERE) -> Table:
    """For each shape of the forms: plain Inductor's time, undisturbed, over that of ``auto``.

    A disturbed time of ``auto`` is an upper bound, so the gain is a lower one.
    """
    rows, everything = [], []
    for shape in shapes_of(source):
        found = forms_of(source, shape)
        pairs = {key[0]: (found.get((key[0], INDUCTOR, key[2])), ours) for key, ours in found.items() if key[1] == AUTO}
        ratios = {
            form: one["ms"] / ours["ms"]
            for form, (one, ours) in pairs.items()
            if one and not state(one) and has_time(ours)
        }
        if not ratios:
            continue
        everything += ratios.values()
        worst = min(ratios, key=lambda form: ratios[form])
        sizes = ", ".join(map(str, next(iter(found.values())).get("sizes", ())))
        counted = f"{len(ratios)} of {len(pairs)}"
        rows.append(
            [f"`{shape}`: {sizes}", counted, f"{mean(ratios.values()):.2f}×", f"{ratios[worst]:.2f}× ({worst})"]
        )
    if everything:
        rows.append(["all", str(len(everything)), f"{mean(everything):.2f}×", f"{min(everything):.2f}×"])
    head = ("shape: B, H, Hkv, S, D", "forms with both times", "gain of at least, geometric mean", "least gain")
    return Table(head, rows)


def regret(source: Source = HERE) -> Table:
    """How many choices are near the best exact kernel, by the table and by the clock."""
    lines = newest(source.read("regret"), "shape", "step", "by").values()
    rows = []
    for by, how in CHOSEN_BY.items():
        ratios = [line["ratio"] for line in lines if line["by"] == by]
        if ratios:
            shares = [f"{share(ratios, limit):.0%}" for limit in LIMITS]
            rows.append([how, str(len(ratios)), *shares, f"{mean(ratios) - 1:.1%}", f"{max(ratios):.2f}×"])
    head = ("chosen by", "calls", *(f"within {limit:.0%}" for limit in LIMITS), "above the best, on average", "worst")
    return Table(head, rows)


def padding(source: Source = HERE) -> Table:
    """What padding adds to each kernel's own time, alone and beside causal, in the first shape of the forms."""
    found = forms_of(source)
    rows = []
    for kernel in dict.fromkeys(kernel for _, kernel, step in found if step == "forward" and kernel != AUTO):
        lines = {form: found.get((form, kernel, "forward")) for form in ("no_mask", PADDED, "fused", CAUSAL_AND_PADDED)}
        lines |= {form: _own(lines[form], kernel) for form in (PADDED, CAUSAL_AND_PADDED)}
        if lines[PADDED] or lines[CAUSAL_AND_PADDED]:
            name = COMPILERS.get(kernel, f"`{kernel}`")
            rows.append([name, *map(ms_of, lines.values()), measured_on(*lines.values())])
    head = ("kernel", "no mask, ms", "padding, ms", "causal, ms", "causal and padding, ms", "measured")
    return Table(head, rows)


def _own(line: Record | None, kernel: str) -> Record | None:
    """The line, if the kernel that was asked for ran, and not another in its place."""
    return line if line and kernel in (INDUCTOR, line.get("ran")) else None


def tuning(source: Source = HERE) -> Table:
    """Seconds that the tuner took for a kind of call, once its candidates were compiled."""
    lines = [line for line in newest(source.read("tuning"), "shape", "step").values() if line["timed"]]
    if not lines:
        return Table((), ())
    seconds = sorted(line["seconds"] for line in lines)
    again = max(line["second_start_seconds"] for line in lines)
    within = sum(second <= 2 for second in seconds)
    median = seconds[len(seconds) // 2]
    row = [str(len(lines)), f"{median:.2f} s", f"{seconds[-1]:.1f} s", f"{within} of {len(lines)}", f"{again:.3f} s"]
    return Table(("kinds of call timed", "median", "longest", "within 2 s", "second start, longest"), [row])


def share(ratios: Sequence[float], limit: float) -> float:
    """Of the ratios, how many are at most ``1 + limit``?"""
    return sum(ratio <= 1 + limit for ratio in ratios) / len(ratios)


def mean(ratios: Iterable[float]) -> float:
    """Geometric."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))
