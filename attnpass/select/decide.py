"""One decision for each call of a graph: choose, try, time, and choose again.

A chain written by hand that no kernel takes becomes one call of SDPA if that means the same, else it stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from attnpass.select.evidence import Evidence
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
        machine = machines[found.call.device]
        extra = evidence.known(found.call, index)
        choices = []
        for one in (found, *found.alternatives()):
            call, key = one.call, None if extra else decision_key(one.call, config)
            decision = known.get(key) if key is not None else None
            if decision is None:
                decision = _select_proved(call, kernels, machine, config, evidence, extra)
                decision = _as_sdpa(decision, kernels[NATIVE], machine, extra.get(NATIVE, ()))
            if key is not None:
                known[key] = decision
            choices.append(replace(decision, call=call, wiring=one.wiring))
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
    return (config.kernel.choose(call), anonymous) if is_hashable(anonymous) else None


def _select_proved(
    call: AttentionCall,
    kernels: Mapping[str, Kernel],
    machine: Machine,
    config: Config,
    evidence: Evidence,
    extra: Mapping[str, Sequence[Rejection]],
) -> Decision:
    """Select; if the chosen kernel fails its trial, that is a reason like any other, and the next one is asked.

    Where ``auto`` chose and kernels are timed, the candidates are tried first and then timed.
    """
    reasons, fastest = dict(extra), None
    while True:
        decision = select(call, kernels, machine, config, reasons, fastest)
        if fastest is None and decision.reason is Reason.AUTO:
            fastest = evidence.fastest(decision, machine)
            if fastest is not None:
                continue
        kernel = kernels[decision.kernel]
        refusals = evidence.refusals(kernel, decision.asked, machine) if decision.rewritten else ()
        if not refusals:
            return decision
        reasons[decision.kernel] = [*reasons.get(decision.kernel, ()), *refusals]


def _as_sdpa(decision: Decision, native: Kernel, machine: Machine, extra: Sequence[Rejection]) -> Decision:
    """A refused chain as one call of SDPA, or with the reasons why SDPA cannot mean the same; all else as it is.

    ``extra`` are reasons found at run time (a failed verification).
    """
    refused = decision.reason is Reason.NONE_ACCEPTED or (decision.reason is Reason.AUTO and not decision.tried)
    if decision.call.pattern is not Pattern.HANDWRITTEN or decision.rewritten or not refused:
        return decision
    call = replace(decision.call, mask=decision.call.mask.as_spelled())  # SDPA reads the mask as a tensor
    answer = Answer(NATIVE, (*rejections(native.limits, call, machine), *extra), spelled=True)
    answers = tuple(answer if each.kernel == NATIVE else each for each in decision.answers)
    if answer.accepted:
        return replace(decision, answers=answers, reason=Reason.LOWERED, note=AS_SDPA)
    return replace(decision, answers=answers, tried=(*decision.tried, NATIVE))
