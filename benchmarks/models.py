#!/usr/bin/env python3
"""Are unmodified models right with attnpass? Each kernel, mode and step against fp32, measured in PyTorch's own error.

    python benchmarks/models.py --jobs 12 --budget-seconds 500

The reference is the same model in fp32 (fp64 for fp32 models), eager, composite attention, no TF32. The yardstick is
the error of PyTorch itself against that reference: the larger of the plain eager model's in its own dtype and of plain
Inductor's (the lines hold both ratios). A case fails if its error is more than twice the yardstick, if an attention
call that eager makes is missing from the reports, or if ``reduce-overhead`` does not replay CUDA graphs. Approximate
kernels are held to what they declare instead, call by call on the model's own data. Times are only comparable with
``--jobs 1``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.case import DTYPES, DYNAMIC, GRAPHS, Group, run_group
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.steps import FORWARD, TRAIN, BaselineError
from benchmarks.zoo.models import MODELS

CUDA_KERNELS = ("auto", "native_cudnn", "flex", "native_flash", "native_efficient", "native_math")
CPU_KERNELS = ("auto", "flex", "native_flash", "native_math")
MODES = ("default", GRAPHS, DYNAMIC)
MARK = "RECORD "
DEVICE_LOST = 3


def main() -> int:
    """Run the cases; the exit status is 1 if one failed."""
    args = _arguments()
    if args.group:
        return _work(Group.from_json(args.group))
    with tempfile.NamedTemporaryFile() as lock:
        run = Run(deque(_groups(args, lock.name)), args.out, args.jobs, time.monotonic() + args.budget_seconds)
        cases = sum(len(group.wishes) for group in run.waiting)
        start = time.monotonic()
        threads = [threading.Thread(target=run.work) for _ in range(args.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return run.summary(cases, time.monotonic() - start)


@dataclass(slots=True)
class Run:
    """The groups that wait, and what became of the others. Each group is a process of its own."""

    waiting: deque[Group]
    out: str
    jobs: int
    deadline: float
    done: list[dict[str, Any]] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def work(self) -> None:
        while True:
            with self.lock:
                if not self.waiting:
                    return
                group = self.waiting.popleft()
            if time.monotonic() >= self.deadline:
                self._give_up(group.name(wish) for wish in group.wishes)
                continue
            left = self._run(group)
            if left.wishes:
                with self.lock:
                    self.waiting.appendleft(left)

    def _run(self, group: Group) -> Group:
        """Run one process; gives back what it left undone because it died."""
        seen: list[str] = []
        with tempfile.TemporaryFile("w+") as errors:
            command = [sys.executable, __file__, "--group", group.to_json()]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self._environment()
            )
            timer = threading.Timer(max(self.deadline - time.monotonic(), 0.1), process.kill)
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    record = json.loads(line.removeprefix(MARK))
                    seen.append(record["kernel"])
                    self._keep(record, group)
            status = process.wait()
            timer.cancel()
            errors.seek(0)
            said = errors.read()
        left = [wish for wish in group.wishes if wish not in seen]
        if time.monotonic() >= self.deadline:
            self._give_up(group.name(wish) for wish in left)
            return replace(group, wishes=())
        if status == DEVICE_LOST and not seen and not group.math_baseline:
            return replace(group, math_baseline=True)
        if left and (status != DEVICE_LOST or not seen):
            self._keep(_crash(group, left.pop(0), status, said), group)
        return replace(group, wishes=tuple(left))

    def _environment(self) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        return {"TORCHINDUCTOR_COMPILE_THREADS": threads, "OMP_NUM_THREADS": threads, **os.environ}

    def _keep(self, record: dict[str, Any], group: Group) -> None:
        with self.lock:
            self.done.append(record)
            append(self.out, {"benchmark": "models", **record, "jobs": self.jobs, **facts(group.device)})
            print(_line(record), flush=True)

    def _give_up(self, names: Iterable[str]) -> None:
        with self.lock:
            self.not_run += names

    def summary(self, cases: int, seconds: float) -> int:
        failed = [r for r in self.done if not r["ok"] and "skipped" not in r]
        skipped = [r for r in self.done if "skipped" in r]
        passed = len(self.done) - len(failed) - len(skipped)
        beyond = [_name(r) for r in self.done if r["ok"] and r["beyond_eager"]]
        print(
            f"\n{cases} cases: {passed} passed, {len(failed)} failed, {len(skipped)} skipped, "
            f"{len(self.not_run)} not run, {seconds:.0f} s"
        )
        for title, lines in (
            ("failed", [f"{_name(r)}: {'; '.join(r['problems'])}" for r in failed]),
            ("more than twice eager's error, as plain Inductor's is", beyond),
            ("skipped", sorted({f"{r['model']}: {r['skipped']}" for r in skipped})),
            ("not run, the budget was over", self.not_run),
        ):
            if lines:
                print(f"{title}:", *lines, sep="\n  ")
        return 1 if failed else 0


def _work(group: Group) -> int:
    """The process of one group."""
    try:
        for record in run_group(group):
            print(MARK + json.dumps(record), flush=True)
    except ModuleNotFoundError as missing:
        for wish in group.wishes:
            record = {"model": group.model, "step": group.step, "mode": group.mode, "kernel": wish, "ok": False}
            print(MARK + json.dumps({**record, "problems": [], "skipped": str(missing)}), flush=True)
    except (torch.AcceleratorError, BaselineError):
        sys.stdout.flush()
        os._exit(DEVICE_LOST)  # taking a lost device down in good order may hang or abort
    return 0


def _groups(args: argparse.Namespace, lock: str) -> list[Group]:
    """Most important first: what a later group adds, an earlier one does not hold."""
    return [
        Group(model, step, mode, tuple(args.kernels), args.device, args.dtype, lock)
        for mode, step, model in product(args.modes, args.steps, args.models)
    ]


def _crash(group: Group, wish: str, status: int, said: str) -> dict[str, Any]:
    last = [line for line in said.splitlines() if line.strip()][-3:]
    problem = f"the process ended with status {status}: {' | '.join(last)[:400]}"
    identity = {"model": group.model, "step": group.step, "mode": group.mode, "kernel": wish, "dtype": group.dtype}
    return {**identity, "ok": False, "problems": [problem]}


def _name(record: dict[str, Any]) -> str:
    return f"{record['model']:15} {record['step']:7} {record['mode']:15} {record['kernel']:16}"


def _line(record: dict[str, Any]) -> str:
    verdict = "skipped" if "skipped" in record else "ok" if record["ok"] else "FAILED"
    if "calls" not in record:
        return f"{_name(record)} {verdict:7} {'; '.join(record['problems'])[:120]}"
    calls, grad = record["calls"], record.get("grad")
    ratios = f"out {record['out']['ratio']:.2f}x" + (f" grad {grad['ratio']:.2f}x" if grad else "")
    kernels = ", ".join(f"{count} {name}" for name, count in calls["kernels"].items())
    replays = f", {record['replays_per_call']:.0f} replays" if record["replays_per_call"] else ""
    inductor = record.get("inductor")
    beside = f" (Inductor {inductor['ms']:.2f})" if inductor else ""
    return (
        f"{_name(record)} {verdict:7} {ratios:22} {calls['found']}/{calls['eager']} calls: {kernels}; "
        f"{record['ms']:.2f} ms{beside}{replays}, compiled in {record['compile_s']:.0f} s"
    )


def _arguments() -> argparse.Namespace:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--models", type=_names(MODELS), default=tuple(MODELS))
    parser.add_argument("--kernels", type=lambda text: text.split(","))
    parser.add_argument("--modes", type=_names(MODES))
    parser.add_argument("--steps", type=_names((FORWARD, TRAIN)), default=(FORWARD, TRAIN))
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--budget-seconds", type=float, default=500)
    parser.add_argument("--out", help="default: benchmarks/results/models_DEVICE.jsonl")
    parser.add_argument("--group", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.kernels = args.kernels or (CUDA_KERNELS if args.device == "cuda" else CPU_KERNELS)
    args.modes = args.modes or (MODES[:2] if args.device == "cuda" else MODES[:1])
    args.out = args.out or str(RESULTS / f"models_{args.device}.jsonl")
    return args


def _names(legal: Iterable[str]) -> Any:
    def parse(text: str) -> Sequence[str]:
        names = text.split(",")
        if wrong := [name for name in names if name not in set(legal)]:
            raise argparse.ArgumentTypeError(f"{', '.join(wrong)}: choose from {', '.join(legal)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
