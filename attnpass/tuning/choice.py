"""From a decision that ``auto`` took to the kernels that are worth timing for it, and the fastest of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from attnpass.kernel import Kernel
from attnpass.machine import Machine
from attnpass.probe import Prover
from attnpass.select import Decision
from attnpass.tuning.tuner import Candidate, Tuner


def timed(
    decision: Decision, kernels: Mapping[str, Kernel], machine: Machine, prover: Prover | None, tuner: Tuner
) -> tuple[str, str] | None:
    """The fastest of the exact kernels that take the call, and what the clock said; None if it said nothing."""
    tuned = tuner.fastest(decision.call, candidates(decision, kernels, machine, prover), machine)
    return None if tuned is None else (tuned.winner, f"timed here: {tuned}")


def candidates(
    decision: Decision, kernels: Mapping[str, Kernel], machine: Machine, prover: Prover | None
) -> list[Candidate]:
    """The exact kernels that take the call and proved themselves, in the order in which ``auto`` would try them."""
    order = [*decision.tried, *(name for name in kernels if name not in decision.tried)]
    trials = {trial.kernel: trial for trial in decision.trials if trial.accepted}
    found = []
    for kernel in (kernels[name] for name in order if name in trials):
        if kernel.keeps or not kernel.candidate or not kernel.limits_for(machine).exact:
            continue
        asked = replace(decision, kernel=kernel.name).asked
        if prover is None or not prover.refusals(kernel, asked, machine):
            found.append(Candidate(kernel, trials[kernel.name].spelled))
    return found
