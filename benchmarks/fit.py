#!/usr/bin/env python3
"""Fit ``auto``'s table to measurements: ``benchmarks/results/costs_*.jsonl`` -> ``attnpass/costs.json``.

    python benchmarks/fit.py            # prints how well each curve predicts
    python benchmarks/fit.py --write    # and writes the table

Least squares of the relative error with no negative term, a curve for each kernel, step, mask and head dim. The calls
of the set ``held_out`` are never looked at: ``benchmarks/regret.py`` judges by them.
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

from attnpass.costs import TABLE, TERMS, Features, features
from benchmarks.environment import RESULTS
from benchmarks.shapes import SETS

FITTED = ("sweep", "fit")
PROCESSORS = {"sm_90": 132}
SHORT_MS = 0.1  # calls that the host decides
Key = tuple[str, str, str, int]  # kernel, step, mask, D
Point = tuple[Features, float]


def main() -> int:
    args = _arguments()
    lines = [line for path in sorted(RESULTS.glob("costs_*.jsonl")) for line in newest(path)]
    table = {name: fit_machine(name, of) for name, of in by_machine(lines).items()}
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    if args.write:
        TABLE.write_text(text, encoding="utf-8")
        print(f"wrote {TABLE.name}: {len(text)} bytes")
    return 0


def newest(path: Path) -> list[dict[str, Any]]:
    """The last line of each call, step and kernel in a file of results."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    last = {(line["set"], line["shape"], line["step"], line["kernel"]): line for line in lines}
    return list(last.values())


def by_machine(lines: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Measured lines of the fitted sets by the GPU's generation."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["set"] in FITTED and "ms" in line:
            found[line["hardware"]["capability"]].append(line)
    return dict(found)


def fit_machine(name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of one GPU generation."""
    processors = PROCESSORS[name]
    points: dict[Key, list[Point]] = defaultdict(list)
    host: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        call = _features(line)
        points[line["kernel"], line["step"], call.mask, call.sizes[-1]].append((call, line["gpu_ms"]))
        if line["gpu_ms"] < SHORT_MS:
            host[line["kernel"]][line["step"]].append(line["host_ms"])
    curves: dict[str, Any] = {}
    for (kernel, step, mask, D), some in sorted(points.items()):
        curve, errors = fit(some, processors)
        curves.setdefault(kernel, {}).setdefault(step, {}).setdefault(mask, {})[str(D)] = curve
        print(f"{kernel:17} {step:8} {mask:7} D{D:<4} {len(some):3} calls, {_error_text(errors)}")
    return {
        "processors": processors,
        "host_ms": {k: {s: round(statistics.median(v), 4) for s, v in steps.items()} for k, steps in host.items()},
        "curves": curves,
    }


def fit(points: list[Point], processors: int) -> tuple[dict[str, float], list[float]]:
    """The curve with the least relative error that has no negative term, and its relative errors."""
    rows = torch.tensor([call.terms(processors) for call, _ in points], dtype=torch.float64)
    times = torch.tensor([ms for _, ms in points], dtype=torch.float64)
    scaled, ones = rows / times[:, None], torch.ones_like(times)
    best: tuple[float, dict[str, float], list[float]] | None = None
    for count in range(1, min(len(TERMS), len(points)) + 1):
        for chosen in itertools.combinations(range(len(TERMS)), count):
            solution = torch.linalg.lstsq(scaled[:, chosen], ones[:, None], driver="gelsd").solution[:, 0]
            if bool((solution < 0).any()):
                continue
            errors = (scaled[:, chosen] @ solution - 1).tolist()
            loss = sum(error * error for error in errors)
            if best is None or loss < best[0] * 0.98:  # another term has to earn its place
                numbers = {TERMS[i]: float(f"{x:.4g}") for i, x in zip(chosen, solution.tolist(), strict=True)}
                best = loss, numbers, errors
    assert best is not None
    return best[1], best[2]


def _features(line: dict[str, Any]) -> Features:
    shape = SETS[line["set"]][line["shape"]]
    found = features(shape.call(line["step"] == "train", torch.device("cpu")))
    assert found is not None
    return found


def _error_text(errors: list[float]) -> str:
    sizes = sorted(map(abs, errors))
    return f"off by {statistics.median(sizes):.1%} in the median, {sizes[-1]:.0%} at most"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write attnpass/costs.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
