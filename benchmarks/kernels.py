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
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.measure import difference, reference_attention
from benchmarks.environment import append, facts
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
HOST_ROUNDS = 300
HOST_BURST = 10  # calls launched without waiting for the device, which stays idle


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
    """Host time of one compiled call of a tiny shape, beside what it is made of.

    ``inductor_us``: the same call by plain Inductor. ``op_us``, ``library_us``: our op and the library's own function,
    alone in a loop. ``op_cold_us``: our op in turn with another compiled call, whose code drives it out of the caches;
    that is how it runs in a compiled program.
    """
    torch._inductor.config.compile_threads = 1  # the start of its worker processes would be measured too
    operands = _operands(HOST, False)
    call = _compiled(kernel, HOST)
    try:
        call(*operands)
        found = {"ok": True, "ran": attnpass.reports()[0].decisions[0].kernel}
        plain: Callable[..., Tensor] = torch.compile(_attention(HOST), dynamic=False)
        alone = dict(_around(kernel, operands))
        found |= _us({"compiled_us": call, "inductor_us": plain, **alone, **_in_turn(plain, alone)}, operands)
        for name in alone:
            found[name.replace("_us", "_cold_us")] = round(found.pop(f"inductor, {name}") - found["inductor_us"], 2)
    except Exception as error:
        return {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return found


def _in_turn(plain: Callable[..., Any], alone: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    def turn(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *operands: (plain(*operands), function(*operands))

    return {f"inductor, {name}": turn(function) for name, function in alone.items()}


def _us(calls: dict[str, Callable[..., Any]], operands: list[Tensor]) -> dict[str, float]:
    """Median host time of a call of each in microseconds. They take turns, so that they share what disturbs.

    Each begins warm: who ran behind another's code paid 30 us for that, when a call is as much Python as sage's.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(HOST_ROUNDS):
        for name, call in calls.items():
            call(*operands)
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(HOST_BURST):
                call(*operands)
            times[name].append((time.perf_counter() - start) / HOST_BURST * 1e6)
    torch.cuda.synchronize()
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def _around(kernel: str, operands: list[Tensor]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Our op and the library's own function, called eagerly on the same BSHD tensors."""
    from attnpass.kernels import flash2, flash3, flash4, sage, sage1, xformers

    scale = HOST.sizes[5] ** -0.5
    bshd = [x.transpose(1, 2) for x in operands]
    if kernel == "native_cudnn":
        fused = torch.ops.aten._scaled_dot_product_cudnn_attention
        yield "op_us", lambda *_: fused(*operands, None, False, 0.0, False, False, scale=scale)
    elif kernel == "flash2":
        from flash_attn import flash_attn_func

        yield "op_us", lambda *_: flash2._infer(*bshd, scale, -1, -1, 0.0, 0.0)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "flash3":
        from flash_attn_interface import flash_attn_func

        yield "op_us", lambda *_: flash3._infer(*bshd, None, None, scale, -1, -1, 0.0, False)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "flash4":
        from flash_attn.cute import flash_attn_func

        yield "op_us", lambda *_: flash4._infer(*bshd, None, None, scale, -1, -1, 0.0)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "sage1":
        from sageattention import sageattn

        yield "op_us", lambda *_: sage1._infer(*bshd, "NHD", False, scale)
        yield "library_us", lambda *_: sageattn(*bshd, tensor_layout="NHD", sm_scale=scale)
    elif kernel.startswith("sage"):
        from sageattention import sageattn_qk_int8_pv_fp8_cuda_sm90 as best

        yield "op_us", lambda *_: sage._infer(*bshd, "sage_fp8_sm90", "NHD", False, scale)
        yield "library_us", lambda *_: best(*bshd, tensor_layout="NHD", sm_scale=scale)
    elif kernel == "xformers":
        from xformers.ops import fmha

        only = {"op": fmha.flash.FwOp}
        yield "op_us", lambda *_: xformers._infer(*bshd, None, "flash", False, scale)
        yield "library_us", lambda *_: fmha.memory_efficient_attention_forward(*bshd, scale=scale, **only)


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
