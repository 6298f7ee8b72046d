#!/usr/bin/env python3
"""What attnpass costs: at compile time, in every call, and in a second process. Each number comes from fresh processes.

python benchmarks/overhead.py                    # all three, about fifteen minutes on two cores
python benchmarks/overhead.py --only calls       # one of compile, calls, caches
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from attnpass.cli.table import print_table
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.small_gpt import BLOCKS

CHILD = Path(__file__).with_name("overhead_child.py")
MARK = "RECORD "
PROBES = ("compile", "calls", "caches")
INDUCTOR = "inductor"
KERNELS = {
    "cpu": ("auto", "native", "native_flash", "native_math", "flex"),
    "cuda": ("auto", "native", "native_cudnn", "native_flash", "native_efficient", "native_math", "flex"),
}
CALLED = ("native", "auto")
MAX_PASS_MS_A_CALL = 1.0
MAX_SHARE = 0.03
Row = dict[str, str]


def main() -> int:
    """Measure, write the lines, show the tables; the exit status is 1 if a target is missed."""
    args = _arguments()
    missed = False
    for probe in args.only:
        rows, ok = MEASURES[probe](args)
        print_table(rows, f"\n{TITLES[probe]}")
        missed |= not ok
    print(f"\n{args.out}")
    return 1 if missed else 0


def measure_compile(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """Cold compilations, caches off; medians over `--repeat` processes."""
    rows, fine = [], True
    for kernel in (INDUCTOR, *args.kernels):
        environment = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
        runs = [_child(args, "compile", kernel, environment) for _ in range(args.repeat)]
        found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        _write(args, "overhead.compile", kernel, {**found, "processes": len(runs)})
        row = {"kernel": kernel, "compile": f"{found['compile_ms'] / 1000:.1f} s"}
        if kernel == INDUCTOR:
            rows.append({**row, **dict.fromkeys(("rewritten", "pass", "a call", "share", "pass, warm", "target"), "")})
            continue
        ok = found["pass_ms_a_call"] <= MAX_PASS_MS_A_CALL and found["pass_share"] <= MAX_SHARE
        fine &= ok
        rewritten = {"rewritten": f"{found['rewritten']:.0f}/{found['calls']:.0f}"}
        spent = {"pass": f"{found['pass_ms']:.1f} ms", "a call": f"{found['pass_ms_a_call']:.2f} ms"}
        share = {"share": f"{found['pass_share']:.2%}", "pass, warm": f"{found['warm_pass_ms']:.1f} ms"}
        rows.append({**row, **rewritten, **spent, **share, "target": "met" if ok else "MISSED"})
    return rows, fine


def measure_calls(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """The target is met if attnpass, on the graph with 32 calls, lies within plain Inductor's spread against itself.

    The graph with one call has no target: it is the smallest that there can be, and shows the fixed cost of a call.
    """
    rows, fine = [], True
    for blocks, kernel in product((BLOCKS, 1), CALLED):
        found = _child(args, "calls", kernel, {}, "--seconds", str(args.seconds), "--blocks", str(blocks))
        _write(args, "overhead.calls", kernel, found)
        ours, noise = found["attnpass_ratio"], found["inductor_again_ratio"]
        ok = ours["median"] <= noise["high_quartile"]
        row = {"attention calls": str(blocks), "kernel": kernel, "rewritten": str(found["rewritten"])}
        for side in ("inductor", "attnpass"):
            row[side] = f"{found[f'{side}_us']:.2f} µs, IQR {found[f'{side}_iqr_us']:.2f}"
        row |= {"attnpass / Inductor": _ratio(ours), "Inductor / Inductor": _ratio(noise)}
        rows.append({**row, "target": "" if blocks != BLOCKS else "met" if ok else "MISSED"})
        fine &= ok or blocks != BLOCKS
    return rows, fine


def measure_caches(args: argparse.Namespace) -> tuple[list[Row], bool]:
    """A first process fills an empty cache folder, a second one counts."""
    rows, fine = [], True
    for kernel in args.kernels:
        for step in ("forward", "train"):
            with tempfile.TemporaryDirectory() as folder:
                environment = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": f"{folder}/triton"}
                extra = ("--training",) if step == "train" else ()
                first, second = (_child(args, "caches", kernel, environment, *extra) for _ in range(2))
            _write(args, "overhead.caches", kernel, {"step": step, "first": first, "second": second})
            ok = all(
                second[f"{cache}_hit"] >= 1 and not second[f"{cache}_miss"] and not second[f"{cache}_bypass"]
                for cache in ("fxgraph", "autograd")
            )
            fine &= ok
            counts = {name.replace("_", " "): str(count) for name, count in second.items()}
            rows.append({"kernel": kernel, "step": step, **counts, "target": "met" if ok else "MISSED"})
    return rows, fine


Measure = Callable[[argparse.Namespace], tuple[list[Row], bool]]
MEASURES: dict[str, Measure] = {"compile": measure_compile, "calls": measure_calls, "caches": measure_caches}
TITLES = {
    "compile": "One graph with 32 attention calls, cold (targets: at most 1 ms a call, 3 % of the compilation)",
    "calls": "A call of the compiled model, tiny tensors (target: within the spread of Inductor against itself)",
    "caches": "The second process (targets: hits at least 1, misses 0, bypasses 0)",
}


def _child(
    args: argparse.Namespace, probe: str, kernel: str, environment: Mapping[str, str], *more: str
) -> dict[str, Any]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ATTNPASS_")}
    command = [sys.executable, str(CHILD), probe, "--kernel", kernel, "--device", args.device, *more]
    done = subprocess.run(command, env={**ours, **environment}, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    raise SystemExit(f"{probe} with {kernel} ended with status {done.returncode}:\n{done.stderr[-3000:]}")


def _write(args: argparse.Namespace, benchmark: str, kernel: str, found: Mapping[str, Any]) -> None:
    append(args.out, {"benchmark": benchmark, "kernel": kernel, **found, **facts(args.device)})


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.3f} ({found['low_quartile']:.3f} to {found['high_quartile']:.3f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=tuple(KERNELS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", type=_probes, default=PROBES, help="compile, calls, caches")
    parser.add_argument("--kernels", type=lambda text: text.split(","))
    parser.add_argument("--repeat", type=int, default=3, help="processes for each cold compilation")
    parser.add_argument("--seconds", type=float, default=20, help="how long to measure calls")
    parser.add_argument("--out", help="default: benchmarks/results/overhead_DEVICE.jsonl")
    args = parser.parse_args()
    args.kernels = args.kernels or KERNELS[args.device]
    args.out = args.out or str(RESULTS / f"overhead_{args.device}.jsonl")
    return args


def _probes(text: str) -> Sequence[str]:
    names = text.split(",")
    if wrong := [name for name in names if name not in PROBES]:
        raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(PROBES)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
