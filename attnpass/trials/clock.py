"""How long steps take, on the device and on the host, measured in turns so that all share what disturbs.

And a bar for who waits meanwhile.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

ROUNDS = 5
ROUND_MS = 12.0  # of each step in each round
MOST = 40  # runs in a round: what they launch has to fit into the device's queue
SLEEP_CYCLES_PER_MS = 2_000_000  # more than any GPU makes in a millisecond


@dataclass(frozen=True, slots=True)
class Timing:
    """Of the rounds, milliseconds a run.

    Attributes:
        device_ms: time on the device, which never waits for the host; the median.
        host_ms: time that the host needs to launch a run; the least, since all that disturbs a host adds to it.
        spread_ms: between the fastest and the slowest round, on the device.
    """

    device_ms: float
    host_ms: float
    spread_ms: float = 0.0

    @property
    def ms(self) -> float:
        """What a run costs: the slower of device and host holds up the other."""
        return max(self.device_ms, self.host_ms)


def in_turns(
    steps: Mapping[str, Callable[[], object]], device: torch.device, seconds: float = float("inf")
) -> dict[str, Timing]:
    """Time each step, warm, in rounds of some runs each; the order turns from round to round.

    A GPU under load lowers its clock: on an H100 what was measured later was up to 8 % slower. So nobody goes first.

    Args:
        steps: what to run.
        device: where it runs.
        seconds: after this long no new round is begun; every step gets one.
    """
    start = time.perf_counter()
    runs = {name: _runs_a_round(step, device) for name, step in steps.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(ROUNDS):
        if number and time.perf_counter() - start > seconds:
            break
        for name in _turned(list(steps), number):
            found[name].append(_one_round(steps[name], *runs[name], device))
    return {name: _timing(rounds) for name, rounds in found.items()}


def _turned(names: list[str], number: int) -> Iterator[str]:
    turn = number % max(len(names), 1)
    yield from names[turn:] + names[:turn]


def _timing(rounds: list[tuple[float, float]]) -> Timing:
    device, host = zip(*rounds, strict=True)
    return Timing(statistics.median(device), min(host), max(device) - min(device))


def _runs_a_round(step: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """How many runs fill a round, and what a run takes at first sight, in ms. The first run of all is not counted."""
    for _ in range(2):
        step()
    _wait(device)
    start = time.perf_counter()
    step()
    step()
    _wait(device)
    one = (time.perf_counter() - start) * 500
    return max(2, min(MOST, int(ROUND_MS / max(one, 1e-3)))), one


def _one_round(step: Callable[[], object], runs: int, one: float, device: torch.device) -> tuple[float, float]:
    """Milliseconds a run, on the device and on the host."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(runs):
            step()
        _wait(device)
        took = (time.perf_counter() - start) * 1000 / runs
        return took, took
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(SLEEP_CYCLES_PER_MS * min(one * runs, 50.0)))  # the device waits until the host is ahead
    before.record()
    start = time.perf_counter()
    for _ in range(runs):
        step()
    launched = (time.perf_counter() - start) * 1000 / runs
    after.record()
    torch.cuda.synchronize(device)
    return before.elapsed_time(after) / runs, launched


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, gone when all is done; to be told the name of what is tried now.

    >>> with progress("B2 H32 S4096 D128, bf16, causal", 4) as trying:
    ...     trying("flash4")
    """
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("attnpass: {task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"tuning {what}", total=total)
        yield lambda name: bar.update(task, advance=1, description=f"tuning {what}: {name}")
