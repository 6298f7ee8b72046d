"""Which kernel takes a call, and why: the pure heart of the pass.

No environment, no ``torch.cuda``, no import of a kernel library in here. Facts come in as values, so that every rule
can be tested with invented machines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import AUTO, NATIVE, Answer, Decision, Reason
from attnpass.ir.limits import Code, Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import SWITCHES, Machine
from attnpass.select.auto import auto_order, faster_as_written
from attnpass.select.checks import rejections
from attnpass.select.evidence import NOTHING, Learnt
from attnpass.select.expected import costs_of, missing, with_clock
from attnpass.select.wishes import resolve_policy
from attnpass.settings.config import KERNEL, Config
from attnpass.settings.policy import Policy


def select(
    call: AttentionCall,
    kernels: Mapping[str, Kernel],
    machine: Machine,
    config: Config,
    learnt: Learnt = NOTHING,
) -> Decision:
    """Decide who computes ``call``. Pure.

    Args:
        call: the call in canonical form.
        kernels: every registered kernel by name.
        machine: the facts about the device that the call runs on.
        config: the settings in force.
        learnt: what running this very call has taught.
    """
    chosen = config.choose(call)
    answers = tuple(_ask(k, call, machine, learnt.refusals.get(k.name, ())) for k in kernels.values())
    wishes = resolve_policy(Policy(default=chosen.wishes), kernels, str(config.decisions or KERNEL))
    spelled = {answer.kernel for answer in answers if answer.spelled}
    timed = learnt.fastest
    order = _spelled_out(wishes, machine, call, spelled, timed.kernel if timed else "")
    costs = costs_of(answers, call, machine)
    ms = with_clock(timed, costs, call, machine) if timed else costs
    made = partial(
        Decision, call, tried=tuple(order), answers=answers, clause=chosen.clause, skipped=chosen.skipped, ms=ms
    )
    choice = _users_own_choice(call, machine)
    if not chosen.wishes:
        choice = f"the program calls {call.chosen} itself; the clause chosen=auto in ATTNPASS_KERNEL rewrites it"
    if choice:
        return made(NATIVE, Reason.USER_CHOICE, note=choice)
    accepted = {answer.kernel for answer in answers if answer.accepted}
    as_written = faster_as_written(machine, call)
    for name, reason in order.items():
        if reason is Reason.AUTO and as_written:
            return made(NATIVE, Reason.AS_WRITTEN, note=as_written)
        inexact = reason is Reason.AUTO and not kernels[name].limits_for(machine).exact
        if name == NATIVE or (name in accepted and not inexact):
            decision = made(name, reason, note=str(timed) if reason is Reason.TUNED else "")
            return replace(decision, missing=missing(decision, kernels, costs))
    if not order:
        return made(NATIVE, Reason.AUTO, note=f"auto leaves the choice to PyTorch on {machine.kind}")
    return made(NATIVE, Reason.NONE_ACCEPTED)


def _spelled_out(
    wishes: Iterable[str], machine: Machine, call: AttentionCall, spelled: Collection[str], timed: str
) -> dict[str, Reason]:
    """``auto`` replaced by what it means here for ``call``; each name with the reason that it would be chosen for.

    Args:
        wishes: registered names and ``auto``.
        machine: where the call runs.
        call: the call.
        spelled: kernels that would read the call's mask as a tensor.
        timed: what the clock said that ``auto`` means, or "".
    """
    order: dict[str, Reason] = {}
    for wish in wishes:
        if wish != AUTO:
            order.setdefault(wish, Reason.REQUESTED)
            continue
        if timed:
            order.setdefault(timed, Reason.TUNED)
        for name in auto_order(machine, call, spelled):
            order.setdefault(name, Reason.AUTO)
    return order


def _ask(kernel: Kernel, call: AttentionCall, machine: Machine, extra: Sequence[Rejection]) -> Answer:
    """Ask one kernel; a mask that it cannot compute from its meaning is offered as the tensor that spells it."""
    if kernel.keeps:
        return Answer(kernel.name, ())
    found = _reasons(kernel, call, machine)
    if found and call.mask.spelled is not None:
        read = _reasons(kernel, replace(call, mask=call.mask.as_spelled()), machine)
        refused = [Code.MASK in {reason.code for reason in reasons} for reasons in (found, read)]
        if not read or refused == [True, False]:  # it reads the tensor, but for what else is wrong
            return Answer(kernel.name, (*read, *extra), spelled=True)
    return Answer(kernel.name, (*found, *extra))


def _reasons(kernel: Kernel, call: AttentionCall, machine: Machine) -> list[Rejection]:
    found = [*_switched_off(kernel, call, machine), *rejections(kernel.limits_for(machine), call, machine)]
    if not any(reason.code in (Code.DEVICE, Code.RANK) for reason in found):
        found += kernel.check(call, machine)
    return found


def _switched_off(kernel: Kernel, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    """A list of backends at this place is for all kernels; a backend that is off in the process, for its own alone."""
    allowed = call.context.sdpa_kernel
    name, switch = SWITCHES.get(kernel.backend, ("", ""))
    if allowed is not None and kernel.backend not in allowed:
        wanted = f"one of the backends that sdpa_kernel allows here: {', '.join(allowed)}"
        yield Rejection(Code.DISABLED, "backend", kernel.backend or "none of PyTorch's", wanted)
    elif allowed is None and name and name not in machine.sdp_enabled:
        yield Rejection(Code.DISABLED, f"torch.backends.cuda.{switch}()", False, "True")


def _users_own_choice(call: AttentionCall, machine: Machine) -> str:
    """One backend is a choice, several are a restriction (`_switched_off`) that counts instead of the one around."""
    allowed = call.context.sdpa_kernel
    if allowed is not None and len(allowed) > 1:
        return ""
    if allowed is not None:
        return f"the program chose {', '.join(allowed) or 'no backend'} with sdpa_kernel at this place"
    around = machine.user_choice()
    return f"sdpa_kernel around the compiled call allows only: {around}" if around else ""
