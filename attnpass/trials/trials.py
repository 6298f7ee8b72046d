"""All that running kernels on this machine has taught, and teaches: are they right, and how fast?

One object for a graph: the evidence that a decision asks for, and the watcher that `attnpass.apply` may have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch._guards import CompileContext

from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine, Machines
from attnpass.select.auto import is_measured, only_if_named
from attnpass.select.evidence import Timed
from attnpass.settings.config import Config
from attnpass.trials.cache import cache_folder
from attnpass.trials.tuner import EACH_SECONDS, Candidate, Tuner
from attnpass.trials.validate import Validator
from attnpass.trials.verify import Verifier

UNASKED_SECONDS = 0.3  # of measuring a call that nobody measured before
GRAPH_SECONDS = 1.0  # for all such calls of one graph
_validators: dict[Path, Validator] = {}
_tuners: dict[Path, Tuner] = {}


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of one graph.

    Attributes:
        kernels: by name.
        validator: tries a library's kernel before it is used, or None.
        tuner: times the kernels that take a call, or None.
        thorough: is every call timed? If not, only those of which nothing was measured, and briefly.
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
        if self.tuner is None or not (self.thorough or self._is_worth_a_look(decision, machine)):
            return None
        candidates, seconds = self.candidates(decision, machine), EACH_SECONDS
        if not self.thorough:
            candidates, seconds = [each for each in candidates if not each.kernel.compiles], UNASKED_SECONDS
        tuned = self.tuner.fastest(decision.call, candidates, machine, seconds)
        return None if tuned is None else Timed(tuned.winner, tuned.ms)

    def _is_worth_a_look(self, decision: Decision, machine: Machine) -> bool:
        """Is a call to be timed unasked? Where a kernel that compiles is preferred, the rule stands."""
        left = self.spent < GRAPH_SECONDS
        return left and not self.kernels[decision.kernel].compiles and not is_measured(decision.call, machine)

    def candidates(self, decision: Decision, machine: Machine) -> list[Candidate]:
        """The exact kernels that take the call and proved themselves, in the order in which ``auto`` would try them."""
        order = [*decision.tried, *(name for name in self.kernels if name not in decision.tried)]
        answers = {answer.kernel: answer for answer in decision.answers if answer.accepted}
        found = []
        for kernel in (self.kernels[name] for name in order if name in answers):
            if kernel.keeps or not kernel.candidate or not kernel.limits_for(machine).exact:
                continue
            if only_if_named(kernel.name, decision.call):
                continue
            if not self.refusals(kernel, replace(decision, kernel=kernel.name).asked, machine):
                found.append(Candidate(kernel, answers[kernel.name].spelled))
        return found


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
