"""What running kernels on this machine has taught, as far as a decision asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine


@dataclass(frozen=True, slots=True)
class Learnt:
    """What running kernels has taught of one call.

    Attributes:
        refusals: reasons by kernel, such as a failed verification.
        fastest: the kernel that ``auto`` means, since it was timed, and what the clock said.
    """

    refusals: Mapping[str, Sequence[Rejection]] = field(default_factory=dict)
    fastest: tuple[str, str] | None = None


NOTHING = Learnt()


class Evidence(Protocol):
    """What `attnpass.trials` knows, and finds out when it is asked."""

    def known(self, call: AttentionCall, index: int) -> Mapping[str, Sequence[Rejection]]:
        """What earlier runs of the program found out about its ``index``-th call, as reasons by kernel."""

    def refusals(self, kernel: Kernel, call: AttentionCall, machine: Machine) -> tuple[Rejection, ...]:
        """Why ``kernel`` must not compute ``call`` on this machine; empty if it proved itself, or need not."""

    def fastest(self, decision: Decision, machine: Machine) -> tuple[str, str] | None:
        """Of the kernels that ``auto`` may choose, the one that a clock says is fastest, and what the clock said."""
