"""How every figure looks: one colour and marker for each kernel, two themes, and SVG that is the same on each run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.labels import is_exact

WIDTH = 7.3  # inches: 700 px, the width of the docs, so that a point is 4/3 px there; a README on GitHub has more
SMALL, TINY = 8.0, 7.2  # points: 10.7 and 9.6 px; nothing is smaller
CAPTION_COLUMNS = 132
LEGEND_ROW, CAPTION_ROW = 0.17, 0.15  # inches
AXIS_WORDS = 0.5  # inches, of numbers and title below an axis

# Chosen so that no two that stand beside each other look alike to a colour-blind reader, and so that all show on white
# and on GitHub's dark grey. The markers say it again.
COLOURS = {
    "auto": "#00807A",
    "inductor": "#A7ADB5",
    "native_cudnn": "#205CD6",
    "native_flash": "#21A5F5",
    "native_efficient": "#5568B0",
    "native_math": "#5F6773",
    "flash2": "#C9A206",
    "flash3": "#A33C05",
    "flash4": "#E5532F",
    "flex": "#79B280",
    "xformers": "#A06BFD",
    "sage": "#F25FCF",
    "sage1": "#B3208F",
    "sage_triton": "#8E4585",
    "sage_fp16": "#D98CC5",
    "sage_fp8": "#F25FCF",
    "sage_fp8_sm90": "#F25FCF",
}
COLOURS |= {"by_hand": COLOURS["inductor"], "native": COLOURS["inductor"], "default": COLOURS["inductor"]}
COLOURS |= {"auto_pytorch_only": "#5CC2BC"}
MARKERS = dict(zip(COLOURS, "oosv^<DPXd*hHp8sH", strict=False))
OTHER = "#8C7A5B"


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of everything but data: GitHub's own, on its backgrounds."""

    name: str
    ink: str
    faint: str
    grid: str


THEMES = (Theme("light", "#1F2328", "#59636E", "#D8DEE4"), Theme("dark", "#F0F6FC", "#9198A1", "#30363D"))


class LegendTooWideError(Exception):
    """A legend would be cut off: give it fewer columns."""


class NothingToShowError(Exception):
    """The lines that a figure is made of are not there."""


def colour(kernel: str) -> str:
    return COLOURS.get(kernel, OTHER if is_exact(kernel) else COLOURS["sage"])


def settings(theme: Theme) -> dict[str, Any]:
    """Matplotlib's settings. Text stays text, in whatever sans-serif the reader has."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "attnpass",  # element ids that do not change from run to run
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; wider than what browsers take, so labels fit
        "font.size": SMALL,
        "text.color": theme.ink,
        "axes.labelcolor": theme.faint,
        "axes.edgecolor": theme.grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.faint,
        "ytick.labelcolor": theme.ink,
        "legend.frameon": False,
        "savefig.transparent": True,
    }


def empty(height: float, title: str, subtitle: str, captions: Sequence[str], theme: Theme) -> Figure:
    """A figure with its words; the axes have room from `top` down to `bottom`."""
    figure = Figure(figsize=(WIDTH, height))
    figure.text(0.012, 1 - 0.12 / height, title, fontsize=11.5, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.36 / height, subtitle, fontsize=SMALL, color=theme.faint, va="top")
    lines = _wrapped(captions)
    for place, line in enumerate(lines, 1):  # in the order of reading, for those to whom it is read
        figure.text(
            0.012,
            (0.08 + CAPTION_ROW * (len(lines) - place)) / height,
            line,
            fontsize=TINY,
            color=theme.faint,
            va="bottom",
        )
    return figure


def _wrapped(captions: Sequence[str]) -> list[str]:
    return [line for part in captions for line in textwrap.wrap(part, CAPTION_COLUMNS, break_on_hyphens=False)]


def bottom(captions: Sequence[str]) -> float:
    """Inches that the captions take, and the words of the axis above them."""
    return 0.08 + CAPTION_ROW * len(_wrapped(captions)) + AXIS_WORDS


def legend(figure: Figure, handles: list[Any], labels: list[str], columns: int = 0, below_top: float = 0.54) -> None:
    """Outside of the data, under the title; `legend_height` says how much room it takes.

    Raises:
        LegendTooWideError: it is wider than the figure.
    """
    place = (0.004, 1 - below_top / figure.get_figheight())
    look: dict[str, Any] = {"borderpad": 0.2, "labelspacing": 0.3, "columnspacing": 1.6, "handlelength": 1.9}
    made = figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=place, ncols=columns or len(labels), fontsize=SMALL, **look
    )
    figure.draw_without_rendering()
    if made.get_window_extent().x1 > figure.bbox.x1:
        raise LegendTooWideError(f"the legend of {', '.join(labels)}")


def legend_height(labels: int, columns: int) -> float:
    """Inches that a legend takes below the subtitle."""
    return LEGEND_ROW * -(-labels // columns) + 0.1


def titles(axes: Axes, x: str = "", y: str = "") -> None:
    """What the axes show."""
    axes.set_xlabel(x, fontsize=SMALL, labelpad=3)
    axes.set_ylabel(y, fontsize=SMALL, labelpad=3)


def bare_bars(axes: Axes, rows: int) -> None:
    """Rows from top to bottom, with vertical grid lines only."""
    axes.set_ylim(rows - 0.42, -0.58)
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["bottom"].set_visible(False)


def save(figure: Figure, path: Path, theme: Theme) -> None:
    """Write SVG that says nothing about when and by what it was written."""
    with rc_context(settings(theme)):
        figure.savefig(path, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = path.read_text(encoding="utf-8").replace("'DejaVu Sans', ", "").replace("'DejaVu Sans'", "sans-serif")
    text = re.sub(r"(\d\.\d\d)\d\d+", r"\1", text)  # a hundredth of a point is enough, and a third of the bytes less
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)  # matplotlib repeats each text as a comment
    path.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
