"""Each kernel over the sequence length, on the FlashAttention papers' axes; a panel for each head dim and mask."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.flops import flops
from benchmarks.labels import is_exact
from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import Record, Source, newest, provenance, state
from benchmarks.roofline import ceilings

LENGTHS = tuple(512 << i for i in range(6))
HEAD_DIMS, MASKS = (64, 128, 256), ("none", "causal")
LIBRARIES = ("triton", "flash-attn", "tokenspeed-fa3", "flash-attn-4", "xformers", "sageattention")
LEFT, RIGHT, GAP, TOP, BOTTOM = 0.5, 0.1, 0.3, 0.98, 0.62  # inches
PANEL, WORDS, TICKS = 2.0, 0.46, 0.28
NOTE_COLUMNS = 52
LEGEND_COLUMNS = 6
UNDISTURBED = 0.2
SAID = (
    "Medians of five rounds, the longer of GPU and host time; whiskers from the fastest round to the slowest, "
    f"left out above {UNDISTURBED:.0%}. Dashed: approximate"
)

Panel = dict[str, dict[int, Record]]  # kernel, length


def draw_forward(source: Source, theme: Theme) -> Figure:
    return _draw(source, "forward", theme)


def draw_train(source: Source, theme: Theme) -> Figure:
    return _draw(source, "train", theme)


def _draw(source: Source, step: str, theme: Theme) -> Figure:
    lines = [line for line in source.read("costs") if line["set"] == "sweep" and line["step"] == step]
    used = list(newest((line for line in lines if _belongs(line)), "kernel", "sizes", "mask").values())
    if all(map(state, used)):
        raise NothingToShowError(f"no time of the set sweep, step {step}, in {source.name('costs')}")
    height = TOP + BOTTOM + len(MASKS) * (WORDS + PANEL + TICKS)
    limit = ceilings(source)
    passed = {"forward": "forward", "train": "forward and backward"}[step]
    subtitle = f"bf16, {passed}; TFLOP/s over sequence length. More is better; the number is the fastest kernel's"
    captions = SAID, provenance(used, LIBRARIES)
    figure = style.empty(height, f"Kernels, {passed}", subtitle, captions, theme)
    highest = max([_rate(line) for line in used if not state(line)] + ([limit.tflops] if limit else []))
    handles: dict[str, Any] = {}
    for row, mask in enumerate(MASKS):
        for column, D in enumerate(HEAD_DIMS):
            axes = figure.add_axes(_box(row, column, height))
            axes.set_ylim(0, highest * 1.12)
            title = f"head dim {D}, {'causal' if mask == 'causal' else 'no mask'}"
            handles |= _panel(axes, title, _of(used, mask, D), theme)
            if limit:
                _matrix_product(axes, limit.tflops, theme)
    known = [kernel for kernel in style.COLOURS if kernel in handles]
    names = known + [kernel for kernel in handles if kernel not in known]
    style.legend(figure, [handles[name] for name in names], names, LEGEND_COLUMNS)
    return figure


def _matrix_product(axes: Axes, tflops: float, theme: Theme) -> None:
    """The ceiling: what a large matrix product reached on the same GPU."""
    axes.axhline(tflops, color=theme.faint, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate("matrix product", (0, tflops), (0, 2), textcoords="offset points", fontsize=style.TINY)


def _belongs(line: Record) -> bool:
    _, _, _, Sq, Sk, D = line["sizes"]
    return Sq == Sk and Sq in LENGTHS and D in HEAD_DIMS and line["mask"] in MASKS


def _of(used: Iterable[Record], mask: str, D: int) -> Panel:
    found: Panel = {}
    for line in used:
        if (line["mask"], line["sizes"][5]) == (mask, D):
            found.setdefault(line["kernel"], {})[line["sizes"][3]] = line
    return found


def _box(row: int, column: int, height: float) -> tuple[float, float, float, float]:
    columns = len(HEAD_DIMS)
    wide = (style.WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    bottom = BOTTOM + TICKS + (len(MASKS) - 1 - row) * (WORDS + PANEL + TICKS)
    return (LEFT + column * (wide + GAP)) / style.WIDTH, bottom / height, wide / style.WIDTH, PANEL / height


def _rate(line: Record, ms: float | None = None) -> float:
    work = flops(line["sizes"], line["mask"], line["step"])
    return (work or 0.0) / (line["ms"] if ms is None else ms) / 1e9


def _panel(axes: Axes, title: str, panel: Panel, theme: Theme) -> dict[str, Any]:
    """Draw the lines; gives back one handle for each kernel."""
    handles: dict[str, Any] = {}
    best: dict[int, float] = {}
    for kernel, lines in panel.items():
        timed = {S: line for S, line in sorted(lines.items()) if not state(line)}
        if timed:
            handles[kernel] = _line(axes, kernel, timed)
            best |= {S: max(best.get(S, 0.0), _rate(line)) for S, line in timed.items()}
    for S, rate in best.items():
        at = (LENGTHS.index(S), rate)
        axes.annotate(f"{rate:.0f}", at, (0, 6), textcoords="offset points", ha="center", fontsize=style.TINY)
    note = "\n".join(textwrap.wrap(missing(panel), NOTE_COLUMNS))
    axes.set_title(title, loc="left", fontsize=style.SMALL, fontweight="bold", pad=23)
    offset = {"xycoords": "axes fraction", "textcoords": "offset points"}
    axes.annotate(note, (0, 1), (0, 20), va="top", fontsize=style.TINY - 0.8, color=theme.faint, **offset)
    labels = [f"{S // 1024}k" if S >= 1024 else str(S) for S in LENGTHS]
    axes.set_xticks(range(len(LENGTHS)), labels)
    axes.set_xlim(-0.35, len(LENGTHS) - 0.65)
    axes.grid(axis="y")
    axes.tick_params(length=0, labelcolor=theme.faint)
    axes.spines["left"].set_visible(False)
    return handles


def _line(axes: Axes, kernel: str, timed: dict[int, Record]) -> Any:
    rates = [_rate(line) for line in timed.values()]
    spreads = [_half_spread(line) for line in timed.values()]
    slow = [_rate(line, line["ms"] + spread) for line, spread in zip(timed.values(), spreads, strict=True)]
    fast = [_rate(line, line["ms"] - spread) for line, spread in zip(timed.values(), spreads, strict=True)]
    errors = [
        [rate - low for rate, low in zip(rates, slow, strict=True)],
        [high - rate for rate, high in zip(rates, fast, strict=True)],
    ]
    look: dict[str, Any] = {"color": style.colour(kernel), "marker": style.MARKERS.get(kernel, "o"), "markersize": 4.2}
    look |= {"linewidth": 1.3, "linestyle": "-" if is_exact(kernel) else "--", "elinewidth": 0.8}
    return axes.errorbar([LENGTHS.index(S) for S in timed], rates, errors, **look)


def _half_spread(line: Record) -> float:
    """Half of what lies between the fastest and the slowest round; nothing where another process fell into one."""
    spread: float = line.get("spread_ms", 0.0)
    return spread / 2 if spread <= UNDISTURBED * line["ms"] else 0.0


def missing(panel: Panel) -> str:
    """What has no point, and why: "OOM: native_math from 8k; refused: flash2"."""
    found: dict[str, list[str]] = {}
    for kernel, lines in panel.items():
        states = {S: state(line) for S, line in sorted(lines.items()) if state(line)}
        for why in dict.fromkeys(states.values()):
            at = [S for S, met in states.items() if met == why]
            where = "" if len(at) == len(lines) else " at " + ", ".join(f"{S / 1024:g}k" for S in at)
            found.setdefault(why, []).append(kernel + where)
    return "; ".join(f"{why}: {', '.join(kernels)}" for why, kernels in found.items())
