"""One group of cases: a model, a step and a mode, with each kernel in turn. Reference and yardstick are shared."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import attnpass
from attnpass.ir.decision import Decision
from benchmarks.approximate import declared, with_each_call
from benchmarks.steps import (
    FORWARD,
    TIMED_RUNS,
    TRAIN,
    BaselineError,
    GraphWatch,
    Result,
    backend,
    counted_sdpa,
    live_step,
    median_ms,
    relative_error,
    run_step,
)
from benchmarks.zoo.models import Subject, build

RUNS = 3  # the first warms a CUDA graph up, the second records it, the third replays it
LARGEST_RATIO = 2.0
DYNAMIC, GRAPHS = "dynamic", "reduce-overhead"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that share a reference."""

    model: str
    step: str
    mode: str
    wishes: tuple[str, ...]
    device: str
    dtype: str
    lock: str = ""
    math_baseline: bool = False  # PyTorch's own choice crashed the device in this group: eager uses composite attention

    @classmethod
    def from_json(cls, text: str) -> Group:
        values = json.loads(text)
        return cls(**{**values, "wishes": tuple(values["wishes"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def name(self, wish: str) -> str:
        return f"{self.model} {self.step} {self.mode} {wish}"


@dataclass(slots=True)
class Compiled:
    """What running one compiled model gave."""

    errors: dict[str, float]
    compile_s: float
    ms: float
    graphs: int
    counters: dict[str, int]
    replays_per_call: float
    captures_while_timed: int


@dataclass(slots=True)
class Judge:
    """The exact result and how far plain eager is from it."""

    exact: Result
    yardstick: dict[str, float] = field(default_factory=dict)

    def errors(self, result: Result) -> dict[str, float]:
        found = {"out": relative_error([result.out], [self.exact.out])}
        if self.exact.grads:
            found["grad"] = relative_error(result.grads, self.exact.grads)
        return found


def run_group(group: Group) -> Iterator[dict[str, Any]]:
    """One record a case."""
    exact_math()
    device, dtype = torch.device(group.device), DTYPES[group.dtype]
    subject = build(group.model, device, dtype, group.step == TRAIN)
    judge = _reference(subject, dtype, group.step)
    base = _eager(group, subject, judge)
    plain = _plain_inductor(group, subject, judge, base)
    eager_calls = sum(base["eager_calls"].values())
    for wish in group.wishes:
        identity = {"model": group.model, "step": group.step, "mode": group.mode, "kernel": wish, "dtype": group.dtype}
        os.environ["ATTNPASS_KERNEL"] = wish
        attnpass.clear_reports()
        try:
            ours = compiled_run(group, subject, judge, backend())
            record = _record(group, judge, ours, plain, eager_calls)
            yield {**identity, **base, **with_each_call(subject, group.step, record)}
        except Exception as error:
            yield {**identity, **base, "ok": False, "problems": [_one_line(error)]}
            check_device(device)


def check_device(device: torch.device) -> None:
    """Raise if an earlier error has lost the device: the other cases need a fresh process, and are not to blame."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _eager(group: Group, subject: Subject, judge: Judge) -> dict[str, Any]:
    """Fill in the yardstick; composite attention where PyTorch's own choice crashed or gave NaN before."""
    with counted_sdpa() as calls, sdpa_kernel(SDPBackend.MATH) if group.math_baseline else nullcontext():
        judge.yardstick = judge.errors(run_step(subject, subject.model, group.step))
    base = {"eager_calls": dict(Counter(calls)), "eager_attention": "math" if group.math_baseline else "default"}
    if not all(map(math.isfinite, judge.yardstick.values())):
        raise BaselineError("PyTorch's own attention gives no finite result here")
    return base


def _plain_inductor(group: Group, subject: Subject, judge: Judge, base: dict[str, Any]) -> Compiled | None:
    """What attnpass is compared with; a failure of Inductor's own goes into ``base``."""
    device = torch.device(group.device)
    if group.math_baseline:
        base["inductor_error"] = "not run: PyTorch's own choice crashed the device"
        return None
    try:
        plain = compiled_run(group, subject, judge, "inductor")
        check_device(device)
    except Exception as error:
        base["inductor_error"] = _one_line(error)
        check_device(device)
        return None
    return plain


def exact_math() -> None:
    """No TF32 anywhere."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def _reference(subject: Subject, dtype: torch.dtype, step: str) -> Judge:
    """The same weights and inputs, in fp32 (fp64 for fp32) and eager, with composite attention."""
    exact = subject.in_dtype(torch.float64 if dtype == torch.float32 else torch.float32)
    with sdpa_kernel(SDPBackend.MATH):
        return Judge(run_step(exact, exact.model, step))


def compiled_run(group: Group, subject: Subject, judge: Judge, with_backend: str | Callable[..., Any]) -> Compiled:
    """Compile, run `RUNS` times, keep the worst error, then measure."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mode = group.mode if group.mode == GRAPHS else None
    call = torch.compile(subject.model, backend=with_backend, mode=mode, dynamic=group.mode == DYNAMIC or None)
    start = time.perf_counter()
    results = [run_step(subject, call, group.step)]
    compile_s = time.perf_counter() - start
    results += [run_step(subject, call, group.step) for _ in range(RUNS - 1)]
    errors = [judge.errors(result) for result in results]
    with GraphWatch() as watch:
        ms = median_ms(lambda: live_step(subject, call, group.step), torch.device(group.device), group.lock)
    counters = torch._dynamo.utils.counters
    names = ("cudagraph_skips", "fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
    return Compiled(
        errors={key: max(e[key] for e in errors) for key in errors[0]},
        compile_s=round(compile_s, 2),
        ms=round(ms, 4),
        graphs=counters["stats"]["unique_graphs"],
        counters={name: counters["inductor"][name] for name in names},
        replays_per_call=watch.replays / (TIMED_RUNS + 1),
        captures_while_timed=watch.captures,
    )


def _record(group: Group, judge: Judge, ours: Compiled, plain: Compiled | None, eager_calls: int) -> dict[str, Any]:
    decisions = [decision for report in attnpass.reports() for decision in report.decisions]
    record: dict[str, Any] = {"calls": _calls(decisions, eager_calls)}
    problems = [report.error for report in attnpass.reports() if report.error]
    record["beyond_eager"] = False
    for what, error in ours.errors.items():
        eager, inductor = judge.yardstick[what], plain.errors[what] if plain else None
        record[what] = {"error": error, "eager": eager, "inductor": inductor, "ratio": error / eager}
        record["beyond_eager"] |= not error <= LARGEST_RATIO * eager
        finite = [value for value in (eager, inductor) if value is not None and math.isfinite(value)]
        allowed = max(LARGEST_RATIO * max(finite, default=0.0), declared(decisions))
        if not (math.isfinite(error) and error <= allowed):
            problems.append(f"{what}: error {error:.2e}, eager's is {eager:.2e}, plain Inductor's {inductor or 0:.2e}")
    if len(decisions) != eager_calls:
        problems.append(f"{len(decisions)} calls in the reports, eager makes {eager_calls}")
    if group.mode == GRAPHS and group.device == "cuda":
        problems += _graph_problems(group.step, ours, plain)
    record |= {"graphs": ours.graphs, "compile_s": ours.compile_s, "ms": ours.ms, "counters": ours.counters}
    record |= {"replays_per_call": ours.replays_per_call, "captures_while_timed": ours.captures_while_timed}
    if plain:
        record["inductor"] = {key: value for key, value in asdict(plain).items() if key != "errors"}
    return {"ok": not problems, "problems": problems, **record}


def _graph_problems(step: str, ours: Compiled, plain: Compiled | None) -> Iterator[str]:
    """Were CUDA graphs really used? Each timed call replays one at least, two in training, and records none."""
    wanted = 1 if step == FORWARD else 2
    if ours.counters["cudagraph_skips"]:
        yield f"CUDA graphs skipped {ours.counters['cudagraph_skips']} times"
    if ours.replays_per_call < wanted:
        yield f"{ours.replays_per_call:.2f} CUDA graphs replayed a call, wanted {wanted}"
    if ours.captures_while_timed > (plain.captures_while_timed if plain else 0):
        yield f"{ours.captures_while_timed} CUDA graphs recorded again while timed"


def _calls(decisions: list[Decision], eager_calls: int) -> dict[str, Any]:
    refused: Counter[str] = Counter()
    for decision in decisions:
        if decision.note and not decision.rewritten:
            refused[decision.note] += 1
        refused.update(f"{trial.kernel}: {reason}" for trial in decision.refused for reason in trial.rejections)
    return {
        "eager": eager_calls,
        "found": len(decisions),
        "rewritten": sum(decision.rewritten for decision in decisions),
        "kernels": dict(Counter(decision.kernel for decision in decisions)),
        "refused": dict(refused),
        "texts": dict(Counter(decision.call.text() for decision in decisions)),
    }


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
