"""A call of the program's own size, with its own strides, on made-up data: what is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import RULES, MaskSpec, Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.trials.standalone import UnfitError, runnable_alone

SEEN = 0.9  # of a bool mask's keys
Step = Callable[[], object]


class Stage:
    """The operands of one call, made once for all kernels that are timed on it.

    Attributes:
        call: the call, with numbers for sizes.
        tensors: q, k, v, mask and sinks on the device; the mask only if a kernel reads it.
        padding: what a kernel reads that computes the mask from the padding in it. It hides nothing: how much the
            program's own hides is not known.
    """

    def __init__(self, call: AttentionCall) -> None:
        self.call = call
        try:
            kept = call.mask.spelled or call.mask.tensor
            self.tensors: dict[str, Tensor | None] = {
                "q": _like(call.q, call.needs_grad),
                "k": _like(call.k, call.needs_grad),
                "v": _like(call.v, call.needs_grad),
                "mask": None if kept is None else _like(kept),
                "sinks": None if call.sinks is None else _like(call.sinks),
            }
            self.padding = None
            if call.mask.has(Term.KEY_PADDING):
                shape = int(call.B), 1, 1, int(call.Sk)
                self.padding = torch.ones(shape, dtype=torch.bool, device=call.device)
        except (RuntimeError, AssertionError) as error:
            raise UnfitError(str(error)) from error

    def step(self, kernel: Kernel, machine: Machine, spelled: bool = False) -> Step:
        """One run of ``kernel``: forward, and backward too where gradients flow.

        Args:
            kernel: who computes the call.
            machine: where.
            spelled: does it read the mask as a tensor, although its meaning is known?

        Raises:
            UnfitError: the kernel refuses.
        """
        proved = self.call.mask.spelled is not None and not spelled
        tensors = {**self.tensors, "mask": self.padding} if proved else self.tensors
        mask = self.call.mask.as_spelled() if spelled else replace(self.call.mask, spelled=None)
        run = self._runnable(kernel, machine, tensors, mask, proved)
        given = [x for x in tensors.values() if x is not None]
        if not self.call.needs_grad:
            return lambda: run(*given)
        wanted = [x for x in given if x.requires_grad]
        weight = torch.randn_like(run(*given))
        return lambda: torch.autograd.grad(run(*given), wanted, weight)

    def _runnable(
        self, kernel: Kernel, machine: Machine, tensors: dict[str, Tensor | None], mask: MaskSpec, proved: bool
    ) -> Callable[..., Tensor]:
        call = self.call

        def adapt(found: AttentionCall) -> AttentionCall:
            rules = tuple(term for term in mask.terms if term.term in RULES)
            kept = replace(found.mask, terms=(*found.mask.terms, *rules), rows_may_be_empty=mask.rows_may_be_empty)
            return replace(found, mask=kept, softcap=call.softcap, needs_grad=call.needs_grad)

        options: dict[str, Any] = {"scale": call.scale, "enable_gqa": call.is_gqa, "dropout_p": call.dropout_p or 0.0}
        return runnable_alone(kernel, machine, tensors, options, adapt, proved)


def _like(spec: TensorSpec, grad: bool = False) -> Tensor:
    """Random numbers in a tensor of this shape, dtype and these strides."""
    reach = 1 + sum((int(size) - 1) * int(step) for size, step in zip(spec.shape, spec.stride, strict=True) if size)
    if spec.dtype == torch.bool:
        held = torch.rand(reach, device=spec.device) < SEEN
    else:
        held = torch.randn(reach, device=spec.device, dtype=spec.dtype)
    shaped = held.as_strided([int(size) for size in spec.shape], [int(step) for step in spec.stride])
    return shaped.detach().requires_grad_(grad)
