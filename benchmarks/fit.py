#!/usr/bin/env python3
"""Fit ``auto``'s table to measurements: ``benchmarks/results/costs_*.jsonl`` -> ``attnpass/select/costs.json``.

    python benchmarks/fit.py            # prints how well each curve predicts
    python benchmarks/fit.py --write    # and writes the table

Least absolute relative error with no negative term, a curve for each kernel, step, mask and head dim. The calls
of the sets ``held_out`` and ``drawn_anew`` are never looked at: ``benchmarks/regret.py`` judges by them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from attnpass.select.costs import DECODING, TABLE, TERMS, Features, as_computed, features
from benchmarks.records import RESULTS, Source, newest
from benchmarks.sets import SETS

FITTED = ("sweep", "fit", "outside", "drawn")
JUDGED = ("held_out", "drawn_anew")
QUIET = "host"  # measured in a process that had the machine to itself: gives the host's times
PROCESSORS = {"sm_90": 132}
ITERATIONS = 20
NOISE = 0.02  # errors below this weigh alike
LEFT_OUT = ("default", "sage")  # no kernel, and not exact
SHORT_MS = 0.1  # calls that the host decides
WIDTHS = (64, 96, 128, 192, 256)  # head dims of which curves are kept: kernels fill up to one of them
FEWEST = 2  # points of a curve
START = TERMS.index("start")
LONGEST_START = {"forward": 0.05, "train": 0.1}  # ms; what is more stems from having no short call among the points
Key = tuple[str, str, str, int]  # kernel, step, mask, D
Point = tuple[Features, float]


def main() -> int:
    args = _arguments()
    table = {name: fit_machine(name, of) for name, of in by_machine(everything()).items()}
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    if args.write:
        TABLE.write_text(text, encoding="utf-8")
        print(f"wrote {TABLE.name}: {len(text)} bytes")
    return 0


def everything() -> list[dict[str, Any]]:
    """What was measured on any GPU."""
    files = [path.stem.removeprefix("costs_") for path in sorted(RESULTS.glob("costs_*.jsonl"))]
    return [line for suffix in files for line in measured(Source(suffix))]


def measured(source: Source) -> list[dict[str, Any]]:
    """The newest line of each call, step and kernel."""
    return list(newest(source.read("costs"), "set", "shape", "step", "kernel").values())


def by_machine(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Measured lines of the fitted sets by the GPU's generation."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    judged = {str(shape) for which in JUDGED for shape in SETS[which].values()}
    for line in lines:
        if str(SETS[line["set"]][line["shape"]]) in judged:
            continue
        if line["set"] in (*FITTED, QUIET) and "ms" in line and line["kernel"] not in LEFT_OUT:
            found[line["hardware"]["capability"]].append(line)
    return dict(found)


def fit_machine(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of one GPU generation."""
    processors = PROCESSORS[name]
    points: dict[Key, list[Point]] = defaultdict(list)
    host: dict[bool, dict[str, list[float]]] = {grouped: defaultdict(list) for grouped in (False, True)}
    quiet = {line["kernel"] for line in lines if line["set"] == QUIET}
    for line in lines:
        if line["set"] in FITTED:
            call = as_computed(_features(line), line["kernel"])
            points[line["kernel"], line["step"], call.mask, _width(call.sizes[-1])].append((call, line["gpu_ms"]))
        alone = line["set"] not in ("outside", "drawn")  # which were measured beside other work of the host
        small = line["set"] == QUIET or (alone and line["kernel"] not in quiet and line["gpu_ms"] < SHORT_MS)
        if small and line["step"] == "forward":
            host[line["sizes"][1] != line["sizes"][2]][line["kernel"]].append(line["host_ms"])
    curves: dict[str, Any] = {}
    for (kernel, step, mask, D), some in sorted(points.items()):
        if len(some) < FEWEST:
            continue
        curve, errors = fit(some, processors)
        curves.setdefault(kernel, {}).setdefault(step, {}).setdefault(mask, {})[str(D)] = curve
        print(f"{kernel:17} {step:8} {mask:7} D{D:<4} {len(some):3} calls, {_error_text(errors)}")
    return {
        "processors": processors,
        "host_ms": {kernel: round(statistics.median(times), 4) for kernel, times in host[False].items()},
        "host_grouped_ms": {kernel: round(statistics.median(times), 4) for kernel, times in host[True].items()},
        "curves": curves,
    }


def fit(points: list[Point], processors: int) -> tuple[dict[str, float], list[float]]:
    """The curve with the least sum of relative errors that has no negative term, and its relative errors."""
    rows = torch.tensor([call.terms(processors) for call, _ in points], dtype=torch.float64)
    scaled = rows / torch.tensor([ms for _, ms in points], dtype=torch.float64)[:, None]
    best: tuple[float, dict[str, float], list[float]] | None = None
    needed = TERMS.index("byte" if points[0][0].mask in DECODING else "tile")  # what grows with the call
    for count in range(1, max(1, min(len(TERMS), len(points) // 2)) + 1):
        for chosen in itertools.combinations(range(len(TERMS)), count):
            if needed not in chosen:
                continue
            solution = _least_absolute(scaled[:, chosen])
            if bool((solution < 0).any()) or (chosen[0] == START and solution[0] > LONGEST_START[points[0][0].step]):
                continue
            errors = (scaled[:, chosen] @ solution - 1).tolist()
            loss = sum(map(abs, errors))
            if best is None or loss < best[0] * 0.95:  # another term has to earn its place
                numbers = {TERMS[i]: float(f"{x:.4g}") for i, x in zip(chosen, solution.tolist(), strict=True)}
                best = loss, numbers, errors
    assert best is not None
    return best[1], best[2]


def _least_absolute(rows: torch.Tensor) -> torch.Tensor:
    """The x with the least sum of ``abs(rows @ x - 1)``, by reweighted least squares.

    Absolute and not squared: a line that another process disturbed must not bend the curve.
    """
    weights = torch.ones(len(rows), 1, dtype=rows.dtype)
    solution = weights[: rows.shape[1]]
    for _ in range(ITERATIONS):
        solution = torch.linalg.lstsq(rows * weights, weights, driver="gelsd").solution
        weights = (rows @ solution - 1).abs().clamp_min(NOISE).rsqrt()
    return solution[:, 0]


def _features(line: dict[str, Any]) -> Features:
    shape = SETS[line["set"]][line["shape"]]
    found = features(shape.call(line["step"] == "train", torch.device("cpu")))
    assert found is not None
    return found


def _width(D: int) -> int:
    return next(width for width in WIDTHS if width >= D)


def _error_text(errors: list[float]) -> str:
    sizes = sorted(map(abs, errors))
    return f"off by {statistics.median(sizes):.1%} in the median, {sizes[-1]:.0%} at most"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write attnpass/select/costs.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
