"""What fewer bits buy and what they cost: SageAttention's kernels beside the best exact one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.labels import is_exact
from benchmarks.plots import style
from benchmarks.plots.costs import LENGTHS
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import Record, Source, newest, provenance, state

PANEL, TOP, LEFT, GAP, RIGHT = 1.8, 1.05, 0.56, 0.62, 0.12  # inches
CALL = ("sizes", "mask", "dtype", "step")
DASHES = {"none": "-", "causal": "--"}
MARKERS = {64: "o", 128: "D", 256: "s"}
LEGEND_COLUMNS = 4

Series = dict[
    tuple[str, int, str], dict[int, tuple[float, float | None]]
]  # kernel, head dim, mask: length: gain, error


def draw(source: Source, theme: Theme) -> Figure:
    """Left the gain, right the error, both over the sequence length."""
    lines = [r for r in source.read("costs") if r["set"] == "sweep" and r["step"] == "forward" and not state(r)]
    used = list(newest(lines, "kernel", *CALL).values())
    series = gains(used)
    if not series:
        raise NothingToShowError(f"no time of a sage kernel beside an exact one in {source.name('costs')}")
    captions = "Medians, the longer of GPU and host time", provenance(used, ("sageattention", "triton"))
    subtitle = "Forward, bf16. Approximate kernels run only when they are asked for by name"
    bottom = style.bottom(captions)
    height = TOP + PANEL + bottom
    figure = style.empty(height, "SageAttention: what it gains, and its error", subtitle, captions, theme)
    wide = (style.WIDTH - LEFT - RIGHT - GAP) / 2
    handles = {}
    for column, title in enumerate(("speed beside the fastest exact kernel", "error of the output, beside fp32")):
        place = (LEFT + column * (wide + GAP)) / style.WIDTH
        axes = figure.add_axes((place, bottom / height, wide / style.WIDTH, PANEL / height))
        axes.set_title(title, loc="left", fontsize=style.SMALL, fontweight="bold")
        for key, points in series.items():
            handles[key] = _line(axes, key, {S: point[column] for S, point in points.items()})
        _frame(axes, column == 0, theme)
        style.titles(axes, "sequence length", ("times as fast", "relative error")[column])
    labels = [f"{kernel}, D {D}{', causal' if mask == 'causal' else ''}" for kernel, D, mask in handles]
    style.legend(figure, list(handles.values()), labels, LEGEND_COLUMNS)
    return figure


def gains(lines: list[Record]) -> Series:
    """For each sage kernel, head dim and mask: how many times faster than the fastest exact kernel, and how wrong."""
    exact: dict[str, float] = {}
    for line in lines:
        if is_exact(line["kernel"]):
            exact[_call(line)] = min(exact.get(_call(line), line["ms"]), line["ms"])
    series: Series = {}
    for line in sorted(_approximate(lines), key=lambda r: (r["kernel"], r["sizes"][5], r["mask"] != "none")):
        if _call(line) in exact:
            points = series.setdefault((line["kernel"], line["sizes"][5], line["mask"]), {})
            points[line["sizes"][3]] = exact[_call(line)] / line["ms"], line.get("relative_error")
    return series


def _approximate(lines: list[Record]) -> Iterator[Record]:
    for line in lines:
        _, _, _, Sq, Sk, _ = line["sizes"]
        if not is_exact(line["kernel"]) and Sq == Sk and Sq in LENGTHS and line["mask"] in DASHES:
            yield line


def _call(line: Record) -> str:
    return str([line[field] for field in CALL])


def _line(axes: Axes, key: tuple[str, int, str], points: dict[int, float | None]) -> Any:
    kernel, D, mask = key
    there = {S: value for S, value in sorted(points.items()) if value is not None}
    places = [LENGTHS.index(S) for S in there]
    look: dict[str, Any] = {"color": style.colour(kernel), "marker": MARKERS.get(D, "o"), "markersize": 4.2}
    (line,) = axes.plot(places, list(there.values()), linewidth=1.3, linestyle=DASHES[mask], **look)
    return line


def _frame(axes: Axes, gain: bool, theme: Theme) -> None:
    axes.set_xticks(range(len(LENGTHS)), [f"{S / 1024:g}k" for S in LENGTHS])
    axes.set_xlim(-0.35, len(LENGTHS) - 0.65)
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=theme.faint)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(0, axes.dataLim.y1 * 1.1)
    if gain:
        axes.axhline(1.0, color=theme.faint, linewidth=1.0)
        axes.set_ylim(top=max(1.2, axes.get_ylim()[1]))
