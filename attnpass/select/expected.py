"""What kernels are expected to cost for a call, as far as a decision tells it: by the committed measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.decision import NATIVE, Answer, Decision, Missing, Reason
from attnpass.ir.limits import Code
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.select.auto import expected_ms, pytorchs_order
from attnpass.select.evidence import Timed

WORTH = 1.05  # times faster: from here on a library that is not there is named


def costs_of(answers: Sequence[Answer], call: AttentionCall, machine: Machine) -> Mapping[str, float]:
    """Milliseconds of a run by kernel, the cheapest first: of those that take the call, or lack only their library.

    ``native`` is PyTorch's own choice for a call of SDPA as it is spelled: the first in its order that takes it.
    """
    spelled = {answer.kernel for answer in answers if answer.spelled}
    found = expected_ms(machine, call, spelled)
    if not found:
        return {}
    able = {answer.kernel for answer in answers if all(reason.code is Code.LIBRARY for reason in answer.rejections)}
    costs = {name: ms for name, ms in found.items() if name in able}
    first = next((name for name in pytorchs_order(machine) if name in able), None)
    if first is not None and call.pattern is Pattern.SDPA:
        as_spelled = expected_ms(machine, call, {first}, (first,))
        costs |= {NATIVE: as_spelled[first]} if as_spelled else {}
    return dict(sorted(costs.items(), key=lambda one: one[1]))


def with_clock(timed: Timed, costs: Mapping[str, float], call: AttentionCall, machine: Machine) -> Mapping[str, float]:
    """What a clock said, and what ``native`` takes by it; by the table where PyTorch's choice was not timed as it is.

    Args:
        timed: what was timed.
        costs: `costs_of` the call.
        call: the call.
        machine: where.
    """
    native = {NATIVE: costs[NATIVE]} if NATIVE in costs else {}
    first = next((name for name in pytorchs_order(machine) if name in timed.timed), None)
    if first is not None and call.mask.spelled is None and call.pattern is Pattern.SDPA:
        native = {NATIVE: timed.timed[first]}
    return dict(sorted({**timed.ms, **native}.items(), key=lambda one: one[1]))


def missing(decision: Decision, kernels: Mapping[str, Kernel], costs: Mapping[str, float]) -> Missing | None:
    """The fastest kernel whose library is not installed, where ``auto`` chose and it would be faster by `WORTH`.

    In inference only: what is on PyPI of FlashAttention-3 has no backward. ``costs`` are the table's, where a clock
    chose as well: the two are not compared.
    """
    here = costs.get(decision.kernel)
    if decision.reason not in (Reason.AUTO, Reason.TUNED) or here is None or decision.call.needs_grad:
        return None
    absent = {each.kernel for each in decision.answers if [r.actual for r in each.rejections] == ["not installed"]}
    found = [(ms, name) for name, ms in costs.items() if name in absent and kernels[name].limits.exact]
    ms, name = min(found, default=(here, ""))
    return Missing(name, ms, here, kernels[name].limits.library.installation()) if ms * WORTH < here else None
