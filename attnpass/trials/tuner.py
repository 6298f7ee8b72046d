"""ATTNPASS_TUNE=1: time the kernels that take a call, on this machine, and remember the fastest.

A call is timed once for each signature (`attnpass.trials.signature`): alone, with its own sizes and strides, forward or
forward and backward. Only candidates that the cost table cannot rule out are timed. The outcome is kept in the cache
folder under everything that it depends on, so a second process asks the clock nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attnpass.ir.call import AttentionCall
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.select.costs import cheapest, features, host_ms, predicted
from attnpass.trials.cache import Store, machine_key, now
from attnpass.trials.clock import Timing, in_turns, progress
from attnpass.trials.example import Example, Step, UnfitError, undisturbed
from attnpass.trials.signature import signature, text_of
from attnpass.version import __version__

logger = logging.getLogger(__name__)
EACH_SECONDS = 2.0  # of measuring a signature; compiling a candidate comes on top
HOPELESS = 1.5  # times the best predicted cost: not worth a try
SHORT_MS = 0.1  # nor what costs so much more than the best: of short calls the table knows no more than that
NOISE = 0.01  # of kernels timed in turns; the table, which predicts, has 3 %
IN_ALL = 120.0  # seconds of a process; what comes later is chosen by the table


@dataclass(frozen=True, slots=True)
class Candidate:
    """A kernel that takes the call, with its mask computed or read as a tensor."""

    kernel: Kernel
    spelled: bool = False


@dataclass(frozen=True, slots=True)
class Tuned:
    """What the clock said about one signature.

    Attributes:
        winner: name of the fastest kernel; of several within the noise, the one preferred untimed.
        ms: what a run of each costs, fastest first.
        failed: kernels that could not be timed, and why.
        date: when, in ISO form.
    """

    winner: str
    ms: Mapping[str, float]
    failed: Mapping[str, str]
    date: str

    def __post_init__(self) -> None:
        if self.winner not in self.ms:
            raise ValueError(f"its winner cannot be {self.winner!r}")

    def __str__(self) -> str:
        return ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.ms.items())


Entry = tuple[Mapping[str, str], float]  # what an outcome is kept under, and the seconds for it
TUNED = Store("tuned", Tuned, shown=frozenset({"call", "gpu"}))


@dataclass(slots=True)
class Tuner:
    """Times calls and remembers what came out.

    Attributes:
        folder: the cache folder.
        in_all: seconds after which no further signature is timed.
        told: what is known in this process, by key.
        spent: seconds that went into timing so far.
    """

    folder: Path
    in_all: float = IN_ALL
    told: dict[str, Tuned | None] = field(default_factory=dict)
    spent: float = 0.0

    def fastest(
        self,
        call: AttentionCall,
        candidates: Sequence[Candidate],
        machine: Machine,
        seconds: float = EACH_SECONDS,
        least: int = 2,
    ) -> Tuned | None:
        """The outcome for this call's signature, timed now if it is not known yet.

        Args:
            call: the call as found.
            candidates: kernels that take it, in the order in which they would be preferred untimed.
            machine: where.
            seconds: of measuring; a first round is always finished.
            least: of how many candidates a time tells something.

        Returns:
            None if nothing can be timed: too few candidates, or a cost that depends on the program's data.
        """
        alone = signature(call)
        hopeful = [] if alone is None else promising(alone, candidates, machine)
        if alone is None or len(hopeful) < least:
            return None
        key = key_of(alone, hopeful, machine) | ({} if seconds == EACH_SECONDS else {"seconds": f"{seconds:g}"})
        name = str(key)
        if name not in self.told:
            kept = TUNED.recall(self.folder, key)
            is_one = kept is not None and kept.winner in {candidate.kernel.name for candidate in hopeful}
            self.told[name] = kept if is_one else self._within_time(alone, hopeful, machine, (key, seconds))
        return self.told[name]

    def _within_time(
        self, call: AttentionCall, candidates: Sequence[Candidate], machine: Machine, entry: Entry
    ) -> Tuned | None:
        if self.spent < self.in_all:
            return self._time(call, candidates, machine, entry)
        message = "attnpass: %.0f s went into tuning, the rest is not timed; `attnpass tune` does it ahead of time (%s)"
        logger.warning(message, self.spent, call.text())
        return None

    def _time(
        self, call: AttentionCall, candidates: Sequence[Candidate], machine: Machine, entry: Entry
    ) -> Tuned | None:
        key, seconds = entry
        start = time.perf_counter()
        with undisturbed(call.device, call.needs_grad):
            try:
                example = Example(call)
            except UnfitError as unfit:
                logger.debug("attnpass: %s cannot be timed: %s", text_of(call), unfit)
                return None
            with progress(call.text(), len(candidates) + 1) as trying:
                steps, failed = _steps(example, candidates, machine, trying)
                trying("timing")
                timings = in_turns(steps, call.device, seconds)
        took = time.perf_counter() - start
        self.spent += took
        if not timings:
            logger.warning("attnpass: nothing could be timed for %s: %s", call.text(), failed)
            return None
        costs = {name: cost_measured(name, timing, call, machine) for name, timing in timings.items()}
        tuned = judged([c.kernel.name for c in candidates], costs, failed)
        TUNED.remember(self.folder, key, tuned)
        logger.info("attnpass: tuned %s: %s (%.1f s)", call.text(), tuned, took)
        return tuned


def promising(call: AttentionCall, candidates: Sequence[Candidate], machine: Machine) -> list[Candidate]:
    """Those that the cost table does not rule out; one that it does not know may be the fastest."""
    costs = predicted(call, machine, {c.kernel.name: c.spelled for c in candidates})
    limit = hopeless_above(costs.values())
    return [c for c in candidates if costs.get(c.kernel.name, limit) <= limit]


def hopeless_above(costs: Iterable[float]) -> float:
    """The predicted cost above which nothing can be the fastest; 0 where nothing is predicted."""
    best = min(costs, default=0.0)
    return max(HOPELESS * best, best + SHORT_MS) if best else 0.0


def cost_measured(kernel: str, timing: Timing, call: AttentionCall, machine: Machine) -> float:
    """Milliseconds a run: the slower of device and host holds up the other.

    The host's time is the cost table's where it knows the kernel: here it is that of a process that compiles, and in
    training that of eager autograd, up to 0.6 ms where compiled code launches a backward in 0.1. Launches that a CUDA
    graph replays take none.
    """
    if machine.cuda_graphs:
        return timing.device_ms
    numbers = features(call)
    known = host_ms(kernel, numbers, machine) if numbers is not None else 0.0
    return max(timing.device_ms, known or (0.0 if call.needs_grad else timing.host_ms))


def judged(order: Sequence[str], costs: Mapping[str, float], failed: Mapping[str, str]) -> Tuned:
    """The winner: of those within the noise of the fastest, the first in the order of preference.

    Args:
        order: names as they would be preferred untimed.
        costs: milliseconds a run.
        failed: kernels that could not be timed, and why.
    """
    ms = {name: round(cost, 5) for name, cost in sorted(costs.items(), key=lambda one: one[1])}
    return Tuned(cheapest(order, ms, NOISE), ms, dict(failed), now())


def key_of(call: AttentionCall, candidates: Sequence[Candidate], machine: Machine) -> dict[str, str]:
    """Everything that the outcome depends on; a change in any of it calls for another measurement."""

    def named(candidate: Candidate) -> str:
        library = candidate.kernel.limits_for(machine).library
        return f"{candidate.kernel.name} {machine.versions.get(library.key, '')}".strip()

    return {
        "call": text_of(call),
        "candidates": ", ".join(map(named, candidates)),
        "attnpass": __version__,
        **machine_key(machine),
        "cudnn": str(machine.cudnn or ""),
        "driver": machine.driver,
        **({"launches": "replayed"} if machine.cuda_graphs else {}),
    }


def _steps(
    example: Example, candidates: Sequence[Candidate], machine: Machine, trying: Callable[[str], None]
) -> tuple[dict[str, Step], dict[str, str]]:
    """A warm run of each candidate, and why there is none of the others."""
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for candidate in candidates:
        name = candidate.kernel.name
        trying(name)
        made = _first_run(example, candidate, machine)
        if isinstance(made, str):
            failed[name] = made
        else:
            steps[name] = made
    return steps, failed


def _first_run(example: Example, candidate: Candidate, machine: Machine) -> Step | str:
    """A run that was warmed up once (libraries compile their kernels then), or what went wrong."""
    try:
        step = example.step(candidate.kernel, machine, candidate.spelled)
        step()
    except (UnfitError, RuntimeError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return step
