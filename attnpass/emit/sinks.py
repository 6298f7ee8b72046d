"""Attention sinks behind a kernel that knows none, from its log-sum-exp; with gradients from its own backward.

A sink is one more key, whose score is the sink's logit and whose value is 0. So with what the kernel gives without it:

    out := out * sigmoid(lse - sink)        lse := log(exp(lse) + exp(sink))

A backward reads the two only as ``p = exp(score - lse)`` and ``ds = p * (dp - delta)``, where ``delta`` of a row is
``sum(dout * out)``. Handed those with the sink it gives the gradients with the sink, for q, k, v and a bias alike: the
sink adds nothing to ``delta``, and lies in ``p``'s denominator. Its own score gets ``-exp(sink - lse) * delta``.
PyTorch hands backwards an output and a log-sum-exp of more keys than they are given in the same way, for ring attention
(``torch/distributed/tensor/experimental/_context_parallel``).

A row that sees no key has an output of 0, whatever number a kernel gives as its log-sum-exp (-inf, inf, or 0 on the
CPU): it stays 0, and so do its gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnpass.graph.symbolic import known_equal


@dataclass(frozen=True, slots=True)
class Sunk:
    """A kernel with sinks behind it: ``(sinks, *operands, *rest) -> out``, with sinks (H,); to be made an op.

    Attributes:
        forward: ``(*operands, *rest) -> out, lse, *more``; lse is a natural logarithm, (B, H, Sq), maybe with more rows
            than there are queries or with a size of 1 behind.
        backward: ``(grad, *operands, out, lse, *more, *rest) -> gradients`` of the first operands.
        operands: how many arguments are tensors.
        bshd: is the output (B, Sq, H, Dv)?
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    operands: int
    bshd: bool = False

    def __call__(self, sinks: Tensor, *arguments: Any) -> Tensor:
        out: Tensor = _Attention.apply(self, sinks, *arguments)  # type: ignore[no-untyped-call]
        return out

    def by_rows(self, lse: Tensor, out: Tensor) -> Tensor:
        """A number for each row of scores, of the shape of ``lse``, as one for each row of the output."""
        rows = out.shape[1 if self.bshd else 2]
        lse = lse.reshape(lse.shape[:3])
        lse = lse if known_equal(lse.shape[2], rows) else lse[:, :, :rows]
        return (lse.transpose(1, 2) if self.bshd else lse).unsqueeze(-1)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Sunk, sinks: Tensor, *arguments: Any) -> Tensor:
        out, lse, *more = kernel.forward(*arguments)
        logits = _logits(sinks, lse)
        out = with_sinks(out, kernel.by_rows(lse - logits, out))
        operands, ctx.rest = arguments[: kernel.operands], arguments[kernel.operands :]
        ctx.save_for_backward(sinks, *operands, out, torch.logaddexp(lse, logits), *more)
        ctx.kernel = kernel
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, (sinks, *saved) = ctx.kernel, ctx.saved_tensors
        out, lse = saved[kernel.operands : kernel.operands + 2]
        grads = tuple(kernel.backward(grad, *saved, *ctx.rest))
        delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1, keepdim=True)
        taken = kernel.by_rows((_logits(sinks, lse) - lse).exp(), out) * delta
        by_head = -taken.sum((0, 1, 3) if kernel.bshd else (0, 2, 3))
        missing = kernel.operands + len(ctx.rest) - len(grads)
        return (None, by_head.to(sinks.dtype), *grads, *[None] * missing)


def with_sinks(out: Tensor, above: Tensor) -> Tensor:
    """``out`` with what sinks take away, rounded once; ``above``: (..., 1), log-sum-exp less sink, in fp32 or fp64."""
    return (out.to(above.dtype) * torch.sigmoid(above)).to(out.dtype)


def _logits(sinks: Tensor, lse: Tensor) -> Tensor:
    return sinks.to(lse.dtype).reshape(-1, *[1] * (lse.ndim - 2))
