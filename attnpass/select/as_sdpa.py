"""A chain written by hand that no kernel takes: one call of SDPA if that means the same, else the chain as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from attnpass.ir.call import Pattern
from attnpass.ir.decision import Answer, Decision, Reason
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.select.checks import rejections

NOTE = "no kernel takes it; it became one call of scaled_dot_product_attention, for which PyTorch chooses the kernel"


def lowered(decision: Decision, native: Kernel, machine: Machine, extra: Sequence[Rejection] = ()) -> Decision:
    """Write a refused chain as SDPA, or say why SDPA cannot mean the same.

    Args:
        decision: what was decided; anything but a refused chain is given back as it is.
        native: the kernel of that name.
        machine: the facts about the device.
        extra: reasons found at run time (a failed verification).
    """
    refused = decision.reason is Reason.NONE_ACCEPTED or (decision.reason is Reason.AUTO and not decision.tried)
    if decision.call.pattern is not Pattern.HANDWRITTEN or decision.rewritten or not refused:
        return decision
    # PyTorch may choose a kernel whose gradients are wrong in rows that a large number hides; the chain's are right.
    limits = replace(native.limits, functorch=False, hidden_rows_train=False)
    call = replace(decision.call, mask=decision.call.mask.as_spelled())  # SDPA reads the mask as a tensor
    answer = Answer(native.name, (*rejections(limits, call, machine), *extra), spelled=True)
    answers = tuple(answer if each.kernel == native.name else each for each in decision.answers)
    if answer.accepted:
        return replace(decision, answers=answers, lowered=True, reason=Reason.LOWERED, note=NOTE)
    return replace(decision, answers=answers, tried=(*decision.tried, native.name))
