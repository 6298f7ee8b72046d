#!/usr/bin/env python3
"""Seconds of a model's first call, for `benchmarks.ground`: caches empty, then a second process that finds them full.

Run as a script it is that process, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.end_to_end import check_libraries, compile_arguments, what_ran
from benchmarks.ground_models import MODELS
from benchmarks.timing import LOCK

FIRST_CALL = "first_call"
MODEL = "llama_left"
EMPTY, FULL = "empty", "full"


def first_calls(compilers: Sequence[str], device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Two records for each compiler, by its caches."""
    for compiler in compilers:
        with tempfile.TemporaryDirectory() as folder:
            for caches in (EMPTY, FULL):
                head = {"group": FIRST_CALL, "compiler": compiler, "caches": caches}
                yield {**head, **_child(compiler, device, small, folder)}


def _child(compiler: str, device: str, small: bool, folder: str) -> dict[str, Any]:
    """What a fresh process says whose caches are in ``folder``."""
    caches = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "ATTNPASS_CACHE": "attnpass"}
    environment = {name: value for name, value in os.environ.items() if name != LOCK}  # our parent has it
    environment |= {name: f"{folder}/{part}" for name, part in caches.items()}
    command = [sys.executable, __file__, compiler, device, *(["--small"] if small else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"ok": False, "problem": " ".join(done.stderr.split())[-300:]}
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def main() -> int:
    """Print the seconds of the first call, in a process that has used the device but compiled nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("compiler")
    parser.add_argument("device")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    check_libraries(args.compiler)
    with torch.device(args.device):
        model, inputs = MODELS[MODEL].built(args.device, args.small)
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        model(**inputs)  # cuBLAS and the kernels of eager are loaded
        _wait(args.device)
        start = time.perf_counter()
        torch.compile(model, **compile_arguments(args.compiler))(**inputs)
        _wait(args.device)
    print(json.dumps({"ok": True, "seconds": round(time.perf_counter() - start, 2), **what_ran()}))
    return 0


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
