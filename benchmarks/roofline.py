#!/usr/bin/env python3
"""How far from the chip's limit each measured call is: its FLOPs and bytes against ceilings measured on the same chip.

    python benchmarks/roofline.py --measure                    # on the GPU, first: a line in ceilings_h100.jsonl
    python benchmarks/roofline.py --sets models --best         # then, anywhere

The ceilings are what a bf16 matrix product of 8192³ and a copy of 4 GiB reach, not what a data sheet promises. Of the
two times that a call would take at them, the longer one binds; the percentage is that time over the measured one. The
time is the GPU's; a call that takes its host longer than that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.flops import flops, least_bytes
from benchmarks.labels import is_exact
from benchmarks.records import GPU, RESULTS, Record, Source, newest, state
from benchmarks.tables import Table

HERE = Source()
SIDE = 8192
COPIED_BYTES = 4 << 30
ONE_CALL = ("set", "shape", "sizes", "dtype", "mask", "step")
HEAD = ("shape", "B, H, Hkv, Sq, Sk, D", "mask", "step", "kernel", "ms", "TFLOP/s", "GB/s", "bound by", "of the limit")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the chip was seen to do."""

    tflops: float
    gbs: float


@dataclass(frozen=True, slots=True)
class Reach:
    """What a call achieves; None is not known.

    Attributes:
        tflops: by the convention of `benchmarks.flops`.
        gbs: the least that it can move over its time.
        bound: which ceiling is the nearer one, "compute" or "memory"; "host" if the host takes longer than the GPU.
        percent: how much of that ceiling the GPU reaches while it works.
    """

    tflops: float | None
    gbs: float | None
    bound: str = ""
    percent: float | None = None


def ceilings(source: Source = HERE) -> Ceilings | None:
    """The newest measured ceilings; None if there are none."""
    for line in newest(source.read("ceilings")).values():
        return Ceilings(line["matmul_tflops"], line["copy_gbs"])
    return None


def reach(record: Record, limit: Ceilings | None) -> Reach:
    """FLOPs, bytes and distance from the limit of one line of ``costs``.

    An approximate kernel multiplies in another format, so the bf16 ceiling says nothing about it, nor about fp32.
    """
    seconds = float(record.get("gpu_ms") or record["ms"]) / 1000
    work = flops(record["sizes"], record["mask"], record["step"])
    data = least_bytes(record["sizes"], record["dtype"], record["step"])
    rates = Reach(None if work is None else work / seconds / 1e12, data / seconds / 1e9)
    if limit is None or work is None or record["dtype"] == "float32" or not is_exact(record["kernel"]):
        return rates
    compute, memory = work / limit.tflops / 1e12, data / limit.gbs / 1e9
    bound = "compute" if compute >= memory else "memory"
    if record.get("host_ms", 0.0) > seconds * 1000:
        bound = "host"
    return Reach(rates.tflops, rates.gbs, bound, 100 * max(compute, memory) / seconds)


def fastest(records: Iterable[Record]) -> Iterator[Record]:
    """The fastest exact kernel of each call."""
    best: dict[object, Record] = {}
    for record in records:
        if is_exact(record["kernel"]):
            key = tuple(str(record.get(field)) for field in ONE_CALL)
            best[key] = min(best.get(key, record), record, key=lambda r: float(r["ms"]))
    yield from best.values()


def table(sets: Iterable[str], best: bool, source: Source = HERE) -> Table:
    """One row for each measured call and kernel, or only for its fastest exact kernel."""
    wanted, limit = set(sets), ceilings(source)
    lines = newest(source.read("costs"), "kernel", *ONE_CALL).values()
    timed: Iterable[Record] = [line for line in lines if line["set"] in wanted and not state(line)]
    return Table(HEAD, [_row(line, reach(line, limit)) for line in (fastest(timed) if best else timed)])


def _row(record: Record, reached: Reach) -> list[str]:
    head = [record["shape"], ", ".join(map(str, record["sizes"])), record["mask"], record["step"]]
    rates = ["–" if rate is None else f"{rate:.0f}" for rate in (reached.tflops, reached.gbs)]
    percent = "–" if reached.percent is None else f"{reached.percent:.0f} %"
    return [*head, f"`{record['kernel']}`", f"{record['ms']:.3f}", *rates, reached.bound or "–", percent]


def measure(device: str, side: int = SIDE, copied: int = COPIED_BYTES) -> Record:
    """The two ceilings, in the same way as every other time here."""
    import torch

    from benchmarks.timing import median_ms

    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)

    def multiply() -> None:
        torch.mm(left, right, out=product)

    def copy() -> None:
        target.copy_(source)

    ms, spread = median_ms(multiply, device)
    record: Record = {"benchmark": "ceilings", "ok": True, "side": side, "copied_bytes": copied}
    record |= {"matmul_ms": ms, "matmul_spread_ms": spread, "matmul_tflops": round(2 * side**3 / ms / 1e9, 1)}
    source = torch.zeros(copied, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    ms, spread = median_ms(copy, device)
    return record | {"copy_ms": ms, "copy_spread_ms": spread, "copy_gbs": round(2 * copied / ms / 1e6, 1)}


def main() -> int:
    args = _arguments()
    if args.measure:
        from benchmarks.environment import append, facts

        record = measure("cuda")
        append(RESULTS / f"ceilings_{args.gpu}.jsonl", record | facts("cuda"))
        print(f"{record['matmul_tflops']:.0f} TFLOP/s in bf16, {record['copy_gbs']:.0f} GB/s")
        return 0
    rows = table(args.sets, args.best, Source(args.gpu))
    if not rows.rows:
        print(f"nothing measured: no line of these sets in benchmarks/results/costs_{args.gpu}.jsonl")
    elif args.markdown:
        print(rows.markdown(), end="")
    else:
        rows.print()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure the ceilings of this GPU instead")
    parser.add_argument("--gpu", default=GPU, help="suffix of the result files")
    parser.add_argument("--sets", type=lambda text: text.split(","), default=["models", "sweep", "fit", "held_out"])
    parser.add_argument("--best", action="store_true", help="only the fastest exact kernel of each call")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
