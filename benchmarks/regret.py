#!/usr/bin/env python3
"""How much slower than the best exact kernel is the one that ``auto`` chooses? Judged by calls that no fit has seen.

    python benchmarks/regret.py                       # from results/costs_h100.jsonl, on any machine
    python benchmarks/regret.py --write               # and results/regret_h100.jsonl for the figure

``auto`` is asked as the pass asks it (`attnpass.select`), about the machine that measured; nothing runs. A run costs
what the slower of device and host takes; the host's time is that of the kernel's launches in a quiet process
(``host_ms`` of the table), since processes that compile beside a measurement disturb it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from attnpass.config import Config
from attnpass.costs import host_ms
from attnpass.kernels import registry
from attnpass.limits import Code, Rejection
from attnpass.machine import Machine
from attnpass.select import select
from benchmarks.fit import LEFT_OUT, measured
from benchmarks.records import RESULTS, Source
from benchmarks.shapes import SETS

LIBRARIES = {"flash-attn": "flash-attn", "flash-attn-4": "flash-attn-4", "tokenspeed-fa3": "flash-attn-3"}
CARRIED = ("date", "commit", "hardware", "torch", "triton", "flash-attn", "flash-attn-4", "tokenspeed-fa3")


def main() -> int:
    args = _arguments()
    lines = [line for line in measured(Source(args.gpu)) if line["set"] in args.sets]
    found = list(regrets(lines, args.pytorch_only))
    for one in sorted(found, key=lambda one: one["ratio"]):
        chosen, best = (f"{one[name]} {one[name + '_ms']:.3f}" for name in ("chosen", "best"))
        print(f"{one['ratio']:.3f}  {one['shape']:18} {one['step']:8} {chosen:24} {best}")
    print(summary([one["ratio"] for one in found]))
    if args.write:
        text = "".join(json.dumps(one) + "\n" for one in found)
        (RESULTS / f"regret_{args.gpu}.jsonl").write_text(text, encoding="utf-8")
    return 0


def regrets(lines: list[dict[str, Any]], pytorch_only: bool = False) -> Iterator[dict[str, Any]]:
    """For each call and step: what ``auto`` takes, what would have been best, and the ratio of their times."""
    calls: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        ours = line["kernel"].startswith(("native", "flex")) or not pytorch_only
        if line["kernel"] not in LEFT_OUT and ours:
            calls[line["set"], line["shape"], line["step"]].append(line)
    for (which, name, step), some in calls.items():
        machine = _machine(some[0], pytorch_only)
        call = SETS[which][name].call(step == "train", torch.device("cuda", 0))
        times = {one["kernel"]: _ms(one, machine) for one in some if "ms" in one}
        chosen = select(call, registry(), machine, Config(), _failed(some)).kernel
        best = min(times, key=lambda kernel: times[kernel])
        if chosen not in times:
            raise SystemExit(f"{name}, {step}: auto chose {chosen}, which was not measured")
        yield {
            "benchmark": "regret",
            **{key: some[0][key] for key in ("shape", "sizes", "mask", "step")},
            "chosen": chosen,
            "best": best,
            "chosen_ms": times[chosen],
            "best_ms": times[best],
            "ratio": round(times[chosen] / times[best], 4),
            "tuned": False,
            "pytorch_only": pytorch_only,
            **{key: some[0][key] for key in CARRIED if key in some[0]},
        }


def _failed(lines: list[dict[str, Any]]) -> dict[str, list[Rejection]]:
    """What the probe would have said of kernels that raised, since their build lacks something."""
    problems = {line["kernel"]: line["problem"] for line in lines if "problem" in line}
    return {name: [Rejection(Code.UNPROVED, "trial", text, "a result")] for name, text in problems.items()}


def summary(ratios: list[float]) -> str:
    """Share within 10 % and the geometric mean."""
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    within = {limit: sum(ratio <= 1 + limit for ratio in ratios) / len(ratios) for limit in (0.03, 0.05, 0.10)}
    shares = ", ".join(f"{share:.0%} within {limit:.0%}" for limit, share in within.items())
    return f"{len(ratios)} calls: {shares}; geometric mean {mean - 1:.1%} above the best"


def _ms(line: dict[str, Any], machine: Machine) -> float:
    return max(float(line["gpu_ms"]), host_ms(line["kernel"], line["step"], machine))


def _machine(line: dict[str, Any], pytorch_only: bool) -> Machine:
    """The machine that measured, with the libraries that it had."""
    versions = {key: line[package] for package, key in LIBRARIES.items() if package in line and not pytorch_only}
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
