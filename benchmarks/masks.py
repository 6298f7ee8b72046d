#!/usr/bin/env python3
"""What it costs to understand the masks of a 32-layer Llama, by length and with static and dynamic sizes.

    python benchmarks/masks.py

Nothing is compiled or run: the graph from Dynamo is read and thrown away. The median of five readings, each with no
memory of the one before. The mask is the one that transformers builds in the graph, with and without padding.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.fx import GraphModule

from attnpass.find.find import find
from attnpass.understand.understand import Reader
from benchmarks.environment import append, facts
from benchmarks.records import RESULTS
from benchmarks.subjects import llama

LAYERS = 32
READINGS = 5


class ReadError(Exception):
    """Thrown to leave the compilation once the graph is read."""


def main() -> int:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 100, "num_attention_heads": 4}
    model = llama("sdpa", **sizes, num_key_value_heads=2, num_hidden_layers=LAYERS).eval()
    for padded in (False, True):
        for dynamic in (False, True):
            for length in (512, 16384):
                found = measure(model, length, padded, dynamic)
                record = {"benchmark": "masks", "layers": LAYERS, "length": length, "padded": padded, **found}
                append(RESULTS / "masks_cpu.jsonl", {**record, "dynamic": dynamic, **facts("cpu")})
                print(f"S {length:6} padded {padded!s:5} dynamic {dynamic!s:5} {found}", flush=True)
    return 0


def measure(model: torch.nn.Module, length: int, padded: bool, dynamic: bool) -> dict[str, Any]:
    """Milliseconds to find the calls, and to understand their masks, a layer."""
    taken: dict[str, Any] = {}

    def backend(gm: GraphModule, _: Any) -> Callable[..., Any]:
        finds, reads = [], []
        for _ in range(READINGS):
            start = time.perf_counter()
            findings = find(gm)
            calls = findings.calls
            middle = time.perf_counter()
            reader = Reader(findings.reading)
            understood = [reader.understood(call) for call in calls]
            finds.append(middle - start)
            reads.append(time.perf_counter() - middle)
        taken["find_ms"] = round(statistics.median(finds) * 1000 / len(calls), 3)
        taken["understand_ms"] = round(statistics.median(reads) * 1000 / len(calls), 3)
        taken["masks"] = dict(Counter(str(call.call.mask) for call in understood))
        raise ReadError

    torch._dynamo.reset()
    inputs: dict[str, Any] = {"input_ids": torch.zeros(2, length, dtype=torch.long), "use_cache": False}
    if padded:
        inputs["attention_mask"] = torch.ones(2, length, dtype=torch.long)
    try:
        with torch.no_grad():
            torch.compile(model, backend=backend, dynamic=dynamic)(**inputs)
    except Exception:
        if not taken:
            raise
    return taken


if __name__ == "__main__":
    sys.exit(main())
