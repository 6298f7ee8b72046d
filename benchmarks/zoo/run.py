#!/usr/bin/env python3
"""The zoo of strangers: models of packages that nobody here wrote, and what attnpass makes of their attention.

    pip install --no-deps --target /tmp/zoo -r requirements/zoo.txt
    python -m benchmarks.zoo.run --site /tmp/zoo                     # all, one process each
    python -m benchmarks.zoo.run --site /tmp/zoo vit-pytorch hiera   # those whose names begin so
    python -m benchmarks.zoo.run --transformers --part 3/16 --budget-seconds 420 --out lines-3.jsonl

Each stranger runs once in eager and once compiled, in fp32 without gradients. No package is loaded with weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch._dynamo

from benchmarks.environment import append, facts
from benchmarks.zoo import stand_ins, trial
from benchmarks.zoo.stranger import Stranger
from benchmarks.zoo.strangers import STRANGERS
from benchmarks.zoo.strangers.transformers_models import transformers_models

KERNELS = "flex,native_flash,native_math"  # flex computes what was proved of a mask: a wrong proof shows
SECONDS = 100


def main() -> int:
    """Run those that are asked for; the exit status is 1 if a number was wrong."""
    args, start = _arguments(), time.monotonic()
    os.environ |= {"ATTNPASS_COMPILER": "aot_eager", "ATTNPASS_LOG": "warning", "ATTNPASS_KERNEL": args.kernel}
    sys.path.append(args.site)
    torch.set_num_threads(1)  # a process that has threads cannot be forked
    _warm_up()
    stand_ins.install()
    everybody = tuple(transformers_models()) if args.transformers else STRANGERS
    chosen = [one for one in everybody if not args.names or one.name.startswith(tuple(args.names))]
    part, parts = map(int, args.part.split("/"))
    mine = chosen[part::parts]
    end = start + args.budget_seconds if args.budget_seconds else math.inf
    records = [_in_process(one, args) for one in until(end, mine)]
    wrong, left = sum(bool(r.get("wrong")) for r in records), len(mine) - len(records)
    print(f"{len(records)} strangers, {wrong} wrong" + (f", {left} left: the time is spent" if left else ""))
    return int(any(record.get("wrong") for record in records))


def until(end: float, strangers: Iterable[Stranger]) -> Iterator[Stranger]:
    """Those that begin before ``end``, in seconds of the monotonic clock. The last one may take `SECONDS` more."""
    for one in strangers:
        if time.monotonic() >= end:
            return
        yield one


def _warm_up() -> None:
    """Import what every compilation imports, once for all children."""
    q = torch.randn(1, 1, 4, 16)
    with torch.no_grad():
        torch.compile(torch.nn.functional.scaled_dot_product_attention, backend="attnpass")(q, q, q)
    torch._dynamo.reset()


def _in_process(stranger: Stranger, args: argparse.Namespace) -> dict[str, Any]:
    """The record of one stranger, made in a child: what a package leaves behind in a process is nobody else's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _work(stranger, writing)
    os.close(writing)
    record = _received(reading, child) or {
        "package": stranger.package,
        "what": stranger.what,
        "stage": "process",
        "problem": "died, or took too long",
    }
    benchmark = "zoo_transformers" if args.transformers else "zoo_strangers"
    record = {"benchmark": benchmark, **facts("cpu"), "kernel": args.kernel, **record}
    if args.out:
        append(args.out, record)
    shown = ("eager", "captured", "found", "rewritten", "ratio", "wrong", "problem", "near_misses", "errors", "seconds")
    print(stranger.name, {key: record[key] for key in shown if record.get(key) not in (None, "", {}, [])}, flush=True)
    return record


def _received(reading: int, child: int) -> dict[str, Any] | None:
    """What the child says, if it says it in time."""
    said, end = b"", time.monotonic() + SECONDS
    while (left := end - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        more = os.read(reading, 1 << 20)
        if not more:
            break
        said += more
    os.close(reading)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        return dict(json.loads(said))
    except ValueError:
        return None


def _work(stranger: Stranger, writing: int) -> NoReturn:
    """The child."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        os.write(writing, json.dumps(trial.run(stranger), default=str).encode())
        os.close(writing)
    finally:
        os._exit(0)


def _arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names such as vit-pytorch/ViT; default: all")
    parser.add_argument("--site", default="", help="the folder that the packages were installed into")
    parser.add_argument("--transformers", action="store_true", help="every model type of transformers instead")
    parser.add_argument("--part", default="0/1", help="of the chosen, the N-th of M: 0/2 and 1/2 are all")
    parser.add_argument("--budget-seconds", type=float, default=0, help="begin no other after so long; 0: all")
    parser.add_argument("--kernel", default=KERNELS, help=f"ATTNPASS_KERNEL; default: {KERNELS}")
    parser.add_argument("--out", default="", help="file to which lines of JSON are added")
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
