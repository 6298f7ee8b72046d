"""How often and by how much ``auto`` misses the best exact kernel, on calls that its cost model never saw."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import Record, Source, newest, provenance

PANEL, TOP, LEFT, GAP, RIGHT = 1.7, 1.12, 0.58, 0.55, 0.22  # inches
NOISE = 1.03
NAMED_FROM = 1.1
NAMED = 3  # the worst calls have their names written
STEPS = {"forward": "forward", "train": "forward and backward"}
LOOKS = {"table": ("the table alone", "o", "-"), "clock": ("timed here", "D", "--")}


def draw(source: Source, theme: Theme) -> Figure:
    """One panel a step: the calls sorted by their ratio, the worst on the right."""
    lines = [r for r in source.read("regret") if r.get("ratio") is not None]
    used = newest(lines, "shape", "sizes", "mask", "step", "by").values()
    steps = [step for step in STEPS if any(r["step"] == step for r in used)]
    if not steps:
        raise NothingToShowError(f"no ratio in {source.name('regret')}")
    subtitle = "Calls that no choice was fitted to: time of auto's kernel over the best exact kernel's. 1 is perfect"
    captions = "The band is 3 %, run-to-run noise", provenance(used)
    bottom = style.bottom(captions)
    height = TOP + PANEL + bottom
    figure = style.empty(height, "How far auto is from the best choice", subtitle, captions, theme)
    wide = (style.WIDTH - LEFT - RIGHT - GAP * (len(steps) - 1)) / len(steps)
    worst = max(float(r["ratio"]) for r in used)
    for column, step in enumerate(steps):
        place = (LEFT + column * (wide + GAP)) / style.WIDTH
        box = (place, bottom / height, wide / style.WIDTH, PANEL / height)
        axes = figure.add_axes(box)
        axes.set_ylim(0.98, max(1.1, 1 + (worst - 1) * 1.2))
        _panel(axes, STEPS[step], [r for r in used if r["step"] == step], theme)
    return figure


def _panel(axes: Axes, title: str, records: list[Record], theme: Theme) -> None:
    axes.axhspan(1.0, NOISE, color=theme.grid, alpha=0.6, linewidth=0)
    shown: dict[str, Any] = {}
    for by, (label, marker, line) in LOOKS.items():
        ranked = sorted((r for r in records if r["by"] == by), key=lambda r: float(r["ratio"]))
        if not ranked:
            continue
        ratios = [float(r["ratio"]) for r in ranked]
        shares = [100 * (place + 1) / len(ratios) for place in range(len(ratios))]
        colour = style.colour("auto") if by == "table" else theme.faint
        look: dict[str, Any] = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.2, "linewidth": 1}
        (shown[f"{label}: {summary(ratios)}"],) = axes.plot(shares, ratios, drawstyle="steps-pre", **look)
        if by == "table":
            _names(axes, ranked, shares)
    axes.set_title(title, loc="left", fontsize=style.SMALL, fontweight="bold", pad=10 + 11 * len(shown))
    axes.legend(list(shown.values()), list(shown), loc="lower left", bbox_to_anchor=(-0.02, 0.98), fontsize=style.TINY)
    axes.set_xlim(0, 101)
    axes.set_xticks(range(0, 101, 25), [f"{share} %" for share in range(0, 101, 25)])
    style.titles(axes, "calls, sorted", "time over the best kernel's" * (title == STEPS["forward"]))
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=theme.faint)
    axes.spines["left"].set_visible(False)


def _names(axes: Axes, ranked: list[Record], shares: list[float]) -> None:
    """The worst calls, with what was chosen and what was best; nothing for what is near enough."""
    lowest = math.inf
    top = axes.get_ylim()[1]
    for record, share in list(zip(ranked, shares, strict=True))[: -NAMED - 1 : -1]:
        if record["ratio"] > NAMED_FROM:
            height = min(float(record["ratio"]), lowest - 0.075 * (top - 0.98))  # below the name before
            text = f"{record['shape']}: {record['chosen']}, not {record['best']}"
            axes.annotate(
                text, (share, height), (-7, 0), textcoords="offset points", ha="right", va="center", fontsize=style.TINY
            )
            lowest = height


def summary(ratios: list[float]) -> str:
    """The mean that ratios have, the worst, and the share within the noise.

    >>> summary([1.0, 1.0, 1.21, 1.0])
    'mean 1.049, worst 1.21, 75 % of 4 within 3 %'
    """
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    within = sum(ratio <= NOISE for ratio in ratios) / len(ratios)
    return f"mean {mean:.3f}, worst {max(ratios):.2f}, {100 * within:.0f} % of {len(ratios)} within 3 %"
