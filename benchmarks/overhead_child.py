"""What one fresh process measures for ``overhead.py``: cold compilation, calls, or caches. Prints one line of JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import attnpass
import attnpass.backend
from benchmarks.small_gpt import BLOCKS, small_gpt
from benchmarks.steps import backend

INDUCTOR = "inductor"
BURST_S = 0.002  # how long one side runs before the next one does
WARM_UP = 100


def main() -> None:
    """Measure what ``probe`` names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("probe", choices=("compile", "calls", "caches"))
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="attention calls, for calls")
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = 100
    os.environ["ATTNPASS_KERNEL"] = "auto" if args.kernel == INDUCTOR else args.kernel
    probe = {"compile": probe_compile, "calls": probe_calls, "caches": probe_caches}[args.probe]
    print("RECORD " + json.dumps(probe(args)), flush=True)


def probe_compile(args: argparse.Namespace) -> dict[str, Any]:
    """The first call of a model with `BLOCKS` attention calls; then the pass alone again, its imports done."""
    model, x = _model(args, BLOCKS)
    outside = _count_own_time()
    ms = _first_call(model, x, args)
    torch.compiler.reset()
    if args.kernel == INDUCTOR:
        return {"compile_ms": ms}
    report = attnpass.reports()[-1]
    own_ms = outside[-1]
    os.environ["ATTNPASS_COMPILER"] = "eager"
    _first_call(model, x, args)
    again = attnpass.reports()[-1]
    return {
        "compile_ms": ms,
        "calls": len(report.decisions),
        "rewritten": report.rewritten,
        "pass_ms": report.pass_ms,
        "pass_ms_a_call": report.pass_ms / len(report.decisions),
        "pass_share": report.pass_ms / ms,
        "own_ms": own_ms,
        "own_share": own_ms / ms,
        "warm_pass_ms": again.pass_ms,
        "warm_pass_ms_a_call": again.pass_ms / len(again.decisions),
    }


def _count_own_time() -> list[float]:
    """Milliseconds of each backend call that pass outside the downstream compiler: settings, pass, report."""
    own: list[float] = []
    whole, downstream = attnpass.backend.attnpass, attnpass.backend.compile_graph
    inside = [0.0]

    def timed_downstream(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return downstream(*args, **kwargs)
        finally:
            inside[0] = time.perf_counter() - start

    def timed_whole(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return whole(*args, **kwargs)
        finally:
            own.append((time.perf_counter() - start - inside[0]) * 1000)

    attnpass.backend.compile_graph = timed_downstream
    attnpass.backend.attnpass = timed_whole  # type: ignore[assignment]
    return own


def _first_call(model: torch.nn.Module, x: Tensor, args: argparse.Namespace) -> float:
    with_backend = INDUCTOR if args.kernel == INDUCTOR else attnpass.backend.attnpass
    compiled = torch.compile(model, backend=with_backend)
    start = time.perf_counter()
    with torch.set_grad_enabled(args.training):
        out = compiled(x)
        if args.training:
            out.square().mean().backward()
    _wait(args.device)
    return (time.perf_counter() - start) * 1000


def probe_calls(args: argparse.Namespace) -> dict[str, Any]:
    """Calls so small that the host decides, in bursts: Inductor, attnpass, and Inductor again to show the noise."""
    torch.set_num_threads(1)
    model, x = _model(args, args.blocks, width=32, length=4)
    sides = {name: _own_code(model, name) for name in ("inductor", "attnpass", "inductor_again")}
    times: dict[str, list[float]] = {name: [] for name in sides}
    with torch.no_grad():
        run = {
            name: torch.compile(call, backend=backend() if name == "attnpass" else INDUCTOR)
            for name, call in sides.items()
        }
        for call in run.values():
            for _ in range(WARM_UP):
                call(x)
        calls = max(1, int(BURST_S * 1e6 / _burst_us(run["inductor"], x, args.device, WARM_UP)))
        end, turn = time.perf_counter() + args.seconds, 0
        while time.perf_counter() < end:
            names = list(sides)[turn % 3 :] + list(sides)[: turn % 3]
            for name in names if turn % 2 else names[::-1]:
                times[name].append(_burst_us(run[name], x, args.device, calls))
            turn += 1
    report = attnpass.reports()[-1]
    return {
        "blocks": args.blocks,
        "rewritten": report.rewritten,
        "bursts": turn,
        "calls_a_burst": calls,
        **_compare(times),
    }


def _own_code(model: torch.nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """Dynamo keeps what it compiled on the code object; shared, the sides would search each other's entries."""

    def call(x: Tensor) -> Any:
        return model(x)

    code = call.__code__.replace(co_name=name)
    return types.FunctionType(code, call.__globals__, name, None, call.__closure__)


def _burst_us(call: Callable[[Tensor], Tensor], x: Tensor, device: str, calls: int) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call(x)
    spent = time.perf_counter() - start
    _wait(device)
    return spent / calls * 1e6


def _compare(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians and quartiles; the ratios are medians over the turns, in which both sides ran beside each other."""
    found: dict[str, Any] = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        found |= {f"{name}_us": middle, f"{name}_iqr_us": high - low}
    for name in ("attnpass", "inductor_again"):
        turns = zip(times[name], times["inductor"], strict=True)
        low, middle, high = statistics.quantiles([ours / plain for ours, plain in turns], n=4)
        found[f"{name}_ratio"] = {"median": middle, "low_quartile": low, "high_quartile": high}
    return found


def probe_caches(args: argparse.Namespace) -> dict[str, Any]:
    """Hits, misses and bypasses of Inductor's and AOTAutograd's caches in this process."""
    model, x = _model(args, 2)
    _first_call(model, x, args)
    counters = torch._dynamo.utils.counters
    kinds = ("hit", "miss", "bypass")
    return {
        **{f"fxgraph_{kind}": counters["inductor"][f"fxgraph_cache_{kind}"] for kind in kinds},
        **{f"autograd_{kind}": counters["aot_autograd"][f"autograd_cache_{kind}"] for kind in kinds},
    }


def _model(args: argparse.Namespace, blocks: int, width: int = 128, length: int = 64) -> tuple[torch.nn.Module, Tensor]:
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = small_gpt(blocks, width, width // 32, args.device, dtype).train(args.training)
    return model, torch.randn(1, length, width, device=args.device, dtype=dtype)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
