#!/usr/bin/env python3
"""The ground that ``auto`` has to hold: biases, masks from outside, padding, softcap, first calls, hand-written models.

    python benchmarks/ground.py --rows bias,masks --part 0/4 --out ground.jsonl
    python benchmarks/ground.py --device cpu --small --out /tmp/ground.jsonl       # to try it

A row is a model or a call, ``--rows`` names groups or rows. Its compilers, the forms that it is compared with
(``beside``) and its two ways (whole, and layer by layer with the mask as an input) are compiled one after another and
timed in turns (`attnpass.trials.clock`). Errors are relative, to the same in fp32; that of bf16 without a compiler is
the yardstick. Processes of several parts that share a file as ``BENCHMARK_LOCK`` compile side by side and measure one
at a time.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import attnpass
from attnpass.trials.clock import Timing, in_turns
from benchmarks.end_to_end import (
    INDUCTOR,
    PYTORCH_ONLY,
    check_libraries,
    compile_arguments,
    first_output,
    has_libraries,
    what_ran,
)
from benchmarks.environment import append, facts
from benchmarks.ground_calls import CALLS, Ground
from benchmarks.ground_first import FIRST_CALL, first_calls
from benchmarks.ground_models import MODELS
from benchmarks.records import RESULTS
from benchmarks.steps import relative_error
from benchmarks.subjects import Inputs
from benchmarks.timing import alone, peak_mib, preparing

ROWS = {**CALLS, **MODELS}
GROUPS = (*dict.fromkeys(row.group for row in ROWS.values()), FIRST_CALL)
WHOLE, LAYERS = "whole", "layers"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who compiles, and what: the whole model, its layers, or the form that the row is compared with."""

    compiler: str
    way: str = WHOLE


@dataclass(frozen=True, slots=True)
class Subject:
    """A module in bf16, what it is called with, and its step."""

    row: Ground
    model: nn.Module
    inputs: Inputs

    def step(self, call: Callable[..., Any]) -> list[Tensor]:
        """The output, and in training the gradients of all weights behind it."""
        with torch.set_grad_enabled(self.row.train):
            out = first_output(call(**self.inputs))
        if not self.row.train:
            return [out]
        weights = list(self.model.parameters())
        return [out.detach(), *torch.autograd.grad(out, weights, torch.full_like(out, 1e-3))]

    def result(self, call: Callable[..., Any]) -> list[Tensor]:
        """A step, and of its output the rows that are compared."""
        out, *grads = self.step(call)
        return [out[..., -self.row.last :, :], *grads]


def main() -> int:
    """One line for each row, way and compiler."""
    args = _arguments()
    torch._dynamo.config.recompile_limit = 64  # all compilers of a row share the code of the model
    number, _, parts = args.part.partition("/")
    wanted = [name for name, row in ROWS.items() if {name, row.group} & set(args.rows)]
    wanted += [FIRST_CALL] if FIRST_CALL in args.rows else []
    for name in wanted[int(number) :: int(parts)]:
        for record in _records(name, args):
            head = {"benchmark": "ground", "row": name, "small": args.small}
            append(args.out, {**head, **record, **facts(args.device)})
            print(name, record, flush=True)
        torch._dynamo.reset()
        gc.collect()
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return 0


