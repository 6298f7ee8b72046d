#!/usr/bin/env python3
"""Does the clock choose well, and how long does it take? Asked for calls with every kernel that is here.

    python benchmarks/tuning.py --sets held_out                  # beside benchmarks/costs.py, whose times judge it
    python benchmarks/tuning.py --sets drawn --part 0/4

Each call's kernels are compiled first, as a program's own first run would; the seconds are then those that the tuner
takes to stage, warm and time them. Another tuner on the same cache folder is asked too: it must time nothing. The
fields ``default`` say what happens unasked (without ``ATTNPASS_TUNE``), and ``unknown`` the same on a GPU that nobody
measured: the curves of the cost table are taken away.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from attnpass.kernels.registry import libraries, registry
from attnpass.machine.machine import Machine
from attnpass.select.costs import table
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.trials.trials import Trials
from attnpass.trials.tuner import Tuner
from attnpass.trials.validate import Validator
from benchmarks.costs import AT_ONCE, KERNELS, Prepared, calls_of, part_of
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.timing import alone, preparing


def main() -> int:
    """One line for each call and step, and the times of its kernels as `benchmarks.costs` writes them."""
    args = _arguments()
    device = torch.device(args.device)
    machine = Machine.look(device, libraries(), libraries())
    folder = Path(tempfile.mkdtemp())
    trials = Trials(registry(), Validator(folder))
    calls = part_of(list(calls_of(args.sets, args.steps)), *args.part)
    for start in range(0, len(calls), AT_ONCE):
        with preparing():
            ready = [Prepared(call, args.kernels, machine, device) for call in calls[start : start + AT_ONCE]]
            for one in ready:
                _asked(one, machine, folder, trials)  # so that libraries compile what is missing
        for one in ready:
            for kernel, found in one.measured().items():
                append(args.costs, {**one.head, "kernel": kernel, **found, **facts(device.type)})
            with tempfile.TemporaryDirectory() as fresh, alone():
                record = _asked(one, machine, Path(fresh), trials) | _unasked(one, machine, Path(fresh))
            append(args.out, {**one.head, "benchmark": "tuning", **record, **facts(device.type)})
            print(f"{one.name:18} {one.step:8} {record}", flush=True)
    return 0


def _asked(one: Prepared, machine: Machine, folder: Path, trials: Trials) -> dict[str, Any]:
    """What the tuner chose, and how long it took; the second time from what it kept."""
    decision = select(one.call, registry(), machine, Config())
    found = trials.candidates(decision, machine)
    seconds, tuned = [], None
    for _ in range(2):
        start = time.perf_counter()
        tuned = Tuner(folder).fastest(decision.call, found, machine)
        seconds.append(round(time.perf_counter() - start, 3))
    record: dict[str, Any] = {"untuned": decision.kernel, "candidates": [c.kernel.name for c in found]}
    record |= {"seconds": seconds[0], "second_start_seconds": seconds[1]}
    if tuned is None:
        return {**record, "chosen": decision.kernel, "timed": {}}
    return {**record, "chosen": tuned.winner, "timed": dict(tuned.ms), "failed": dict(tuned.failed)}


def _unasked(one: Prepared, machine: Machine, folder: Path) -> dict[str, Any]:
    """What is chosen by default, with the cost table and without its curves, and the seconds that it took."""
    found: dict[str, Any] = {}
    emptied = {name: {**known, "curves": {}} for name, known in table().items()}
    for name, curves in ("default", table()), ("unknown", emptied):
        with mock.patch("attnpass.select.costs.table", partial(dict, curves)):
            decision = select(one.call, registry(), machine, Config())
            trials = Trials(registry(), Validator(folder), Tuner(folder / name), thorough=False)
            start = time.perf_counter()
            timed = trials.fastest(decision, machine)
            seconds = round(time.perf_counter() - start, 3)
        chosen, clock = (timed.kernel, dict(timed.ms)) if timed else (decision.kernel, {})
        found |= {name: chosen, f"{name}_timed": clock, f"{name}_seconds": seconds}
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["held_out"])
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=list(KERNELS))
    parser.add_argument("--steps", type=lambda text: text.split(","), default=["forward", "train"])
    parser.add_argument("--part", type=lambda text: tuple(map(int, text.split("/"))), default=(0, 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--costs", default=str(RESULTS / "costs_cuda.jsonl"))
    parser.add_argument("--out", default=str(RESULTS / "tuning_cuda.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
