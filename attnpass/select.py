"""Which kernel takes a call, and why: the pure heart of the pass.

No environment, no ``torch.cuda``, no import of a kernel library in here. Facts come in as values, so that every rule
can be tested with invented machines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

from attnpass.call import AttentionCall
from attnpass.checks import rejections
from attnpass.config import Config
from attnpass.errors import KernelUnavailableError, UnknownKernelError, closest
from attnpass.kernel import Kernel
from attnpass.limits import Code, Rejection
from attnpass.machine import Machine
from attnpass.preference import auto_order, faster_as_written

AUTO = "auto"
NATIVE = "native"


class Reason(str, Enum):
    """Why a decision came out as it did. Stable: it is in the JSON report."""

    REQUESTED = "requested"
    AUTO = "auto"
    TUNED = "tuned"
    NONE_ACCEPTED = "none_accepted"
    LIMIT = "limit"
    USER_CHOICE = "user_choice"
    LOWERED = "lowered"
    AS_WRITTEN = "as_written"


@dataclass(frozen=True, slots=True)
class Trial:
    """One kernel asked about one call: no rejections means that it would take it.

    Attributes:
        kernel: its name.
        rejections: all reasons why not.
        spelled: was it asked to read the mask as the tensor that the program made, since it cannot compute its meaning?
    """

    kernel: str
    rejections: tuple[Rejection, ...]
    spelled: bool = False

    @property
    def accepted(self) -> bool:
        return not self.rejections


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one call.

    Attributes:
        call: the call.
        kernel: name of the chosen kernel; ``native`` if the user's call stays as it is.
        reason: why.
        tried: names that were considered, in order of preference, ``auto`` spelled out.
        trials: every registered kernel with all its reasons, so that "why not X?" always has an answer.
        note: one sentence more, where the reason alone does not say it.
        lowered: a chain written by hand becomes one call of SDPA, and ``kernel`` is ``native``.
        clause: the clause of ``ATTNPASS_KERNEL`` that gave the wish list, "" where it is a plain list.
        skipped: earlier clauses of which the graph does not show whether they hold, with the reason.
    """

    call: AttentionCall
    kernel: str
    reason: Reason
    tried: tuple[str, ...]
    trials: tuple[Trial, ...]
    note: str = ""
    lowered: bool = False
    clause: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def rewritten(self) -> bool:
        return self.kernel != NATIVE or self.lowered

    @property
    def asked(self) -> AttentionCall:
        """The call as the chosen kernel takes it: with the meaning of the mask, or with the tensor that spells it."""
        if any(trial.kernel == self.kernel and trial.spelled for trial in self.trials):
            return replace(self.call, mask=self.call.mask.as_spelled())
        return self.call

    def rejections(self, kernel: str) -> tuple[Rejection, ...]:
        """Why ``kernel`` does not take the call; empty if it would."""
        return next((t.rejections for t in self.trials if t.kernel == kernel), ())

    @property
    def refused(self) -> tuple[Trial, ...]:
        """The considered kernels that refused before one accepted, in order."""
        by_name = {t.kernel: t for t in self.trials}
        names = self.tried[: self.tried.index(self.kernel)] if self.kernel in self.tried else self.tried
        return tuple(by_name[name] for name in names if name in by_name and not by_name[name].accepted)


def resolve_wishes(wishes: Sequence[str], kernels: Mapping[str, Kernel], clause: str = "") -> tuple[str, ...]:
    """Turn what the user wrote into registered names, aliases followed; ``auto`` stays. ``clause`` is where it stands.

    Raises:
        UnknownKernelError: a name that no kernel has; the message lists the legal ones.
    """
    by_name = {name: kernel.name for kernel in kernels.values() for name in (kernel.name, *kernel.aliases)}
    for wish in wishes:
        if wish != AUTO and wish not in by_name:
            names = [AUTO, *kernels]
            raise UnknownKernelError(
                f"choosing a kernel: ATTNPASS_KERNEL names {wish!r}{_standing(clause)}, which is not a kernel"
                f"{closest(wish, [AUTO, *by_name]) or '.'} Legal names: {', '.join(names)}"
            )
    return tuple(wish if wish == AUTO else by_name[wish] for wish in wishes)


def check_wishes(wishes: Sequence[str], kernels: Mapping[str, Kernel], machine: Machine, clause: str = "") -> None:
    """Fail at compile start if a kernel that the user named cannot be used at all because of its library.

    Raises:
        KernelUnavailableError: with the version found, the version wanted and the install line.
    """
    for name in resolve_wishes(wishes, kernels, clause):
        if name == AUTO:
            continue
        limits = kernels[name].limits_for(machine)
        problem = machine.library_problem(limits.library)
        if problem:
            raise KernelUnavailableError(
                f"choosing a kernel: ATTNPASS_KERNEL names {name}{_standing(clause)}, whose library "
                f"{limits.library.name} is {problem} here, needs {limits.library.wanted}; "
                f"run: {limits.library.installation()}"
            )


