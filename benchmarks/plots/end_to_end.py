"""Whole models: how much faster than plain Inductor, also where it is slower."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.labels import AUTO, BY_HAND, INDUCTOR, compiler, model
from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import Key, Record, Source, newest, provenance, state
from benchmarks.tables import model_steps

BAR, GAP, TOP, LEFT, RIGHT = 0.2, 0.15, 0.54, 2.5, 0.06  # inches
LEGEND_COLUMNS = 3
LIBRARIES = ("triton", "transformers", "timm", "torchvision", "sageattention")
SAID = "bf16, medians; whiskers: what 20th to 80th percentiles allow"

Bars = dict[str, Record]  # whoever is compared with plain Inductor, in the order of the bars


def draw(source: Source, theme: Theme) -> Figure:
    """One group of bars for each model and step; plain Inductor is the line at 1."""
    found = newest(source.read("end_to_end"), "model", "compiler", "step")
    groups = [(name, step, _bars(found, name, step)) for name, step in model_steps(found)]
    groups = [group for group in groups if AUTO in group[2]]
    if not groups:
        raise NothingToShowError(f"no undisturbed line with the compiler auto in {source.name('end_to_end')}")
    order = list(dict.fromkeys((AUTO, *(other for _, _, bars in groups for other in bars))))
    top = TOP + style.legend_height(len(order), LEGEND_COLUMNS)
    tall = sum(BAR * len(bars) + GAP for _, _, bars in groups)
    subtitle = "Unmodified models; plain Inductor is the line at 1. More is better"
    captions = SAID, left_out(found, groups), provenance(found.values(), LIBRARIES)
    bottom = style.bottom(captions)
    height = top + bottom + tall
    figure = style.empty(height, "Whole models", subtitle, captions, theme)
    box = (LEFT / style.WIDTH, bottom / height, (style.WIDTH - LEFT - RIGHT) / style.WIDTH, tall / height)
    axes = figure.add_axes(box)
    reached, places = 0.0, []
    for name, step, bars in groups:
        places.append(reached + (BAR * len(bars) + GAP) / 2)
        first = reached + (BAR + GAP) / 2
        for row, (other, record) in enumerate(bars.items()):
            _bar(axes, first + BAR * row, (found[name, INDUCTOR, step], record), theme, bold=other == AUTO)
        reached += BAR * len(bars) + GAP
    _frame(axes, [model(name, step) for name, step, _ in groups], places, theme)
    axes.set_ylim(reached, 0)
    handles = [axes.barh([0], [0], color=style.colour(other)) for other in order]
    style.legend(figure, handles, [compiler(other) for other in order], LEGEND_COLUMNS)
    return figure


def left_out(found: dict[Key, Record], groups: list[tuple[str, str, Bars]]) -> str:
    """What has lines, but no bar: a time that another process disturbed is a bound, which the tables have."""
    shown = {(name, other, step) for name, step, bars in groups for other in bars}
    lacking = [key for key in found if key not in shown and key[1] not in (INDUCTOR, "eager")]
    names = [
        model(name, step) + f" ({compiler(other).removeprefix('attnpass, ')})" * (other != AUTO)
        for name, other, step in lacking
    ]
    return f"Without a bar, since a time was disturbed or is lacking: {'; '.join(names)}" if names else ""


def _bars(found: dict[Key, Record], name: str, step: str) -> Bars:
    """Who is compared with plain Inductor here, ``auto`` first, as far as both times are there and undisturbed."""
    if state(found.get((name, INDUCTOR, step))):
        return {}
    there = [c for model_name, c, s in found if (model_name, s) == (name, step) and c not in (INDUCTOR, "eager")]
    there.sort(key=lambda c: (c != AUTO, c != BY_HAND, c))
    return {c: found[name, c, step] for c in there if not state(found[name, c, step])}


def _bar(axes: Axes, place: float, pair: tuple[Record, Record], theme: Theme, bold: bool) -> None:
    plain, ours = pair
    gain, low, high = speedup(plain, ours)
    error = {"ecolor": theme.faint, "elinewidth": 0.8}
    color = style.colour(ours["compiler"])
    axes.barh(place, gain, BAR * 0.9, color=color, xerr=[[gain - low], [high - gain]], error_kw=error)
    axes.annotate(
        f"{gain:.2f}×, {plain['ms']:.2f} → {ours['ms']:.2f} ms",
        (max(high, 1.0), place),
        (5, 0),
        textcoords="offset points",
        va="center",
        fontsize=style.TINY,
        fontweight="bold" if bold else "normal",
    )


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
    axes.set_xlim(0, max(1.0, axes.dataLim.x1) * 1.55)  # room for the words behind the longest bar
    style.titles(axes, "speedup over plain Inductor")
