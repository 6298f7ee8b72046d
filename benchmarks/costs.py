#!/usr/bin/env python3
"""What each kernel costs for named calls: the data that ``auto``'s table is fitted to, and the curves of the docs.

    python benchmarks/costs.py --sets sweep,fit --out costs.jsonl
    python benchmarks/costs.py --sets held_out --part 0/4         # a quarter of the calls

Every kernel computes the call alone, as the pass emits it, on operands stored BSHD and viewed as BHSD; all kernels of a
call are measured in turns (`attnpass.trials.clock`). Processes of several parts that share a file as
``BENCHMARK_LOCK`` compile side by side and measure one at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from attnpass.ir.call import AttentionCall
from attnpass.kernels.registry import libraries, registry
from attnpass.machine.machine import Machine
from attnpass.trials.clock import Timing, in_turns
from attnpass.trials.example import Example, Step, UnfitError, undisturbed
from attnpass.trials.reference import difference, reference_attention
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.sets import SETS
from benchmarks.shapes import Shape
from benchmarks.timing import alone, preparing

DEFAULT = "default"  # F.scaled_dot_product_attention as it comes
KERNELS = (
    DEFAULT,
    "native_cudnn",
    "native_flash",
    "native_efficient",
    "flex",
    "flash2",
    "flash3",
    "flash4",
    "flash_decoding",
)
FLEX_PAYS = ("bool", "padding", "window", "bias")
AT_ONCE = 8  # calls that are ready before the first is measured
HELD_AT_ONCE = 1 << 31  # scores of the fp32 reference, in elements


def main() -> int:
    """One line for each call, step and kernel."""
    args = _arguments()
    device = torch.device(args.device)
    machine = Machine.look(
        device, libraries(), {registry()[name].limits.library for name in args.kernels if name != DEFAULT}
    )
    named = [call for call in calls_of(args.sets, args.steps) if call[1].startswith(args.names)]
    calls = part_of(named, *args.part)
    for start in range(0, len(calls), AT_ONCE):
        with preparing():
            ready = [Prepared(call, args.kernels, machine, device) for call in calls[start : start + AT_ONCE]]
        for one in ready:
            for kernel, found in one.measured(one.which in args.errors).items():
                append(args.out, {**one.head, "kernel": kernel, **found, **facts(device.type)})
                print(f"{one.name:18} {one.step:8} {kernel:18} {found}", flush=True)
    return 0


def calls_of(sets: list[str], steps: list[str]) -> Iterator[tuple[str, str, str]]:
    """Set, name and step of each call; nobody trains one query."""
    for which in sets:
        for name, shape in SETS[which].items():
            yield from ((which, name, step) for step in steps if step == "forward" or shape.sizes[3] > 1)


def part_of(calls: list[tuple[str, str, str]], number: int, parts: int) -> list[tuple[str, str, str]]:
    """Those that one of several processes measures: alike ones together, since libraries compile for each kind."""

    def kind(call: tuple[str, str, str]) -> Any:
        shape = SETS[call[0]][call[1]]
        return call[2], shape.sizes[5], shape.mask, shape.dtype, shape.sizes[1] // shape.sizes[2]

    calls = sorted(calls, key=kind)
    return calls[number * len(calls) // parts : (number + 1) * len(calls) // parts]


class Prepared:
    """A call with all that is measured on it compiled and warm.

    Attributes:
        which, name, step: the call.
        head: what each of its result lines begins with.
    """

    def __init__(self, asked: tuple[str, str, str], kernels: list[str], machine: Machine, device: torch.device) -> None:
        self.which, self.name, self.step = which, name, step = asked
        shape = SETS[which][name]
        self.head = {"benchmark": "costs", "set": which, "shape": name, "step": step, **shape.facts}
        self.call = shape.call(step == "train", device)
        with undisturbed(device, self.call.needs_grad):
            self._example = Example(self.call)
            made = {kernel: _made(kernel, self._example, machine, shape) for kernel in kernels}
        self._steps: dict[str, Step] = {kernel: one for kernel, one in made.items() if not isinstance(one, dict)}
        self._failed = {kernel: one for kernel, one in made.items() if isinstance(one, dict)}

    def measured(self, errors: bool = False) -> dict[str, dict[str, Any]]:
        """For each kernel its times, or why there are none."""
        found: dict[str, dict[str, Any]] = dict(self._failed)
        device = self.call.device
        with undisturbed(device, self.call.needs_grad):
            with alone():
                timings = in_turns(self._steps, device)
            found |= {kernel: {"ok": True, **_said(timing)} for kernel, timing in timings.items()}
            for kernel in self._steps if errors and self.step == "forward" else ():
                found[kernel]["relative_error"] = _error(self._example, self._steps[kernel])
        return found


def _made(name: str, example: Example, machine: Machine, shape: Shape) -> Step | dict[str, Any]:
    """A run of the kernel, or why there is none."""
    try:
        return _step(name, example, machine, shape)
    except (UnfitError, RuntimeError) as why:
        return _failed(why)


def _step(name: str, example: Example, machine: Machine, shape: Shape) -> Step:
    call = example.call
    if name == DEFAULT:
        if call.softcap is not None or "window" in shape.mask:
            raise UnfitError("SDPA has neither windows nor softcap")
        return _default(example, call)
    if name == "flex" and call.softcap is None and not shape.mask.startswith(FLEX_PAYS) and shape.sizes[3] != 4096:
        raise UnfitError("left out: it is compiled for seconds, and never the fastest here")
    if name == "native_efficient" and shape.sizes[3] >= 8192:
        raise UnfitError("left out: four times the time of the fastest at such lengths")
    step = example.step(registry()[name], machine)
    step()
    return step


def _default(example: Example, call: AttentionCall) -> Step:
    q, k, v, mask, _sinks = example.operands()
    assert q is not None and k is not None and v is not None
    causal = call.is_causal

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=call.is_gqa)

    if not call.needs_grad:
        return forward
    weight = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), (q, k, v), weight)


def _failed(why: Exception) -> dict[str, Any]:
    text = " ".join(str(why).split())[:300]
    if isinstance(why, torch.OutOfMemoryError):
        return {"ok": True, "oom": True}
    return {"ok": True, "refused": [text]} if isinstance(why, UnfitError) else {"ok": False, "problem": text}


def _said(timing: Timing) -> dict[str, float]:
    numbers = {"gpu_ms": timing.device_ms, "host_ms": timing.host_ms, "ms": timing.ms, "spread_ms": timing.spread_ms}
    return {name: round(value, 5) for name, value in numbers.items()}


def _error(example: Example, step: Step) -> float | None:
    """Norm of the error over the norm of the output in fp32, of the last rows where the whole would not fit."""
    call = example.call
    if call.mask.tensor is not None or call.softcap is not None or not {str(call.mask)} <= {"none", "causal"}:
        return None
    out = step()
    q, k, v, *_ = example.operands()
    assert isinstance(out, torch.Tensor) and q is not None and k is not None and v is not None
    rows = min(q.shape[2], 1024)
    seen = call.mask.seen(q.shape[2], k.shape[2], q.device)[-rows:] if call.is_causal else None
    with alone():
        exact = reference_attention(q[:, :, -rows:], k, v, enable_gqa=call.is_gqa, seen=seen)
        return round(difference(out[:, :, -rows:], exact).relative, 6)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["models"], help=", ".join(SETS))
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=list(KERNELS))
    parser.add_argument("--steps", type=lambda text: text.split(","), default=["forward", "train"])
    parser.add_argument("--names", type=lambda text: tuple(text.split(",")), default="", help="how they begin")
    parser.add_argument("--part", type=_part, default=(0, 1), help="I/N: the Ith of N parts, counted from 0")
    parser.add_argument("--errors", type=lambda text: text.split(","), default=[], help="sets compared with fp32 too")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=str(RESULTS / "costs_cuda.jsonl"))
    return parser.parse_args()


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    return int(number), int(parts)


if __name__ == "__main__":
    sys.exit(main())
