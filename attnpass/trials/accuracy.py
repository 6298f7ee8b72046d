"""Is a result right? How far it is from the reference, and how far it may be: PyTorch's own error is the yardstick.

The one judgement of kernels that are tried (`attnpass.trials.validate`), of the conformance tests
(`attnpass.testing`), and of calls that are compared with the program (`attnpass.trials.verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.ir.limits import Limits
from attnpass.trials.reference import Difference, allowed_error, difference, own_results, reference_attention

Operands = Sequence[Tensor | None]
NAMES = ("q", "k", "v", "mask", "sinks")


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One tensor that a kernel made, beside what it should be.

    Attributes:
        name: ``output`` or ``gradient of q``.
        found: how it differs.
        allowed: largest absolute error, or norm of the error over the norm of the reference if ``relative``.
        relative: is the kernel approximate, and judged by the norm?
    """

    name: str
    found: Difference
    allowed: float
    relative: bool = False

    @classmethod
    def of(cls, name: str, found: Difference, limits: Limits, allowed: float) -> Accuracy:
        """``allowed`` is for an exact kernel; an approximate one says itself how far it may be off."""
        if limits.relative_error is not None:
            return cls(name, found, limits.relative_error, relative=True)
        return cls(name, found, allowed)

    @property
    def error(self) -> float:
        return self.found.relative if self.relative else self.found.max_abs

    @property
    def good(self) -> bool:
        return self.found.nan == 0 and self.error <= self.allowed

    def __str__(self) -> str:
        kind = "relative" if self.relative else "absolute"
        nan = f" with {self.found.nan} NaN" if self.found.nan else ""
        return f"{self.name} off by {self.error:.2g}{nan}, allowed {self.allowed:.2g} ({kind})"


def judge(
    limits: Limits, attention: Callable[..., Tensor], operands: Operands, meaning: dict[str, Any]
) -> list[Accuracy]:
    """Run ``attention(*operands)`` and compare output and gradients with the reference.

    Args:
        limits: how exact the kernel says it is.
        attention: takes the operands that are not None.
        operands: q, k, v, mask, sinks as the reference takes them; those that require a gradient get one compared.
        meaning: the keyword arguments of `reference_attention`.
    """
    given = [x for x in operands if x is not None]
    out = attention(*given)
    detached = [None if x is None else x.detach() for x in operands]
    exact = reference_attention(*detached, **meaning)  # type: ignore[arg-type]
    own = own_results(*operands, **meaning)  # type: ignore[arg-type]
    tensors = [("output", out, own, exact)]
    if out.requires_grad and out.numel():
        tensors += _gradients(operands, meaning, [out, *own])
    largest = max(exact.abs().nan_to_num(posinf=0.0).max().item() if exact.numel() else 0.0 for *_, exact in tensors)
    found = []
    for name, got, mine, right in tensors:
        allowed = allowed_error([difference(x, right) for x in mine], out.dtype, limits.tolerance, largest)
        found.append(Accuracy.of(name, difference(got, right), limits, allowed))
    return found


def _gradients(
    operands: Operands, meaning: dict[str, Any], outputs: list[Tensor]
) -> Iterator[tuple[str, Tensor, list[Tensor], Tensor]]:
    named = [(name, x) for name, x in zip(NAMES, operands, strict=False) if x is not None and x.requires_grad]
    wanted = [x for _, x in named]
    weight = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
    got, *own = (torch.autograd.grad((out * weight).sum(), wanted, materialize_grads=True) for out in outputs)
    exact_in = [None if x is None else x.detach().double() if x.is_floating_point() else x for x in operands]
    leaves = [
        x.requires_grad_()
        for x, given in zip(exact_in, operands, strict=True)
        if x is not None and given is not None and given.requires_grad
    ]
    exact = reference_attention(*exact_in, **meaning)  # type: ignore[arg-type]
    right = torch.autograd.grad((exact * weight.double()).sum(), leaves, materialize_grads=True)
    for i, (name, _) in enumerate(named):
        yield f"gradient of {name}", got[i], [each[i] for each in own], right[i]
