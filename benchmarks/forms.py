#!/usr/bin/env python3
"""The same attention, spelled in the ways that models spell it: what each way costs, by who compiles it.

    python benchmarks/forms.py --compilers inductor,auto,flex --out forms.jsonl
    python benchmarks/forms.py --shape short --train

``inductor`` is plain ``torch.compile``; every other name is an ``ATTNPASS_KERNEL``. The time is the median of
``triton.testing.do_bench`` over the compiled call (on a CPU, of a few runs), the memory is the peak that a call takes
beyond its operands, and the error is relative to the same form in fp32.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnpass
from attnpass.trials.reference import difference
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.steps import backend
from benchmarks.timing import alone, median_ms, peak_mib

SHAPES = {  # B, H, Hkv, S, D
    "llama": (2, 32, 8, 4096, 128),
    "halves": (4, 32, 8, 2048, 128),  # as many rows of tiles as llama, and half of its tiles
    "short": (8, 16, 16, 1024, 64),
    "long": (1, 16, 4, 8192, 128),
    "small": (2, 4, 2, 256, 32),  # to try the script
}
WINDOW_SHARE = 4  # the window is a quarter of the length
PADDED = 0.9  # this much of each sequence is there
Sdpa = F.scaled_dot_product_attention


class Forms(nn.Module):
    """One attention call in a form; masks that a model keeps are buffers."""

    mask: Tensor
    additive: Tensor

    def __init__(self, form: str, S: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.form = getattr(self, form)
        keep = torch.ones(S, S, dtype=torch.bool).tril()
        lowest = torch.finfo(dtype).min
        self.register_buffer("mask", keep)
        self.register_buffer("additive", torch.zeros(S, S, dtype=dtype).masked_fill(~keep, lowest))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.form(q, k, v, padding)
        return out

    def fused(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, k, v, is_causal=True, enable_gqa=True)

    def repeated(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, repeat(k, q), repeat(v, q), is_causal=True)

    def bool_mask(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, k, v, self.mask, enable_gqa=True)

    def bool_mask_repeated(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, repeat(k, q), repeat(v, q), self.mask)

    def additive_mask(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, repeat(k, q), repeat(v, q), self.additive.to(q.dtype))

    def built_in_graph(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        i = torch.arange(q.shape[2], device=q.device)
        return Sdpa(q, repeat(k, q), repeat(v, q), (i[None] <= i[:, None])[None, None])

    def window(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        i = torch.arange(q.shape[2], device=q.device)
        near = i[:, None] - i[None] < q.shape[2] // WINDOW_SHARE
        return Sdpa(q, repeat(k, q), repeat(v, q), (i[None] <= i[:, None]) & near)

    def no_mask(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, k, v, enable_gqa=True)

    def padding(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return Sdpa(q, repeat(k, q), repeat(v, q), padding[:, None, None, :])

    def causal_and_padding(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        i = torch.arange(q.shape[2], device=q.device)
        return Sdpa(q, k, v, (i[None] <= i[:, None]) & padding[:, None, None, :], enable_gqa=True)

    def documents(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        i = torch.arange(q.shape[2], device=q.device)
        same = (i * 4 // q.shape[2])[None] == (i * 4 // q.shape[2])[:, None]
        return Sdpa(q, k, v, (i[None] <= i[:, None]) & same, enable_gqa=True)

    def eager(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        scores = torch.matmul(q, repeat(k, q).transpose(2, 3)) * q.shape[-1] ** -0.5 + self.additive.to(q.dtype)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(F.dropout(weights, p=0.0, training=self.training), repeat(v, q))

    def plain(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        return (q @ repeat(k, q).transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ repeat(v, q)


FORMS = (
    "fused",
    "repeated",
    "bool_mask",
    "bool_mask_repeated",
    "additive_mask",
    "built_in_graph",
    "window",
    "no_mask",
    "padding",
    "causal_and_padding",
    "documents",
    "eager",
    "plain",
)


def repeat(x: Tensor, q: Tensor) -> Tensor:
    """K or V with as many heads as q, as transformers writes it."""
    B, Hkv, S, D = x.shape
    return x[:, :, None].expand(B, Hkv, q.shape[1] // Hkv, S, D).reshape(B, q.shape[1], S, D)


def main() -> int:
    args = _arguments()
    for form in args.forms:
        for compiler in args.compilers:
            for train in (False, True) if args.train else (False,):
                record = {
                    "benchmark": "forms",
                    "form": form,
                    "shape": args.shape,
                    "compiler": compiler,
                    "step": "train" if train else "forward",
                }
                try:
                    record |= measure(form, compiler, train, args.device, SHAPES[args.shape])
                except Exception as error:
                    record |= {"ok": False, "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
                append(args.out, record | facts(args.device))
                print(_line(record), flush=True)
    return 0


def measure(form: str, compiler: str, train: bool, device: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Time, memory and error of one form with one compiler."""
    B, S = sizes[0], sizes[3]
    dtype = torch.bfloat16
    operands = list(_operands(sizes, device, dtype, train))
    lengths = torch.tensor([[int(S * PADDED) if b % 2 else S] for b in range(B)], device=device)
    padding = torch.arange(S, device=device)[None] < lengths
    model = Forms(form, S, dtype).to(device)
    torch._dynamo.reset()
    attnpass.clear_reports()
    os.environ["ATTNPASS_KERNEL"] = "auto" if compiler == "inductor" else compiler
    chosen = "inductor" if compiler == "inductor" else backend()
    call: Callable[..., Tensor] = torch.compile(model, backend=chosen, dynamic=False)
    start = time.perf_counter()
    out = call(*operands, padding)
    compile_s = time.perf_counter() - start
    record: dict[str, Any] = {"ok": True, "sizes": sizes, "compile_s": round(compile_s, 2), **_said()}
    with alone():
        record["relative_error"] = _error(model, operands, padding, out)
    grad = torch.randn_like(out)

    def step() -> None:
        result = call(*operands, padding)
        if train:
            torch.autograd.grad(result, operands, grad)

    record["ms"], record["spread_ms"] = median_ms(step, device)
    record["memory_mib"] = peak_mib(step) if device == "cuda" else None
    return record