def _records(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    compilers = args.compilers or [INDUCTOR, "auto" if has_libraries() else PYTORCH_ONLY]
    if name == FIRST_CALL:
        with alone():
            yield from first_calls(compilers, args.device, args.small)
        return
    row = ROWS[name]
    named = compilers if args.compilers else [*compilers, *row.kernels]
    ways = (WHOLE, LAYERS) if row.layers else (WHOLE,)
    try:
        yield from measured(row, [Candidate(each, way) for way in ways for each in named], args.device, args.small)
    except Exception as error:  # the model itself: its package is missing, or eager has no memory for it
        yield {"group": row.group, **_problem(error)}


def measured(row: Ground, candidates: Sequence[Candidate], device: str, small: bool) -> Iterator[dict[str, Any]]:
    """A record for each candidate and for the form beside; one with a ``problem`` where it did not compile or run."""
    torch.manual_seed(0)
    with preparing():
        subject = _subject(row, device, small)
        exact = _exact(subject)
        eager = _errors(subject.result(subject.model), exact)
        made = {each: _tried(subject, each, exact) for each in candidates}
        if row.beside:
            beside = _subject(row, device, small, form=row.beside)
            each = Candidate(INDUCTOR, row.beside)
            made[each] = _tried(Subject(row, beside.model, subject.inputs), each, None)
        del exact
        if device == "cuda":
            torch.cuda.empty_cache()  # for those beside us
    steps = {f"{each.compiler} {each.way}": step for each, (step, _) in made.items() if step}
    with alone():
        times = in_turns(steps, torch.device(device))
        memory = {name: peak_mib(step) for name, step in steps.items()} if device == "cuda" else {}
    for each, (_, record) in made.items():
        name = f"{each.compiler} {each.way}"
        head = {"group": row.group, "compiler": each.compiler, "way": each.way, "train": row.train}
        spent = _spent(times[name]) if name in times else {}
        yield {**head, **record, **spent, "memory_mib": memory.get(name), "eager_error": eager}


def _subject(row: Ground, device: str, small: bool, **more: Any) -> Subject:
    with torch.device(device):
        model, inputs = row.built(device, small, **more)
    return Subject(row, model.to(torch.bfloat16).train(row.train), inputs)


def _exact(subject: Subject) -> list[Tensor]:
    """What the same weights and inputs give in fp32."""
    model = copy.deepcopy(subject.model).float()
    inputs = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in subject.inputs.items()
    }
    return Subject(subject.row, model, inputs).result(model)


def _errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of the output and, in training, of all gradients together."""
    parts = [(found[:1], exact[:1]), (found[1:], exact[1:])]
    return [round(relative_error(ours, theirs), 6) for ours, theirs in parts if theirs]


def _tried(
    subject: Subject, candidate: Candidate, exact: list[Tensor] | None
) -> tuple[Callable[[], object] | None, dict[str, Any]]:
    own = Subject(subject.row, copy.deepcopy(subject.model), subject.inputs)
    try:
        check_libraries(candidate.compiler)
        attnpass.clear_reports()
        call = _compiled(own, candidate)
        start = time.perf_counter()
        got = own.result(call)
        if got[0].is_cuda:
            torch.cuda.synchronize()
        record: dict[str, Any] = {"ok": True, "compile_s": round(time.perf_counter() - start, 1), **what_ran()}
        return partial(own.step, call), record | ({"relative_error": _errors(got, exact)} if exact else {})
    except Exception as error:
        return None, _problem(error)


def _compiled(subject: Subject, candidate: Candidate) -> Callable[..., Any]:
    how = compile_arguments(candidate.compiler)
    if candidate.way != LAYERS:
        compiled: Callable[..., Any] = torch.compile(subject.model, **how)
        return compiled
    for layer in subject.model.get_submodule(subject.row.layers).children():
        layer.compile(**how)
    return subject.model


def _spent(timing: Timing) -> dict[str, float]:
    names = ("ms", "device_ms", "host_ms", "spread_ms")
    return {name: round(getattr(timing, name), 4) for name in names}


def _problem(error: Exception) -> dict[str, Any]:
    return {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--rows", type=names, default=list(GROUPS), help=f"of {', '.join((*GROUPS, *ROWS))}")
    parser.add_argument("--compilers", type=names, help="default: inductor, auto, and the kernels that a row names")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--part", default="0/1", help="I/N: the Ith of N parts of the rows, counted from 0")
    parser.add_argument("--out", help="default: benchmarks/results/ground_DEVICE.jsonl")
    args = parser.parse_args()
    if unknown := set(args.rows) - {*GROUPS, *ROWS}:
        parser.error(f"no row or group: {', '.join(sorted(unknown))}")
    args.out = args.out or str(RESULTS / f"ground_{args.device}.jsonl")
    return args


if __name__ == "__main__":
    sys.exit(main())
