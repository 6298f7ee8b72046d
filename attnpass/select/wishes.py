"""A policy against the registered kernels and the machine: every name in every clause, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attnpass.errors import KernelUnavailableError, UnknownKernelError, closest
from attnpass.ir.decision import AUTO
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.settings.policy import Policy


def resolve_policy(policy: Policy, kernels: Mapping[str, Kernel]) -> tuple[str, ...]:
    """The registered names of all kernels that some clause names, aliases followed; ``auto`` stays.

    Raises:
        UnknownKernelError: a name that no kernel has, with the clause that it stands in.
    """
    lists = (resolve_wishes(wishes, kernels, clause) for clause, wishes in policy.wish_lists())
    return tuple(dict.fromkeys(name for names in lists for name in names))


def check_policy(policy: Policy, kernels: Mapping[str, Kernel], machine: Machine) -> None:
    """Fail at compile start if a kernel that some clause names cannot be used at all because of its library.

    Raises:
        KernelUnavailableError: with the clause, the version found, the version wanted and the install line.
    """
    for clause, wishes in policy.wish_lists():
        check_wishes(wishes, kernels, machine, clause)


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


def _standing(clause: str) -> str:
    return f" in the clause {clause!r}" if clause else ""
