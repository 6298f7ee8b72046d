#!/usr/bin/env python3
"""Each kernel on named shapes from real models: milliseconds, error, and what our op costs around the library.

    python benchmarks/kernels.py --kernels native_cudnn,flash2,sage1 --out kernels.jsonl

The call is compiled with attnpass as a user's would be, q, k and v stored BSHD and viewed as BHSD. The time is the
median of ``triton.testing.do_bench`` over the compiled call (on CUDA events, one device). The error is relative to fp32
(norm of the difference over the norm). A kernel that refuses a call has its reasons in the line instead of a time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.trials.reference import difference, reference_attention
from benchmarks.environment import append, facts
from benchmarks.host_times import of_a_kernel
from benchmarks.records import RESULTS
from benchmarks.steps import backend


@dataclass(frozen=True, slots=True)
class Shape:
    """B, H, Hkv, Sq, Sk, D of a call, and what else it is."""

    sizes: tuple[int, int, int, int, int, int]
    dtype: torch.dtype = torch.bfloat16
    causal: bool = False


SHAPES = {
    "wan_dit": Shape((1, 12, 12, 16384, 16384, 128)),
    "flux": Shape((1, 24, 24, 4608, 4608, 128)),
    "sdxl_self": Shape((2, 10, 10, 4096, 4096, 64), torch.float16),
    "sdxl_cross": Shape((2, 10, 10, 4096, 77, 64), torch.float16),
    "llama_prefill": Shape((2, 32, 8, 4096, 4096, 128), causal=True),
    "gpt2": Shape((8, 12, 12, 1024, 1024, 64), causal=True),
    "vit_l": Shape((64, 16, 16, 197, 197, 64)),
    "bert": Shape((32, 12, 12, 512, 512, 64)),
    "decode": Shape((16, 32, 8, 1, 4096, 128)),
    "hd256": Shape((2, 8, 8, 4096, 4096, 256), causal=True),
}
TRAINED = ("llama_prefill", "gpt2", "bert", "hd256")
ONLY_HOST = "host"
HOST = Shape((1, 2, 2, 64, 64, 64))


def main() -> int:
    """One line for each kernel, shape and step."""
    args = _arguments()
    for kernel in args.kernels:
        for name in args.shapes if args.shapes != [ONLY_HOST] else ():
            for step in ("forward", "train") if name in TRAINED else ("forward",):
                record = {"benchmark": "kernels", "kernel": kernel, "shape": name, "step": step}
                record |= _measure(kernel, SHAPES[name], step == "train")
                append(args.out, record | facts("cuda"))
                print(_line(record), flush=True)
        record = {"benchmark": "kernels", "kernel": kernel, "shape": ONLY_HOST, "step": "forward", **_host(kernel)}
        append(args.out, record | facts("cuda"))
        print(_line(record), flush=True)
    return 0


def _operands(shape: Shape, grad: bool) -> list[Tensor]:
    B, H, Hkv, Sq, Sk, D = shape.sizes
    generator = torch.Generator(device="cuda").manual_seed(0)

    def operand(heads: int, length: int) -> Tensor:
        stored = torch.randn(B, length, heads, D, device="cuda", generator=generator).to(shape.dtype)
        return stored.transpose(1, 2).requires_grad_(grad)

    return [operand(H, Sq), operand(Hkv, Sk), operand(Hkv, Sk)]


def _attention(shape: Shape) -> Callable[..., Tensor]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gqa = shape.sizes[1] != shape.sizes[2]
        return F.scaled_dot_product_attention(q, k, v, is_causal=shape.causal, enable_gqa=gqa)

    return attention


def _compiled(kernel: str, shape: Shape) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    attnpass.clear_reports()
    os.environ["ATTNPASS_KERNEL"] = kernel
    compiled: Callable[..., Tensor] = torch.compile(_attention(shape), backend=backend(), dynamic=False)
    return compiled


def _measure(kernel: str, shape: Shape, train: bool) -> dict[str, Any]:
    operands = _operands(shape, train)
    call = _compiled(kernel, shape)
    try:
        out = call(*operands)
    except Exception as error:
        return {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    decision = attnpass.reports()[0].decisions[0]
    if not decision.rewritten:
        return {"ok": True, "refused": [str(reason) for reason in decision.rejections(kernel)]}
    small = out.numel() * shape.sizes[4] // shape.sizes[5] <= 1 << 31
    error = _error(operands, out, shape) if small else None
    grad = torch.randn_like(out)

    def step() -> None:
        result = call(*operands)
        if train:
            torch.autograd.grad(result, operands, grad)

    from triton.testing import do_bench

    ms = do_bench(step, warmup=20, rep=80, return_mode="median")
    return {"ok": True, "ran": decision.kernel, "ms": round(ms, 4), "relative_error": error}


def _error(operands: list[Tensor], out: Tensor, shape: Shape) -> float:
    q, k, v = (x.detach() for x in operands)
    exact = reference_attention(q, k, v, is_causal=shape.causal, enable_gqa=q.shape[1] != k.shape[1])
    return round(difference(out, exact).relative, 6)


def _host(kernel: str) -> dict[str, Any]:
    torch._inductor.config.compile_threads = 1  # the start of its worker processes would be measured too
    operands = _operands(HOST, False)
    call = _compiled(kernel, HOST)
    try:
        call(*operands)
        found = {"ok": True, "ran": attnpass.reports()[0].decisions[0].kernel}
        plain: Callable[..., Tensor] = torch.compile(_attention(HOST), dynamic=False)
        return found | of_a_kernel(kernel, call, plain, operands)
    except Exception as error:
        return {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _line(record: dict[str, Any]) -> str:
    head = f"{record['kernel']:16} {record['shape']:14} {record['step']:8}"
    if "problem" in record:
        return f"{head} FAILED {record['problem'][:150]}"
    if "refused" in record:
        return f"{head} refused: {'; '.join(record['refused'])[:150]}"
    if "ms" in record:
        return f"{head} {record['ms']:9.3f} ms  error {record['relative_error']}"
    return f"{head} " + ", ".join(f"{key} {value}" for key, value in record.items() if key.endswith("_us"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kernels", type=lambda text: text.split(","), required=True)
    shapes = f"which; {ONLY_HOST}: only the host times of a call, which every kernel gets"
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES), help=shapes)
    parser.add_argument("--out", default=str(RESULTS / "kernels_cuda.jsonl"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