def select(
    call: AttentionCall,
    kernels: Mapping[str, Kernel],
    machine: Machine,
    config: Config,
    extra: Mapping[str, Sequence[Rejection]] | None = None,
    fastest: tuple[str, str] | None = None,
) -> Decision:
    """Decide who computes ``call``. Pure.

    Args:
        call: the call in canonical form.
        kernels: every registered kernel by name.
        machine: the facts about the device that the call runs on.
        config: the settings in force.
        extra: reasons found outside this function for this very call, by kernel name (a failed verification).
        fastest: the kernel that ``auto`` means for this very call, since it was timed, and what the clock said.
    """
    chosen = config.policy.choose(call)
    made = partial(Decision, call, clause=chosen.clause, skipped=chosen.skipped)
    trials = tuple(_trial(k, call, machine, (extra or {}).get(k.name, ())) for k in kernels.values())
    spelled = {trial.kernel for trial in trials if trial.spelled}
    order = spell_out(resolve_wishes(chosen.wishes, kernels), machine, call, spelled, fastest[0] if fastest else "")
    choice = _users_own_choice(call, machine)
    if choice:
        return made(NATIVE, Reason.USER_CHOICE, _names(order), trials, choice)
    accepted = {trial.kernel for trial in trials if trial.accepted}
    as_written = faster_as_written(machine, call)
    for name, reason in order:
        if reason is Reason.AUTO and as_written:
            return made(NATIVE, Reason.AS_WRITTEN, _names(order), trials, as_written)
        inexact = reason is Reason.AUTO and not kernels[name].limits_for(machine).exact
        if name == NATIVE or (name in accepted and not inexact):
            note = fastest[1] if fastest and reason is Reason.TUNED else ""
            return made(name, reason, _names(order), trials, note)
    if not order:
        return made(NATIVE, Reason.AUTO, (), trials, f"auto leaves the choice to PyTorch on {machine.kind}")
    return made(NATIVE, Reason.NONE_ACCEPTED, _names(order), trials)


def spell_out(
    wishes: Sequence[str],
    machine: Machine,
    call: AttentionCall | None = None,
    spelled: Collection[str] = (),
    fastest: str = "",
) -> tuple[tuple[str, Reason], ...]:
    """Replace ``auto`` by what it means here for ``call``; each name with the reason that it would be chosen for.

    Args:
        wishes: registered names and ``auto``.
        machine: where the call runs.
        call: the call; without one, every name that ``auto`` may mean.
        spelled: kernels that would read the call's mask as a tensor.
        fastest: what the clock said that ``auto`` means, or "".
    """
    order: dict[str, Reason] = {}
    for wish in wishes:
        if wish != AUTO:
            order.setdefault(wish, Reason.REQUESTED)
            continue
        if fastest:
            order.setdefault(fastest, Reason.TUNED)
        for name in auto_order(machine, call, spelled):
            order.setdefault(name, Reason.AUTO)
    return tuple(order.items())


def _trial(kernel: Kernel, call: AttentionCall, machine: Machine, extra: Sequence[Rejection]) -> Trial:
    """Ask one kernel; a mask that it cannot compute from its meaning is offered as the tensor that spells it."""
    if kernel.keeps:
        return Trial(kernel.name, ())
    found = _reasons(kernel, call, machine)
    if found and call.mask.spelled is not None:
        spelled = replace(call, mask=call.mask.as_spelled())
        if not _reasons(kernel, spelled, machine):
            return Trial(kernel.name, tuple(extra), spelled=True)
    return Trial(kernel.name, (*found, *extra))


def _reasons(kernel: Kernel, call: AttentionCall, machine: Machine) -> list[Rejection]:
    found = rejections(kernel.limits_for(machine), call, machine)
    if not any(reason.code in (Code.DEVICE, Code.RANK) for reason in found):
        found += kernel.check(call, machine)
    return found


def _users_own_choice(call: AttentionCall, machine: Machine) -> str:
    if call.context.sdpa_kernel is not None:
        return f"the program chose {', '.join(call.context.sdpa_kernel) or 'no backend'} with sdpa_kernel at this place"
    around = machine.user_choice()
    return f"sdpa_kernel around the compiled call allows only: {around}" if around else ""


def _standing(clause: str) -> str:
    return f" in the clause {clause!r}" if clause else ""


def _names(order: Sequence[tuple[str, Reason]]) -> tuple[str, ...]:
    return tuple(name for name, _ in order)
