"""A policy against the registered kernels and the machine: every name in every clause, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attnpass.errors import KernelUnavailableError, UnknownKernelError, closest
from attnpass.ir.decision import AUTO
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.settings.policy import Policy


def resolve_policy(policy: Policy, kernels: Mapping[str, Kernel]) -> tuple[str, ...]:
    """The registered names of all kernels that some clause names, in order, aliases followed; ``auto`` stays.

    Raises:
        UnknownKernelError: a name that no kernel has, with the clause that it stands in; the message lists the legal
            ones.
    """
    return tuple(dict.fromkeys(name for _, name in _named(policy, kernels)))


def check_policy(policy: Policy, kernels: Mapping[str, Kernel], machine: Machine) -> None:
    """Fail at compile start if a kernel that some clause names cannot be used at all because of its library.

    Raises:
        KernelUnavailableError: with the clause, the version found, the version wanted and the install line.
    """
    for standing, name in _named(policy, kernels):
        if name == AUTO:
            continue
        library = kernels[name].limits_for(machine).library
        problem = machine.library_problem(library)
        if problem:
            raise KernelUnavailableError(
                f"choosing a kernel: ATTNPASS_KERNEL names {name}{standing}, whose library {library.name} is {problem} "
                f"here, needs {library.wanted}; run: {library.installation()}"
            )


def _named(policy: Policy, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, str]]:
    """Where each name stands, in words, and the registered name that it means."""
    meant = {AUTO: AUTO, **{name: each.name for each in kernels.values() for name in (each.name, *each.aliases)}}
    for clause, wishes in policy.wish_lists():
        standing = f" in the clause {clause!r}" if clause else ""
        for wish in wishes:
            if wish not in meant:
                raise UnknownKernelError(
                    f"choosing a kernel: ATTNPASS_KERNEL names {wish!r}{standing}, which is not a kernel"
                    f"{closest(wish, list(meant)) or '.'} Legal names: {', '.join([AUTO, *kernels])}"
                )
            yield standing, meant[wish]
