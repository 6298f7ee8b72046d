"""Whole models: how much faster than plain Inductor, also where it is slower."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.labels import AUTO, BY_HAND, INDUCTOR, compiler, model
from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import DISTURBED, Key, Record, Source, newest, provenance, state
from benchmarks.tables import model_steps

BAR, GAP, TOP, BOTTOM = 0.2, 0.15, 0.85, 0.82  # inches
LIBRARIES = ("triton", "transformers", "timm", "torchvision", "sageattention")


SAID = (
    "bf16, medians; whiskers: what 20th to 80th percentiles allow. ≥ and paler: another process slowed some runs down"
)


def draw(source: Source, theme: Theme) -> Figure:
    """One group of bars for each model and step; plain Inductor is the line at 1."""
    found = newest(source.read("end_to_end"), "model", "compiler", "step")
    groups = [(name, step, _others(found, name, step)) for name, step in model_steps(found)]
    groups = [group for group in groups if AUTO in group[2]]
    if not groups:
        raise NothingToShowError(f"no line with the compiler auto in {source.name('end_to_end')}")
    tall = sum(BAR * len(others) + GAP for _, _, others in groups)
    height = TOP + BOTTOM + tall
    subtitle = "Unmodified models: speedup over plain Inductor, which is the line at 1. More is better"
    figure = style.empty(height, "Whole models", subtitle, (SAID, provenance(found.values(), LIBRARIES)), theme)
    axes = figure.add_axes((0.345, BOTTOM / height, 0.645, tall / height))
    top, places, shown = 0.0, [], dict[str, None]()
    for name, step, others in groups:
        places.append(top + (BAR * len(others) + GAP) / 2)
        first = top + (BAR + GAP) / 2
        for row, other in enumerate(others):
            _bar(axes, first + BAR * row, (found.get((name, INDUCTOR, step)), found[name, other, step]), theme)
            shown[other] = None
        top += BAR * len(others) + GAP
    _frame(axes, [model(name, step) for name, step, _ in groups], places, theme)
    axes.set_ylim(top, 0)
    order = [AUTO, *(other for other in shown if other != AUTO)]
    style.legend(figure, [axes.barh([0], [0], color=style.colour(o)) for o in order], [compiler(o) for o in order])
    return figure


def _others(found: dict[Key, Record], name: str, step: str) -> list[str]:
    """Who is compared with plain Inductor here, ``auto`` first."""
    there = [c for model_name, c, s in found if (model_name, s) == (name, step) and c not in (INDUCTOR, "eager")]
    return sorted(there, key=lambda c: (c != AUTO, c != BY_HAND, c))


def _bar(axes: Axes, place: float, pair: tuple[Record | None, Record], theme: Theme) -> None:
    plain, ours = pair
    bound = state(ours) == DISTURBED and "≤ "
    missing = (state(ours) if not bound else "") or (
        state(plain) and f"{bound or ''}{ours['ms']:.2f} ms; plain Inductor: {state(plain)}"
    )
    if not missing and bound and plain is not None and plain["ms"] < ours["ms"]:
        missing = f"disturbed: ≥ {plain['ms'] / ours['ms']:.2f}×"
    note = {"textcoords": "offset points", "va": "center", "fontsize": style.TINY}
    if plain is None or missing:
        axes.annotate(missing, (0, place), (4, 0), color=theme.faint, style="italic", **note)
        return
    gain, low, high = speedup(plain, ours) if not bound else (plain["ms"] / ours["ms"],) * 3
    error = {"ecolor": theme.faint, "elinewidth": 0.8}
    axes.barh(
        place,
        gain,
        BAR * 0.9,
        color=style.colour(ours["compiler"]),
        alpha=0.6 if bound else 1.0,
        xerr=None if bound else [[gain - low], [high - gain]],
        error_kw=error,
    )
    text = f"{'≥ ' if bound else ''}{gain:.2f}×, {plain['ms']:.2f} → {bound or ''}{ours['ms']:.2f} ms"
    weight = "bold" if ours["compiler"] == AUTO else "normal"
    axes.annotate(text, (max(high, 1.0), place), (5, 0), fontweight=weight, **note)


def speedup(plain: Record, ours: Record) -> tuple[float, float, float]:
    """How many times faster, and the range that both spreads together allow."""
    early, late = (record.get("spread_ms", 0.0) / 2 for record in (plain, ours))
    low = (plain["ms"] - early) / (ours["ms"] + late)
    return plain["ms"] / ours["ms"], low, (plain["ms"] + early) / (ours["ms"] - late)


def _frame(axes: Axes, labels: list[str], places: list[float], theme: Theme) -> None:
    axes.set_yticks(places, labels)
    axes.tick_params(length=0)
    axes.grid(axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.axvline(1.0, color=theme.faint, linewidth=1.0, zorder=3)
    axes.set_xlim(0, max(1.0, axes.dataLim.x1) * 1.5)
