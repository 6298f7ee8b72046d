"""The same attention in all its spellings: plain Inductor beside attnpass."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.labels import AUTO, COMPILERS, FORMS, INDUCTOR
from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import Key, Record, Source, has_time, provenance, state
from benchmarks.tables import forms_of

ROW, TOP, LEFT, RIGHT = 0.37, 0.85, 2.72, 0.06  # inches
BAR = 0.38
PAIR = (INDUCTOR, AUTO)
SAID = "Medians; whiskers: 20th to 80th percentile. ≤ and paler: another process slowed some of the runs down"


def draw(source: Source, theme: Theme) -> Figure:
    """Two bars a form: milliseconds, with the memory written beside."""
    found = forms_of(source)
    used = {key: line for key, line in found.items() if key[1] in PAIR and key[2] == "forward"}
    if not any(key[1] == AUTO for key in used):
        raise NothingToShowError(f"no line with the compiler auto in {source.name('forms')}")
    captions = SAID, provenance(used.values())
    bottom = style.bottom(captions)
    height = TOP + bottom + ROW * len(FORMS)
    title = f"The same attention call, spelled {len(FORMS)} ways"
    figure = style.empty(
        height, title, f"{_sizes(used)}: ms, and memory beyond the operands. Less is better", captions, theme
    )
    wide = (style.WIDTH - LEFT - RIGHT) / style.WIDTH
    axes = figure.add_axes((LEFT / style.WIDTH, bottom / height, wide, 1 - (TOP + bottom) / height))
    longest = max(line["ms"] for line in used.values() if has_time(line))
    for row, form in enumerate(FORMS):
        for compiler in PAIR:
            _bar(axes, row, compiler, used.get((form, compiler, "forward")), theme)
    axes.set_xlim(0, longest * 1.34)  # room for the words behind the longest bar
    axes.set_yticks(range(len(FORMS)), list(FORMS.values()))
    style.bare_bars(axes, len(FORMS))
    style.titles(axes, "milliseconds")
    handles = [axes.barh([0], [0], color=style.colour(compiler)) for compiler in PAIR]
    style.legend(figure, handles, [COMPILERS[compiler] for compiler in PAIR])
    return figure


def _alpha(missing: str) -> float:
    """A bar that is only an upper bound is paler."""
    return 0.6 if missing else 1.0


def _bar(axes: Axes, row: int, compiler: str, record: Record | None, theme: Theme) -> None:
    place = row + (BAR / 2 if compiler == AUTO else -BAR / 2)
    missing = state(record)
    if record is None or not has_time(record):
        axes.annotate(
            missing, (0, place), (4, 0), textcoords="offset points", va="center", color=theme.faint, style="italic"
        )
        return
    half = 0.0 if missing else record.get("spread_ms", 0.0) / 2
    error = {"ecolor": theme.faint, "elinewidth": 0.8}
    axes.barh(
        place, record["ms"], BAR, color=style.colour(compiler), alpha=_alpha(missing), xerr=half or None, error_kw=error
    )
    memory = record.get("memory_mib")
    text = f"{'≤ ' if missing else ''}{record['ms']:.2f} ms" + ("" if memory is None else f", {memory:.0f} MiB")
    weight = "bold" if compiler == AUTO else "normal"
    end = (record["ms"] + half, place)
    axes.annotate(text, end, (4, 0), textcoords="offset points", va="center", fontsize=style.TINY, fontweight=weight)


def _sizes(used: dict[Key, Record]) -> str:
    B, H, Hkv, S, D = next(line["sizes"] for line in used.values() if "sizes" in line)
    return f"B {B}, H {H}, Hkv {Hkv}, S {S}, D {D}, bf16, forward"
