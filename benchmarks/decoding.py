#!/usr/bin/env python3
"""Decoding: one query on a static cache, full to nearly empty, alone and in whole steps; tokens a second of `generate`.

    python benchmarks/decoding.py calls --out decoding.jsonl --part 0/4
    python benchmarks/decoding.py steps,generate --out decoding.jsonl

A call is compiled as a user's would be, the mask an input, and replayed from a CUDA graph on caches that together do
not fit into the GPU's cache; ``limit_ms`` is what reading the keys and values that the mask shows takes at the GPU's
memory bandwidth, copied (`roofline.py --measure`). Processes of several parts that share a file as ``BENCHMARK_LOCK``
compile side by side and measure one at a time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from benchmarks.decoding_models import StepModel, generating
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS, Source
from benchmarks.roofline import ceilings
from benchmarks.timing import alone, preparing

INDUCTOR, AUTO = "inductor", "auto"
KERNELS = (INDUCTOR, AUTO, "native_cudnn", "native_flash", "flex", "flash2", "flash3", "flash_decoding")
BATCHES, CACHES, HEAD_DIMS, FILLS = (1, 8, 32), (4096, 16384, 32768), (64, 128), (0.1, 0.5, 1.0)
H, HKV = 32, 8
COLD_BYTES = 160 * 2**20  # three times the cache of an H100
STEPS = ((1, 4096, 64), (8, 4096, 64), (1, 32768, 64), (8, 16384, 64), (8, 16384, 128))
GENERATED = ((8, 1024, 256),)  # batch, tokens of the prompt, tokens that are made


def main() -> int:
    """One line for each call (or step) and kernel."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", type=lambda text: text.split(","), help="calls, steps, generate")
    parser.add_argument("--kernels", type=lambda text: text.split(","), default=list(KERNELS))
    parser.add_argument("--part", default="0/1", help="I/N: the Ith of N parts of the calls, counted from 0")
    parser.add_argument("--out", default=str(RESULTS / "decoding_cuda.jsonl"))
    args = parser.parse_args()
    number, _, parts = args.part.partition("/")
    made = {"calls": calls, "steps": steps, "generate": generated}
    with torch.no_grad():
        for what in args.what:
            for record in made[what](args.kernels, int(number), int(parts)):
                append(args.out, {"benchmark": "decoding", "what": what, **record, **facts("cuda")})
                print(record, flush=True)
    return 0


def calls(kernels: list[str], number: int, parts: int) -> Iterator[dict[str, Any]]:
    """Every batch, cache, head dim and fill; a kernel that refuses has its reasons in the line."""
    for B, S, D in list(product(BATCHES, CACHES, HEAD_DIMS))[number::parts]:
        cache = 2 * B * HKV * S * D * 2
        caches = [torch.randn(2, B, HKV, S, D, device="cuda").bfloat16() for _ in range(math.ceil(COLD_BYTES / cache))]
        q = torch.randn(B, H, 1, D, device="cuda").bfloat16()
        with preparing():
            compiled = {kernel: _compiled(kernel, attention, q, *caches[0], _mask(B, S, S)) for kernel in kernels}
            if AUTO in compiled:  # as where CUDA graphs launch, which is how all are timed
                chosen = _compiled(AUTO, attention, q, *caches[0], _mask(B, S, S), graphs=True)[1]
                compiled[AUTO] = (_compiled(chosen["chosen"], attention, q, *caches[0], _mask(B, S, S))[0], chosen)
        for fill, (kernel, (run, told)) in product(FILLS, compiled.items()):
            mask = _mask(B, S, int(S * fill))
            head = {"sizes": [B, H, HKV, 1, S, D], "fill": fill, "kernel": kernel, **told}
            if run is None:
                yield head
                continue
            with alone():
                ms = replayed([partial(run, q, *kv, mask) for kv in caches])
            yield {**head, "ms": ms, "limit_ms": _limit_ms(cache * fill)}
        del caches, compiled
        torch.cuda.empty_cache()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """What a model with a static cache calls."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def steps(kernels: list[str], number: int, parts: int) -> Iterator[dict[str, Any]]:
    """Whole steps of 8 layers (`StepModel`), half the cache full, replayed from CUDA graphs as PyTorch makes them."""
    for (B, S, D), kernel in list(product(STEPS, kernels))[number::parts]:
        model = StepModel(B, S, H, HKV, D).cuda().bfloat16()
        x, place = torch.randn(B, 1, model.width, device="cuda").bfloat16(), torch.tensor([S // 2], device="cuda")
        mask = _mask(B, S, S // 2 + 1)
        with preparing():
            run, told = _compiled(kernel, model, x, mask, place, graphs=True)
        head = {"sizes": [B, H, HKV, 1, S, D], "layers": len(model.layers), "kernel": kernel, **told}
        with alone():
            yield head if run is None else {**head, "ms": _events(partial(run, x, mask, place))}
        del model
        torch.cuda.empty_cache()


def generated(kernels: list[str], number: int, parts: int) -> Iterator[dict[str, Any]]:
    """Tokens a second of `generate` of a small Llama with a static cache, prompts padded on the left."""
    for (B, prompt, room), kernel in list(product(GENERATED, kernels))[number::parts]:
        _reset()
        with alone():
            tokens, seconds, first = generating(kernel, B, prompt, room)
        told = {str(d.kernel) for r in attnpass.reports() for d in r.decisions}
        yield {
            "sizes": [B, prompt, room],
            "kernel": kernel,
            "chosen": sorted(told),
            "tokens_a_second": round(tokens / seconds, 1),
            "first_s": round(first, 1),
        }


def _limit_ms(moved: float) -> float | None:
    """What reading so many bytes takes at the speed of a copy; None if this GPU's ceilings were not measured."""
    reached = ceilings(Source(torch.cuda.get_device_name().split()[1].lower()))
    return reached and round(moved / reached.gbs / 1e6, 5)


def _mask(B: int, S: int, shown: int) -> Tensor:
    return (torch.arange(S, device="cuda") < shown).expand(B, 1, 1, S).contiguous()


def _reset() -> None:
    torch._dynamo.reset()
    attnpass.clear_reports()


def _compiled(
    kernel: str, function: Callable[..., Tensor], *operands: Tensor, graphs: bool = False
) -> tuple[Callable[..., Tensor] | None, dict[str, Any]]:
    """The compiled function, warm, and who computes it; None if the kernel refuses."""
    _reset()
    options = {"triton.cudagraphs": True} if graphs else {}
    if kernel == INDUCTOR:
        run: Callable[..., Tensor] = torch.compile(function, dynamic=False, options=options)
        run(*operands)
        return run, {}
    run = torch.compile(function, backend="attnpass", dynamic=False, options={**options, "attnpass.kernel": kernel})
    run(*operands)
    decision = attnpass.last_report().decisions[0]
    if kernel != AUTO and decision.kernel != kernel:
        return None, {"refused": [str(reason) for reason in decision.rejections(kernel)]}
    return run, {"chosen": decision.kernel, "reason": decision.reason.value}


def replayed(runs: list[Callable[[], Tensor]], rounds: int = 7) -> float:
    """Median ms of one run: all of them captured as one CUDA graph, which is replayed for some 10 ms a round."""
    for run in runs:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    return _events(graph.replay, rounds) / len(runs)


def _events(step: Callable[[], Any], rounds: int = 7) -> float:
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    times, often = [], max(1, int(0.01 / (time.perf_counter() - start)))
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(often):
            step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / often)
    return round(statistics.median(times), 5)


if __name__ == "__main__":
    sys.exit(main())
