"""What was decided about one call, and why: who was asked, what each answered, who computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from torch.fx import Node

from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Rejection
from attnpass.ir.meaning import Meaning
from attnpass.ir.wiring import Wiring

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
class Answer:
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


class Basis(str, Enum):
    """On what ``auto`` chose. Stable: it is in the JSON report."""

    CLOCK = "clock"  # kernels were timed on this machine
    TABLE = "table"  # committed measurements of this kind of GPU
    ORDER = "order"  # nothing was measured: the order in which PyTorch asks its kernels


@dataclass(frozen=True, slots=True)
class Missing:
    """A kernel that would be faster, and whose library is not there.

    Attributes:
        kernel: its name.
        ms: what a run is expected to cost.
        beside: what the chosen kernel is expected to cost, by the same table.
        install: the command.
    """

    kernel: str
    ms: float
    beside: float
    install: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one call.

    Attributes:
        call: the call.
        kernel: name of the chosen kernel; ``native`` if the user's call stays as it is, or becomes one call of SDPA.
        reason: why.
        tried: names that were considered, in order of preference, ``auto`` spelled out.
        answers: every registered kernel with all its reasons, so that "why not X?" always has an answer.
        note: one sentence more, where the reason alone does not say it.
        clause: the clause of ``ATTNPASS_KERNEL`` that gave the wish list, "" where it is a plain list.
        skipped: earlier clauses of which the graph does not show whether they hold, with the reason.
        ms: what a run costs with each kernel of which that is known, measured here (`Basis.CLOCK`) or expected.
            ``native`` is what PyTorch's own choice would cost, for the call as it is spelled.
        missing: what would be faster, if it were installed.
        wiring: the nodes that the call was read from, as it was decided; None outside of a graph.
        meaning: what was understood of its mask tensors; None where there are none.
        written: the nodes of the program that are the call, in its order; several of a chain written by hand.
        emitted: the lines of the nodes that took their place; reports that held the nodes would keep the copy alive.
    """

    call: AttentionCall
    kernel: str
    reason: Reason
    tried: tuple[str, ...]
    answers: tuple[Answer, ...]
    note: str = ""
    clause: str = ""
    skipped: tuple[str, ...] = ()
    ms: Mapping[str, float] = field(default_factory=dict)
    missing: Missing | None = None
    wiring: Wiring[Node] | None = None
    meaning: Meaning | None = None
    written: tuple[Node, ...] = ()
    emitted: tuple[str, ...] = ()

    @property
    def basis(self) -> Basis | None:
        """On what ``auto`` chose; None if it did not."""
        if self.reason is Reason.TUNED:
            return Basis.CLOCK
        if self.reason is not Reason.AUTO:
            return None
        return Basis.TABLE if self.kernel in self.ms else Basis.ORDER

    @property
    def rewritten(self) -> bool:
        """Is the call computed in another way than it is written?"""
        return self.kernel != NATIVE or self.reason is Reason.LOWERED

    @property
    def asked(self) -> AttentionCall:
        """The call as the chosen kernel takes it: with the meaning of the mask, or with the tensor that spells it."""
        if any(answer.kernel == self.kernel and answer.spelled for answer in self.answers):
            return replace(self.call, mask=self.call.mask.as_spelled())
        return self.call

    @property
    def mask_is_read(self) -> bool | None:
        """Does the kernel read the mask as a tensor? If not, it computes it from its meaning. None without a mask."""
        mask = self.asked.mask
        if not mask.terms and mask.bias is None:
            return None
        return mask.spelled is None and mask.tensor is not None

    def rejections(self, kernel: str) -> tuple[Rejection, ...]:
        """Why ``kernel`` does not take the call; empty if it would."""
        return next((t.rejections for t in self.answers if t.kernel == kernel), ())

    @property
    def refused(self) -> tuple[Answer, ...]:
        """The considered kernels that refused before one accepted, in order."""
        by_name = {t.kernel: t for t in self.answers}
        names = self.tried[: self.tried.index(self.kernel)] if self.kernel in self.tried else self.tried
        return tuple(by_name[name] for name in names if name in by_name and not by_name[name].accepted)
