"""Each kernel over the sequence length, on the FlashAttention papers' axes; a panel for each head dim and mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.flops import flops
from benchmarks.labels import KERNELS, is_exact
from benchmarks.plots import style
from benchmarks.plots.style import NothingToShowError, Theme
from benchmarks.records import LEFT_OUT, Record, Source, newest, provenance, state
from benchmarks.roofline import Ceilings, ceilings

LENGTHS = tuple(512 << i for i in range(6))
HEAD_DIMS, MASKS = (64, 128, 256), ("none", "causal")
LIBRARIES = ("triton", "flash-attn", "tokenspeed-fa3", "flash-attn-4", "xformers", "sageattention")
LEFT, RIGHT, GAP, TOP = 0.56, 0.08, 0.34, 0.5  # inches
PANEL, WORDS, TICKS = 1.9, 0.34, 0.26
LEGEND_COLUMNS = 5
UNDISTURBED = 0.2
SAID = (
    "Medians of five rounds, the longer of GPU and host time; whiskers from the fastest round to the slowest, "
    f"none where more than {UNDISTURBED:.0%} lies between. Dashed: approximate. A number is that of the fastest kernel"
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
    shown = sorted({line["kernel"] for line in used if not state(line)}, key=_place)
    limit = ceilings(source)
    passed = {"forward": "forward", "train": "forward and backward"}[step]
    captions = SAID, _yardstick(used, limit), missing(used), provenance(used, LIBRARIES)
    top = TOP + style.legend_height(len(shown), LEGEND_COLUMNS)
    bottom = style.bottom(captions)
    height = top + bottom + len(MASKS) * (WORDS + PANEL + TICKS) - TICKS
    subtitle = f"bf16, {passed}. More is better"
    figure = style.empty(height, f"Kernels, {passed}", subtitle, captions, theme)
    highest = max([_rate(line) for line in used if not state(line)] + ([limit.tflops] if limit else []))
    handles: dict[str, Any] = {}
    for row, mask in enumerate(MASKS):
        for column, D in enumerate(HEAD_DIMS):
            axes = figure.add_axes(_box(row, column, height, bottom))
            axes.set_ylim(0, highest * 1.12)
            title = f"head dim {D}, {'causal' if mask == 'causal' else 'no mask'}"
            handles |= _panel(axes, title, _of(used, mask, D), theme)
            style.titles(axes, "sequence length" * (row == len(MASKS) - 1), "TFLOP/s" * (column == 0))
            if limit:
                axes.axhline(limit.tflops, color=theme.faint, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    style.legend(figure, [handles[name] for name in shown], [KERNELS.get(name, name) for name in shown], LEGEND_COLUMNS)
    return figure


def _place(kernel: str) -> tuple[int, str]:
    known = list(style.COLOURS)
    return known.index(kernel) if kernel in known else len(known), kernel


def _yardstick(used: Iterable[Record], limit: Ceilings | None) -> str:
    """What the dotted line is, and which kernels are above it: it is no bound."""
    if limit is None:
        return ""
    exact = [line for line in used if not state(line) and is_exact(line["kernel"])]  # others multiply in fewer bits
    above = {(line["kernel"], line["sizes"][5]) for line in exact if _rate(line) > limit.tflops}
    over = ", ".join(f"{kernel} at head dim {D}" for kernel, D in sorted(above, key=lambda pair: _place(pair[0])))
    said = f"Dotted: {limit.tflops:.0f} TFLOP/s, what a bf16 matrix product of 8192³ reached on the same GPU"
    return said + (f", a yardstick and no bound: {over} {'is' if len(above) == 1 else 'are'} above it" if over else "")


def _belongs(line: Record) -> bool:
    _, _, _, Sq, Sk, D = line["sizes"]
    return Sq == Sk and Sq in LENGTHS and D in HEAD_DIMS and line["mask"] in MASKS


def _of(used: Iterable[Record], mask: str, D: int) -> Panel:
    found: Panel = {}
    for line in used:
        if (line["mask"], line["sizes"][5]) == (mask, D):
            found.setdefault(line["kernel"], {})[line["sizes"][3]] = line
    return found


def _box(row: int, column: int, height: float, below: float) -> tuple[float, float, float, float]:
    columns = len(HEAD_DIMS)
    wide = (style.WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    bottom = below + (len(MASKS) - 1 - row) * (WORDS + PANEL + TICKS)
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
    axes.set_title(title, loc="left", fontsize=style.SMALL, fontweight="bold", pad=8)
    axes.set_xticks(range(len(LENGTHS)), list(map(_length, LENGTHS)))
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


def missing(lines: Iterable[Record]) -> str:
    """What has no point, and why: ``"Without a point: flash2 at head dim 256 (this build has 64 and 128 only)"``."""
    found: dict[tuple[str, str], list[Record]] = {}
    for line in lines:
        if state(line):
            found.setdefault((line["kernel"], _why(line)), []).append(line)
    words = []
    for (kernel, why), members in found.items():
        dims = sorted({line["sizes"][5] for line in members})
        lengths = sorted({line["sizes"][3] for line in members})
        at = "" if len(dims) == len(HEAD_DIMS) else f" at head dim {' and '.join(map(str, dims))}"
        at += "" if len(lengths) == len(LENGTHS) else f" at {', '.join(map(_length, lengths))}"
        words.append(f"{kernel}{at} ({why})")
    return f"Without a point: {'; '.join(words)}" if words else ""


def _why(line: Record) -> str:
    """The first reason, as a caption has it."""
    reason = str((line.get("refused") or [line.get("problem")])[0]) if state(line) != "OOM" else "OOM"
    reason = reason.removeprefix(LEFT_OUT).partition("; ")[0]
    return "no backward" if "no backward" in reason else reason


def _length(S: int) -> str:
    return f"{S // 1024}k" if S >= 1024 else str(S)
