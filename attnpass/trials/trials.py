"""All that running kernels on this machine has taught, and teaches: are they right, and how fast?

One object for a graph: the evidence that a decision asks for, and the watcher that `attnpass.apply` may have.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._guards import CompileContext

from attnpass.graph.symbolic import hint
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine, Machines
from attnpass.select.auto import only_if_named, pytorchs_order
from attnpass.select.costs import cheapest
from attnpass.select.evidence import Timed
from attnpass.settings.config import Config
from attnpass.trials.cache import cache_folder
from attnpass.trials.tuner import Candidate, Tuner, hopeless_above
from attnpass.trials.validate import Validator
from attnpass.trials.verify import Verifier

UNASKED_SECONDS = 0.3  # of measuring a call
GRAPH_SECONDS = 1.0  # for all calls of one graph
RUNS = 5  # of each kernel, which even the shortest measurement takes
SLOWEST_FLOPS = 1e14  # a second: what a GPU that nobody measured may be slow as; an A100 reaches twice that
_validators: dict[Path, Validator] = {}
_tuners: dict[Path, Tuner] = {}


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of one graph.

    Attributes:
        kernels: by name.
        validator: tries a library's kernel before it is used, or None.
        tuner: times the kernels that take a call, or None.
        thorough: is time no object? If not, calls are timed briefly, and by no kernel that compiles for seconds.
        verifier: compares rewritten calls with the program at run time, or None.
    """

    kernels: Mapping[str, Kernel]
    validator: Validator | None = None
    tuner: Tuner | None = None
    verifier: Verifier | None = None
    thorough: bool = True
    before: float = 0.0  # what the tuner had spent when this graph began

    @classmethod
    def of(cls, config: Config, kernels: Mapping[str, Kernel], machines: Machines) -> Trials:
        """What ``config`` asks for, on ``machines``; what was learnt is kept for each cache folder and process."""
        asked = tuner(config)
        spent = asked.spent if asked else 0.0
        verifier = _verifier(config, kernels, machines)
        return cls(kernels, validator(config), asked, verifier, bool(config.tune), spent)

    @property
    def spent(self) -> float:
        """Seconds that kernels were timed for since this graph began."""
        return self.tuner.spent - self.before if self.tuner else 0.0

    def known(self, call: AttentionCall, index: int) -> Mapping[str, Sequence[Rejection]]:
        return self.verifier.known(call, index) if self.verifier else {}

    def refusals(self, kernel: Kernel, call: AttentionCall, machine: Machine) -> tuple[Rejection, ...]:
        return self.validator.refusals(kernel, call, machine) if self.validator else ()

    def fastest(self, decision: Decision, machine: Machine) -> Timed | None:
        if self.tuner is None:
            return None
        if not self.thorough:
            return self._unasked(decision, machine)
        tuned = self.tuner.fastest(decision.call, self.candidates(decision, machine), machine)
        return None if tuned is None else Timed(tuned.winner, tuned.ms)

    def _unasked(self, decision: Decision, machine: Machine) -> Timed | None:
        """Those that compile nothing are timed; of the others counts what the table says, or else the rule.

        Only where ``auto`` has several to choose from: a CPU has one kernel, elsewhere PyTorch chooses. And a long call
        takes too long to be timed unasked.
        """
        assert self.tuner is not None
        if machine.kind != "cuda" or self.spent >= GRAPH_SECONDS:
            return None
        compiled = {name for name, kernel in self.kernels.items() if kernel.compiles}
        by_table = {name: ms for name, ms in decision.ms.items() if name in compiled and name in decision.tried}
        quick = set(self._hopeful(decision, machine)) - compiled
        if decision.kernel in compiled - set(by_table) or _seconds(decision) * RUNS * len(quick) > UNASKED_SECONDS:
            return None
        candidates = self.candidates(decision, machine, quick)
        tuned = self.tuner.fastest(decision.call, candidates, machine, UNASKED_SECONDS, least=1 if by_table else 2)
        if tuned is None:
            return None
        best = cheapest((tuned.winner, *by_table), {tuned.winner: tuned.ms[tuned.winner], **by_table})
        return Timed(best, tuned.ms, by_table)

    def _hopeful(self, decision: Decision, machine: Machine) -> list[str]:
        """Kernels that may be the fastest. What the table rules out, or does not know of a library, is not imported."""
        accepted = [answer.kernel for answer in decision.answers if answer.accepted]
        costs = {name: ms for name, ms in decision.ms.items() if name in accepted}
        if not costs:
            return accepted
        limit = hopeless_above(costs.values())
        unknown = set(pytorchs_order(machine)) - set(costs)
        return [name for name in accepted if name in unknown or costs.get(name, math.inf) <= limit]

    def candidates(self, decision: Decision, machine: Machine, names: Collection[str] | None = None) -> list[Candidate]:
        """The exact kernels that take the call and proved themselves, in the order in which ``auto`` would try them.

        Args:
            decision: about the call.
            machine: where.
            names: only these; None for all.
        """
        order = [*decision.tried, *(name for name in self.kernels if name not in decision.tried)]
        answers = {answer.kernel: answer for answer in decision.answers if answer.accepted}
        found = []
        for kernel in (self.kernels[name] for name in order if name in answers and (names is None or name in names)):
            if kernel.keeps or not kernel.candidate or not kernel.limits_for(machine).exact:
                continue
            if only_if_named(kernel.name, decision.call):
                continue
            if not self.refusals(kernel, replace(decision, kernel=kernel.name).asked, machine):
                found.append(Candidate(kernel, answers[kernel.name].spelled))
        return found


def _seconds(decision: Decision) -> float:
    """What the fastest kernel takes, by the table or roughly; 0 where a size is not known."""
    if decision.ms:
        return min(decision.ms.values()) / 1000
    call = decision.call
    sizes = [hint(size) or 0 for size in (call.B, call.H, call.Sq, call.Sk, call.D)]
    return 4 * math.prod(sizes) * (3.5 if call.needs_grad else 1.0) / SLOWEST_FLOPS


def validator(config: Config) -> Validator | None:
    """Tries kernels of libraries before they are used, unless ``ATTNPASS_PROBE=0``."""
    folder = cache_folder(config.cache) if config.probe else None
    return None if folder is None else _validators.setdefault(folder, Validator(folder))


def tuner(config: Config) -> Tuner | None:
    """Times kernels unless ``ATTNPASS_TUNE=0``.

    Unasked never where several processes work together: two that choose differently would not compute the same.
    """
    wanted = config.tune if config.tune is not None else not _is_one_of_several()
    folder = cache_folder(config.cache) if wanted else None
    return None if folder is None else _tuners.setdefault(folder, Tuner(folder))


def _is_one_of_several() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def forget() -> None:
    """Forget what this process has tried and timed; what is kept in cache folders stays."""
    _validators.clear()
    _tuners.clear()


def _verifier(config: Config, kernels: Mapping[str, Kernel], machines: Machines) -> Verifier | None:
    compile_id = CompileContext.current_compile_id()
    if not config.verify or compile_id is None:
        return None
    return Verifier(f"frame {compile_id.frame_id}", kernels, machines)
