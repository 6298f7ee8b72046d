#!/usr/bin/env python3
"""Diffusers' models, whole and by ``compile_repeated_blocks``: attnpass beside plain Inductor, timed in turns.

    python benchmarks/diffusion.py --models flux,wan --compilers inductor,auto,flash3_fp8
    PYTHONPATH=. python benchmarks/diffusion.py --compilers inductor,auto_pytorch_only     # without kernel libraries

Every compiler of a row has a copy of the model; they are compiled one after another, and measured in turns
(`attnpass.trials.clock`). The error is relative, to the same model in bf16 without a compiler: what Inductor itself
has there is the yardstick.
"""

from __future__ import annotations

import argparse
import copy
import gc
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import attnpass
from attnpass.trials.clock import in_turns
from benchmarks.diffusion_models import MODELS, Diffusion
from benchmarks.end_to_end import (
    INDUCTOR,
    check_libraries,
    compile_arguments,
    first_output,
    relative,
    what_ran,
)
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.timing import alone, preparing

WHOLE, BLOCKS = "whole", "blocks"


def main() -> int:
    """One line for each model, way and compiler."""
    args = _arguments()
    torch._dynamo.config.recompile_limit = 64  # all compilers of a row, and all shapes, share the code of the model
    number, _, parts = args.part.partition("/")
    rows = list(product(args.models, args.ways))[int(number) :: int(parts)]
    for name, way in rows:
        for record in measured(MODELS[name], way, args.compilers, args.device):
            append(args.out, {"benchmark": "diffusion", "model": name, "way": way, **record, **facts(args.device)})
            print(name, way, record, flush=True)
        gc.collect()
    return 0


@torch.no_grad()
def measured(case: Diffusion, way: str, compilers: list[str], device: str) -> Iterator[dict[str, Any]]:
    """A record for each compiler; one with a ``problem`` where it could not be compiled or run."""
    torch.manual_seed(0)
    with preparing():
        with torch.device(device):
            model = case.make().to(torch.bfloat16).eval()
        inputs = case.inputs(device)
        wanted = first_output(getattr(model, case.method)(**inputs))
        if way == BLOCKS and not getattr(model, "_repeated_blocks", None):
            return
        made = {name: _tried(copy.deepcopy(model), case, way, name, inputs, wanted) for name in compilers}
    with alone():
        times = in_turns({name: step for name, (step, _) in made.items() if step}, torch.device(device))
    for compiler, (_, record) in made.items():
        timing = times.get(compiler)
        times_of = {"ms": timing.ms, "spread_ms": timing.spread_ms, "host_ms": timing.host_ms} if timing else {}
        spent = {name: round(value, 3) for name, value in times_of.items()}
        yield {"compiler": compiler, **record, **spent}


def _tried(
    model: nn.Module, case: Diffusion, way: str, compiler: str, inputs: dict[str, Any], wanted: Tensor
) -> tuple[Callable[[], object] | None, dict[str, Any]]:
    try:
        return _compiled(model, case, way, compiler, inputs, wanted)
    except Exception as error:
        return None, {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _compiled(
    model: nn.Module, case: Diffusion, way: str, compiler: str, inputs: dict[str, Any], wanted: Tensor
) -> tuple[Callable[[], object], dict[str, Any]]:
    """A step, warm, and what is known of it."""
    check_libraries(compiler)
    attnpass.clear_reports()
    how = compile_arguments(compiler)
    call = getattr(model, case.method)
    if way == BLOCKS:
        model.compile_repeated_blocks(fullgraph=True, **how)  # type: ignore[operator]
    else:
        call = torch.compile(call, **how)
    step = partial(call, **inputs)
    start = time.perf_counter()
    got = first_output(step())
    record = {"first_s": round(time.perf_counter() - start, 1), "relative_to_eager": relative(got, wanted)}
    return step, {**record, **what_ran()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--models", type=names, default=list(MODELS))
    parser.add_argument("--ways", type=names, default=[WHOLE, BLOCKS])
    parser.add_argument("--compilers", type=names, default=[INDUCTOR, "auto"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", default="0/1", help="I/N: the Ith of N parts of the rows, counted from 0")
    parser.add_argument("--out", default=str(RESULTS / "diffusion_cuda.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
