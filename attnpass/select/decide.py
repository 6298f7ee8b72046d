"""One decision for each call of a graph: choose, try, time, and choose again.

A chain written by hand that no kernel takes becomes one call of SDPA if that means the same, else it stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attnpass.find.found import Findings
from attnpass.graph.symbolic import is_hashable
from attnpass.graph.values import Source
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.decision import NATIVE, Answer, Decision, Reason
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine, Machines
from attnpass.select.checks import rejections
from attnpass.select.evidence import Evidence, Learnt
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.settings.policy import Choice

AS_SDPA = "no kernel takes it; it became one call of scaled_dot_product_attention, for which PyTorch chooses the kernel"


def decide(
    findings: Findings,
    kernels: Mapping[str, Kernel],
    machines: Machines,
    config: Config,
    evidence: Evidence,
) -> list[Decision]:
    """One decision for each call found; equal calls are decided once."""
    known: dict[tuple[Choice, AttentionCall], Decision] = {}
    decisions: list[Decision] = []
    for index, found in enumerate(findings.calls):
        chooser = _Chooser(kernels, machines[found.call.device], config, evidence)
        refusals = evidence.known(found.call, index)
        choices = []
        for one in (found, *found.alternatives()):
            call, key = one.call, None if refusals else decision_key(one.call, config)
            decision = known.get(key) if key is not None else None
            if decision is None:
                decision = chooser.choose(call, refusals)
            if key is not None:
                known[key] = decision
            nodes = (*one.dead, one.node)
            choices.append(replace(decision, call=call, wiring=one.wiring, meaning=one.meaning, written=nodes))
            if decision.reason not in (Reason.NONE_ACCEPTED, Reason.LOWERED):
                break
        decision = next((each for each in choices if each.kernel != NATIVE), choices[0])
        if decision.rewritten and config.limit is not None and sum(d.rewritten for d in decisions) >= config.limit:
            note = f"ATTNPASS_LIMIT={config.limit} stops before this call"
            decision = replace(decision, kernel=NATIVE, reason=Reason.LIMIT, note=note)
        decisions.append(decision)
    return decisions


def decision_key(call: AttentionCall, config: Config) -> Any:
    """What calls that get the same decision have in common; None where a size is symbolic."""
    anonymous = replace(call, node="", module="", source=Source())
    return (config.choose(call), anonymous) if is_hashable(anonymous) else None


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Who decides calls on one machine."""

    kernels: Mapping[str, Kernel]
    machine: Machine
    config: Config
    evidence: Evidence

    def choose(self, call: AttentionCall, refusals: Mapping[str, Sequence[Rejection]]) -> Decision:
        """Who computes ``call``, of which ``refusals`` are known beforehand."""
        return self._as_sdpa(self._proved(call, Learnt(refusals)), refusals.get(NATIVE, ()))

    def _proved(self, call: AttentionCall, learnt: Learnt) -> Decision:
        """Select; if the chosen kernel fails its trial, that is a reason like any other, and the next one is asked.

        Where ``auto`` chose and kernels are timed, the candidates are tried first and then timed.
        """
        while True:
            decision = select(call, self.kernels, self.machine, self.config, learnt)
            if learnt.fastest is None and decision.reason is Reason.AUTO:
                learnt = replace(learnt, fastest=self.evidence.fastest(decision, self.machine))
                if learnt.fastest is not None:
                    continue
            name = decision.kernel
            kernel = self.kernels[name]
            found = self.evidence.refusals(kernel, decision.asked, self.machine) if decision.rewritten else ()
            if not found:
                return decision
            learnt = replace(learnt, refusals={**learnt.refusals, name: [*learnt.refusals.get(name, ()), *found]})

    def _as_sdpa(self, decision: Decision, refusals: Sequence[Rejection]) -> Decision:
        """A refused chain as one call of SDPA, or with the reasons why SDPA cannot mean the same; all else as it is."""
        refused = decision.reason is Reason.NONE_ACCEPTED or (decision.reason is Reason.AUTO and not decision.tried)
        if decision.call.pattern is not Pattern.HANDWRITTEN or decision.rewritten or not refused:
            return decision
        call = replace(decision.call, mask=decision.call.mask.as_spelled())  # SDPA reads the mask as a tensor
        found = rejections(self.kernels[NATIVE].limits, call, self.machine)
        answer = Answer(NATIVE, (*found, *refusals), spelled=True)
        answers = tuple(answer if each.kernel == NATIVE else each for each in decision.answers)
        if answer.accepted:
            return replace(decision, answers=answers, reason=Reason.LOWERED, note=AS_SDPA)
        return replace(decision, answers=answers, tried=(*decision.tried, NATIVE))
