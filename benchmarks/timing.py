"""Time and memory of one step."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

LOCK = "BENCHMARK_LOCK"


@contextmanager
def alone() -> Iterator[None]:
    """The device for ourselves, among processes that are given the same file as ``BENCHMARK_LOCK``.

    So they compile side by side and measure one after the other.
    """
    with locked(os.environ.get(LOCK)):
        yield


@contextmanager
def preparing() -> Iterator[None]:
    """Nobody measures `alone` while we, and others beside us, make ready and use the device for it."""
    with locked(os.environ.get(LOCK), exclusive=False):
        yield


@contextmanager
def locked(path: str | None, exclusive: bool = True) -> Iterator[None]:
    """Hold the lock of the file ``path``, if there is one: alone, or with all others that do not want it alone."""
    if not path:
        yield
        return
    import fcntl

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def median_ms(step: Callable[[], None], device: str, rep: int = 120) -> tuple[float, float]:
    """Median and the distance between the 20th and 80th percentile; nothing with ``BENCHMARK_COMPILE_ONLY``.

    So a first run of several processes at once can fill the compiler's caches for the one that measures. Beside other
    processes (``BENCHMARK_LOCK``) it is the lowest of three medians: the first run of another may fall into one.

    Args:
        step: what is timed.
        device: ``cuda``, or another kind.
        rep: milliseconds that a median takes, on a GPU.
    """
    if os.environ.get("BENCHMARK_COMPILE_ONLY"):
        return 0.0, 0.0
    if device == "cuda":
        from triton.testing import do_bench

        found = []
        for _ in range(3 if os.environ.get(LOCK) else 1):
            with alone():
                found.append(do_bench(step, warmup=25, rep=rep, quantiles=[0.2, 0.5, 0.8]))
        low, middle, high = min(found, key=lambda one: one[1])
        return round(middle, 4), round(high - low, 4)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1000)
    return round(statistics.median(times), 4), round(max(times) - min(times), 4)


def peak_mib(step: Callable[[], None]) -> float:
    """Memory that a step takes at its peak beyond what was there, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
