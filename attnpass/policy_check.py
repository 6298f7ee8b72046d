"""A policy against the registered kernels and the machine: every name in every clause, before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping

from attnpass.kernel import Kernel
from attnpass.machine import Machine
from attnpass.policy import Policy
from attnpass.select import check_wishes, resolve_wishes


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
