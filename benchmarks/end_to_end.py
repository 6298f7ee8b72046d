#!/usr/bin/env python3
"""Whole unmodified models: eager, plain Inductor, and attnpass, beside the same model with its mask taken out by hand.

    python benchmarks/end_to_end.py --models llama,llama_eager --compilers inductor,by_hand,auto

``by_hand`` is plain Inductor on a copy of the model whose attention calls ``is_causal`` without a mask, what a user
would get by editing the model; ``auto_pytorch_only`` is ``auto`` in an environment without kernel libraries. Random
weights, bf16; the time is the median of ``triton.testing.do_bench``.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

import attnpass
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.steps import backend
from benchmarks.subjects import CASES, Case
from benchmarks.timing import alone, median_ms

BY_HAND, EAGER, INDUCTOR, PYTORCH_ONLY = "by_hand", "eager", "inductor", "auto_pytorch_only"
NOT_FOR_TIMES = ("small", "narrow", "narrow_eager")  # to try the script, and for the seconds of compilation
KERNEL_LIBRARIES = ("flash_attn", "flash_attn_interface")


def main() -> int:
    args = _arguments()
    for name in args.models:
        for compiler in args.compilers:
            if compiler == BY_HAND and not CASES[name].decoder:
                continue
            record = {"benchmark": "end_to_end", "model": name, "compiler": compiler}
            record["step"] = "train" if args.train else "forward"
            try:
                record |= measure(CASES[name], compiler, args.device, args.train)
            except Exception as error:
                record |= {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            append(args.out, record | facts(args.device))
            print(_line(record), flush=True)
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return 0


def measure(case: Case, compiler: str, device: str, train: bool) -> dict[str, Any]:
    """Time of one call, and how far the logits are from those of the eager model."""
    torch.manual_seed(0)
    if case.decoder:
        register_by_hand()
    with torch.device(device):
        model = case.make(case.attention).to(torch.bfloat16).train(train)
    inputs = case.inputs(device)
    with torch.no_grad(), alone():
        wanted = _logits(model, inputs)
    if compiler == BY_HAND:
        model.set_attn_implementation(BY_HAND)  # type: ignore[operator]
        inputs.pop("attention_mask", None)
    torch._dynamo.reset()
    attnpass.clear_reports()
    check_libraries(compiler)
    os.environ["ATTNPASS_KERNEL"] = "auto" if compiler in (BY_HAND, EAGER, INDUCTOR, PYTORCH_ONLY) else compiler
    call = (
        model
        if compiler == EAGER
        else torch.compile(model, backend="inductor" if compiler in (BY_HAND, INDUCTOR) else backend(), dynamic=False)
    )
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        got = _logits(call, inputs).detach()
    record = {"ok": True, "compile_s": round(time.perf_counter() - start, 1), **what_ran()}
    record["relative_to_eager"] = relative(got, wanted)
    del got, wanted

    def step() -> None:
        with torch.set_grad_enabled(train):
            out = first_output(call(**inputs))
        if train:
            out.float().mean().backward()
            model.zero_grad(set_to_none=True)

    record["ms"], record["spread_ms"] = median_ms(step, device, rep=600)
    return record


def register_by_hand() -> None:
    """An attention implementation of transformers that needs no mask: causal by flag."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any) -> Any:
        gqa = q.shape[1] != k.shape[1]
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=gqa)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(BY_HAND, attention)
    AttentionMaskInterface.register(BY_HAND, lambda *args, **kwargs: None)


def _logits(model: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    out: Tensor = first_output(model(**inputs))
    return out[:, -64:]


def first_output(out: Any) -> Tensor:
    """The logits or hidden states, whatever the model wraps them in."""
    first: Tensor = out if isinstance(out, Tensor) else out[0]
    return first


def has_libraries() -> bool:
    """Is a kernel library installed that `PYTORCH_ONLY` is without?"""
    return any(map(importlib.util.find_spec, KERNEL_LIBRARIES))


def compile_arguments(compiler: str) -> dict[str, Any]:
    """What ``torch.compile`` is given for plain Inductor, `PYTORCH_ONLY`, or a kernel of attnpass by its name."""
    if compiler == INDUCTOR:
        return {"backend": INDUCTOR, "dynamic": False}
    kernel = "auto" if compiler == PYTORCH_ONLY else compiler
    return {"backend": "attnpass", "dynamic": False, "options": {"attnpass.kernel": kernel}}


def check_libraries(compiler: str) -> None:
    """Raise where `PYTORCH_ONLY` is asked for beside a kernel library."""
    if compiler == PYTORCH_ONLY and has_libraries():
        raise RuntimeError(f"{PYTORCH_ONLY} is auto where no kernel library is installed")


def relative(got: Tensor, wanted: Tensor) -> float:
    """How far an output is from the wanted one, as norms."""
    return round(float((got - wanted).float().norm() / wanted.float().norm()), 5)


def what_ran() -> dict[str, Any]:
    """The kernels of the reports so far, each with its mask and how often, and what the pass took."""
    decisions = [decision for report in attnpass.reports() for decision in report.decisions]
    ran = Counter(f"{decision.kernel} ({decision.call.mask})" for decision in decisions)
    return {"calls": dict(ran), "pass_ms": round(sum(report.pass_ms for report in attnpass.reports()), 1)}


def _line(record: dict[str, Any]) -> str:
    head = f"{record['model']:14} {record['compiler']:14} {record['step']:8}"
    if not record["ok"]:
        return f"{head} FAILED {record['problem']}"
    error = f"to eager {record['relative_to_eager']:.4f}"
    return f"{head} {record['ms']:9.2f} ms  {error}  compiled in {record['compile_s']} s  {record['calls'] or ''}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=[n for n in CASES if n not in NOT_FOR_TIMES]
    )
    parser.add_argument("--compilers", type=lambda text: text.split(","), default=(INDUCTOR, BY_HAND, "auto"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train", action="store_true", help="a training step instead of a forward pass")
    parser.add_argument("--out", help="default: benchmarks/results/end_to_end_DEVICE.jsonl")
    args = parser.parse_args()
    args.out = args.out or str(RESULTS / f"end_to_end_{args.device}.jsonl")
    return args


if __name__ == "__main__":
    sys.exit(main())
