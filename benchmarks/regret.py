#!/usr/bin/env python3
"""How much slower than the best exact kernel is the one that ``auto`` chooses? Judged by calls that no fit has seen.

    python benchmarks/regret.py                       # from results/costs_h100.jsonl, on any machine
    python benchmarks/regret.py --write               # and results/regret_h100.jsonl for the figure
    python benchmarks/regret.py --gpu h200 --sets drawn     # calls drawn by lot

``auto`` is asked as the pass asks it (`attnpass.select`), about the machine that measured; nothing runs. A run costs
what the slower of device and host takes; the host's time is that of the kernel's launches in a quiet process
(``host_ms`` of the table), since processes that compile beside a measurement disturb it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from attnpass.ir.limits import Code, Rejection
from attnpass.kernels.registry import registry
from attnpass.machine.machine import Machine
from attnpass.select.costs import Features, features, host_ms
from attnpass.select.evidence import Learnt
from attnpass.select.select import select
from attnpass.settings.config import Config
from benchmarks.fit import LEFT_OUT, measured
from benchmarks.records import RESULTS, Source, newest
from benchmarks.sets import SETS
from benchmarks.summaries import LIMITS, mean, share

TABLE, DEFAULT, CLOCK, UNKNOWN = "table", "default", "clock", "unknown GPU"
LIBRARIES = {"flash-attn": "flash-attn", "flash-attn-4": "flash-attn-4", "tokenspeed-fa3": "flash-attn-3"}
CARRIED = ("date", "commit", "hardware", "torch", "triton", "flash-attn", "flash-attn-4", "tokenspeed-fa3")


def main() -> int:
    args = _arguments()
    lines = [line for line in measured(Source(args.gpu)) if line["set"] in args.sets]
    tuned = newest((line for line in Source(args.gpu).read("tuning") if line["set"] in args.sets), "shape", "step")
    judged = [] if args.pytorch_only else list(tuned.items())
    choices = {
        TABLE: None,
        CLOCK: {key: line["chosen"] for key, line in judged if line["timed"]},
        DEFAULT: {key: line["default"] for key, line in judged if "default" in line},
        UNKNOWN: {key: line["unknown"] for key, line in judged if "unknown" in line},
    }
    found = [one for by, chosen in choices.items() for one in regrets(lines, args.pytorch_only, by, chosen)]
    for one in sorted(found, key=lambda one: (one["by"], one["ratio"])):
        chosen, best = (f"{one[name]} {one[name + '_ms']:.3f}" for name in ("chosen", "best"))
        print(f"{one['ratio']:.3f}  {one['by']:11} {one['shape']:18} {one['step']:8} {chosen:24} {best}")
    for by in choices:
        ratios = [one["ratio"] for one in found if one["by"] == by]
        if ratios:
            print(f"{by}: {summary(ratios)}, at most {max(ratios):.2f}")
    if args.write:
        text = "".join(json.dumps(one) + "\n" for one in found)
        (RESULTS / f"regret_{args.gpu}.jsonl").write_text(text, encoding="utf-8")
    return 0


def regrets(
    lines: list[dict[str, Any]],
    pytorch_only: bool = False,
    by: str = TABLE,
    timed: Mapping[Any, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """For each call and step: what ``auto`` takes, what would have been best, and the ratio of their times.

    Args:
        lines: those of `benchmarks.costs`.
        pytorch_only: as without any kernel library.
        by: who chose: `TABLE`, `DEFAULT`, `CLOCK` or `UNKNOWN`.
        timed: what the clock chose, by shape and step; then only those calls are judged.
    """
    calls: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        ours = line["kernel"].startswith(("native", "flex", "flash_decoding")) or not pytorch_only
        if line["kernel"] not in LEFT_OUT and ours:
            calls[line["set"], line["shape"], line["step"]].append(line)
    for (which, name, step), some in calls.items():
        if timed is not None and (name, step) not in timed:
            continue
        machine = _machine(some[0], pytorch_only)
        call = SETS[which][name].call(step == "train", torch.device("cuda", 0))
        numbers = features(call)
        assert numbers is not None
        times = {one["kernel"]: _ms(one, numbers, machine) for one in some if "ms" in one}
        chosen = (
            timed[name, step] if timed else select(call, registry(), machine, Config(), Learnt(_failed(some))).kernel
        )
        best = min(times, key=lambda kernel: times[kernel], default="")
        if chosen not in times:  # a window that is no tensor here, which no kernel of PyTorch's but flex takes
            print(f"not judged: {name}, {step}: auto chose {chosen}, which was not measured")
            continue
        yield {
            "benchmark": "regret",
            **{key: some[0][key] for key in ("shape", "sizes", "mask", "step")},
            "chosen": chosen,
            "best": best,
            "chosen_ms": times[chosen],
            "best_ms": times[best],
            "ratio": round(times[chosen] / times[best], 4),
            "by": by,
            "pytorch_only": pytorch_only,
            **{key: some[0][key] for key in CARRIED if key in some[0]},
        }


def _failed(lines: list[dict[str, Any]]) -> dict[str, list[Rejection]]:
    """What the probe would have said of kernels that raised, since their build lacks something."""
    problems = {line["kernel"]: line["problem"] for line in lines if "problem" in line}
    return {name: [Rejection(Code.UNPROVED, "trial", text, "a result")] for name, text in problems.items()}


def summary(ratios: list[float]) -> str:
    """Shares near the best, and the geometric mean."""
    shares = ", ".join(f"{share(ratios, limit):.0%} within {limit:.0%}" for limit in LIMITS)
    return f"{len(ratios)} calls: {shares}; geometric mean {mean(ratios) - 1:.1%} above the best"


def _ms(line: dict[str, Any], call: Features, machine: Machine) -> float:
    return max(float(line["gpu_ms"]), host_ms(line["kernel"], call, machine))


def _machine(line: dict[str, Any], pytorch_only: bool) -> Machine:
    """The machine that measured, with the libraries that it had."""
    packages = {"triton": "triton"} | ({} if pytorch_only else LIBRARIES)
    versions = {key: line[package] for package, key in packages.items() if package in line}
    gpu = line["hardware"]
    return Machine(
        "cuda",
        name=gpu["gpu"],
        capability=gpu["capability"],
        versions={"torch": line["torch"], **versions},
        builds={"flash-attn-3": {"backward": False}, "flash-attn": {}},
        cudnn=gpu["cudnn"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["held_out"])
    parser.add_argument("--pytorch-only", action="store_true", help="as without any kernel library")
    parser.add_argument("--write", action="store_true", help="write the results for the figure")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