def _operands(sizes: tuple[int, ...], device: str, dtype: torch.dtype, grad: bool) -> Iterator[Tensor]:
    B, H, Hkv, S, D = sizes
    generator = torch.Generator(device=device).manual_seed(0)
    for heads in (H, Hkv, Hkv):
        stored = torch.randn(B, S, heads, D, device=device, generator=generator).to(dtype)
        yield stored.transpose(1, 2).requires_grad_(grad)


def _said() -> dict[str, Any]:
    decisions = [decision for report in attnpass.reports() for decision in report.decisions]
    if not decisions:
        return {}
    call = decisions[0].call
    return {"ran": decisions[0].kernel, "mask": str(call.mask), "pattern": call.pattern.value, "stop": call.mask.stop}


def _error(model: nn.Module, operands: list[Tensor], padding: Tensor, out: Tensor) -> float:
    """Relative to fp32, one batch element at a time: the scores written by hand need the room."""
    exact = Forms("fused", 8, torch.float32)
    exact.form = getattr(exact, model.form.__name__)  # type: ignore[union-attr]
    exact.mask, exact.additive = model.mask, model.additive.float()  # type: ignore[operator]
    with torch.no_grad():
        parts = [exact(*(x.detach()[i : i + 1].float() for x in operands), padding[i : i + 1]) for i in range(len(out))]
    return round(difference(out.detach(), torch.cat(parts)).relative, 6)


def _line(record: dict[str, Any]) -> str:
    head = f"{record['form']:20} {record['compiler']:16} {record['step']:8}"
    if not record["ok"]:
        return f"{head} FAILED {record['problem']}"
    memory = f"{record['memory_mib']:9.1f} MiB" if record["memory_mib"] is not None else ""
    ran = f"{record.get('ran', ''):16} {record.get('mask', '')}"
    return f"{head} {record['ms']:9.3f} ms {memory} error {record['relative_error']:.4f}  {ran}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--forms", type=lambda text: text.split(","), default=FORMS)
    parser.add_argument("--compilers", type=lambda text: text.split(","), default=("inductor", "auto"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train", action="store_true", help="forward and backward too")
    parser.add_argument("--shape", choices=SHAPES, default="llama", help=str(SHAPES))
    parser.add_argument("--out", help="default: benchmarks/results/forms_DEVICE.jsonl")
    args = parser.parse_args()
    args.out = args.out or str(RESULTS / f"forms_{args.device}.jsonl")
    return args


if __name__ == "__main__":
    sys.exit(main())
