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
class Timed:
    """What a clock said about a call.

    Attributes:
        kernel: the fastest.
        timed: what a run of each costs, fastest first.
        by_table: what others cost by the table, which compile for too long to be timed unasked.
    """

    kernel: str
    timed: Mapping[str, float]
    by_table: Mapping[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> Mapping[str, float]:
        """All costs, the lowest first."""
        return dict(sorted({**self.by_table, **self.timed}.items(), key=lambda one: one[1]))

    def __str__(self) -> str:
        table = f"; by the table: {_listed(self.by_table)}" if self.by_table else ""
        return f"timed here: {_listed(self.timed)}{table}"


def _listed(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms:.3g} ms" for name, ms in costs.items())


@dataclass(frozen=True, slots=True)
class Learnt:
    """What running kernels has taught of one call.

    Attributes:
        refusals: reasons by kernel, such as a failed verification.
        fastest: what ``auto`` means, since it was timed.
    """

    refusals: Mapping[str, Sequence[Rejection]] = field(default_factory=dict)
    fastest: Timed | None = None


NOTHING = Learnt()


class Evidence(Protocol):
    """What `attnpass.trials` knows, and finds out when it is asked."""

    def known(self, call: AttentionCall, index: int) -> Mapping[str, Sequence[Rejection]]:
        """What earlier runs of the program found out about its ``index``-th call, as reasons by kernel."""

    def refusals(self, kernel: Kernel, call: AttentionCall, machine: Machine) -> tuple[Rejection, ...]:
        """Why ``kernel`` must not compute ``call`` on this machine; empty if it proved itself, or need not."""

    def fastest(self, decision: Decision, machine: Machine) -> Timed | None:
        """What a clock says of the kernels that ``auto`` may choose, or said before."""
