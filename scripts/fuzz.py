"""Random programs through the whole backend, by hand and for hours: which come out wrong, and how many are rewritten.

    python scripts/fuzz.py --masks 30000 --chains 20000 --grads 5000 --seed 1
    python scripts/fuzz.py --masks 1 --only 4711 --shrink

A failure prints the program and its seed; ``--only SEED`` (with the same kind and the same ``--pure``) runs it again.
The same generators run for a few seconds in ``tests/test_fuzz.py``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tests.fuzz.programs import make
from tests.fuzz.shrink import shrunk
from tests.fuzz.trial import BAD, KERNELS, attempt

SHOWN = 60  # failing programs of one chunk that are printed
CHUNK = 100
COUNTED = ("found", "rewritten", "kept", "proved", "not proved")
VERDICTS = ("wrong", "crashed", "hung", "pytorch", "only uncompiled")


@dataclass(frozen=True)
class Job:
    """Seeds of one kind."""

    kind: str
    seeds: range
    kernels: tuple[str, ...]
    all_kernels: bool
    pure: bool
    compiled_every: int
    shrink: bool


@dataclass
class Tally:
    """What came of the programs of one kind; ``seconds`` are the processors'."""

    programs: int = 0
    seconds: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    kernels: dict[str, Counter[str]] = field(default_factory=dict)
    pass_seconds: dict[str, float] = field(default_factory=dict)
    slowest: dict[str, tuple[float, int]] = field(default_factory=dict)
    failing: list[tuple[str, int]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.programs += other.programs
        self.seconds += other.seconds
        self.skipped += other.skipped
        self.failing += other.failing
        for kernel, seconds in other.pass_seconds.items():
            self.took(kernel, seconds, other.slowest[kernel])
        for kernel, counts in other.kernels.items():
            self.kernels.setdefault(kernel, Counter()).update(counts)

    def took(self, kernel: str, seconds: float, slowest: tuple[float, int]) -> None:
        """Note the time of passes, and the slowest one with its seed."""
        self.pass_seconds[kernel] = self.pass_seconds.get(kernel, 0.0) + seconds
        self.slowest[kernel] = max(slowest, self.slowest.get(kernel, slowest))


def run(job: Job) -> Tally:
    """Try every seed of a job; failures are printed as they come."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)  # what the pass says of itself is counted, not read
    tally, start, shown = Tally(), time.process_time(), 0
    for seed in job.seeds:
        program = make(job.kind, seed, job.pure)
        kernels = job.kernels if job.all_kernels else (job.kernels[seed % len(job.kernels)],)
        trial = attempt(program, kernels, bool(job.compiled_every) and seed % job.compiled_every == 7)
        tally.programs += 1
        if trial.skipped:
            tally.skipped[trial.skipped] += 1
        for outcome in trial.outcomes:
            counts = tally.kernels.setdefault(outcome.kernel, Counter())
            counts.update(outcome.counts)
            counts["tried"] += 1
            tally.took(outcome.kernel, outcome.seconds, (outcome.seconds, seed))
            counts[outcome.verdict] += 1
            if outcome.verdict != "ok" and shown < SHOWN:
                print(f"\n{outcome.verdict.upper()} {job.kind} {seed} {outcome.kernel}: {outcome.text}", flush=True)
        bad = [outcome.kernel for outcome in trial.outcomes if outcome.verdict in BAD]
        if bad:
            tally.failing.append((job.kind, seed))
            if shown < SHOWN:
                print(shrunk(program, bad[0]) if job.shrink else program, flush=True)
            shown += 1
    tally.seconds = time.process_time() - start
    return tally


def main() -> int:
    """Run what the arguments ask for; the exit status says whether anything was wrong."""
    options = _arguments()
    kernels = KERNELS if options.kernels == "all" else tuple(options.kernels.split(","))
    bad = 0
    for kind in ("masks", "chains", "grads"):
        count = getattr(options, kind)
        if not count:
            continue
        seeds = range(options.seed, options.seed + count)
        if options.only is not None:
            seeds = range(options.only, options.only + 1)
        bad += _run_kind(kind, seeds, kernels, options)
    return 1 if bad else 0


def _run_kind(kind: str, seeds: range, kernels: Sequence[str], options: argparse.Namespace) -> int:
    """Run one kind and say what came of it, also when it is interrupted; how many failed."""
    total, start = Tally(), time.perf_counter()
    try:
        for part in _parts(kind, seeds, kernels, options):
            total.add(part)
            seconds = time.perf_counter() - start
            print(f"... {total.programs} {kind}, {len(total.failing)} failing, {seconds:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    _say(kind, total, time.perf_counter() - start)
    return len(total.failing)


def _parts(kind: str, seeds: range, kernels: Sequence[str], options: argparse.Namespace) -> Iterator[Tally]:
    all_kernels = options.every_kernel or options.only is not None
    rest = (tuple(kernels), all_kernels, options.pure, options.compiled_every, options.shrink)
    jobs = [Job(kind, seeds[at : at + CHUNK], *rest) for at in range(0, len(seeds), CHUNK)]
    if options.jobs == 1:
        yield from map(run, jobs)
        return
    with ProcessPoolExecutor(options.jobs) as pool:
        yield from pool.map(run, jobs)


def _say(kind: str, total: Tally, seconds: float) -> None:
    each = 1000 * total.seconds / max(total.programs, 1)
    print(f"\n{kind}: {total.programs} programs in {seconds:.0f} s ({each:.0f} ms of CPU each)", flush=True)
    print(f"  skipped {sum(total.skipped.values())}: {dict(total.skipped.most_common())}")
    for kernel, counts in total.kernels.items():
        tried = counts["tried"]
        numbers = ", ".join(f"{counts[name]} {name}" for name in (*COUNTED, *VERDICTS))
        mean, (slowest, seed) = 1000 * total.pass_seconds[kernel] / tried, total.slowest[kernel]
        print(f"  {kernel:12s} {tried} tried: {numbers}; {mean:.0f} ms a pass, at most {slowest:.1f} s (seed {seed})")
    if total.failing:
        print(f"  failing seeds: {' '.join(str(seed) for _, seed in total.failing[:200])}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=0, help="programs that make a mask")
    parser.add_argument("--chains", type=int, default=0, help="attention written by hand")
    parser.add_argument("--grads", type=int, default=0, help="the same with gradients")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="run this seed alone, with all kernels")
    parser.add_argument("--kernels", default="all", help="names separated by commas; each program takes one of them")
    parser.add_argument("--every-kernel", action="store_true", help="each program with every kernel")
    parser.add_argument("--pure", action="store_true", help="no writes")
    parser.add_argument("--shrink", action="store_true", help="make each failing program shorter before it is printed")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--compiled-every", type=int, default=40, help="every nth program is compiled in full; 0: none")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
