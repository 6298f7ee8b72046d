"""ATTNPASS_VERIFY=1: compare each rewritten call with the reference, in the user's program, on the user's own data.

A watched call is followed by one op, ``attnpass::verify``, that computes the reference beside it. When every watched
call of a graph has run once, or one is off, the guard that `attnpass.staleness` put on the compiled code fails, the
graph is compiled again, and this time good calls are not watched and bad ones are put back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.emit import Emitter
from attnpass.kernel import Kernel, Operands
from attnpass.limits import Code, Rejection
from attnpass.machine import Machine
from attnpass.masks import EmptyRows
from attnpass.measure import Difference, allowed_error, difference, own_results, reference_attention
from attnpass.select import Decision

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Verdict:
    """What one watched call turned out to be."""

    where: str
    kernel: str
    tolerance: float
    relative: float | None = None
    found: Difference | None = None
    allowed: float = 0.0

    @property
    def good(self) -> bool:
        return self.found is not None and self.found.nan == 0 and self.error <= self.allowed

    @property
    def error(self) -> float:
        """The largest error, or its norm over the result's for an approximate kernel."""
        if self.found is None:
            return 0.0
        return self.found.max_abs if self.relative is None else self.found.relative

    def rejection(self) -> Rejection:
        assert self.found is not None
        actual = f"{self.error:.2e}" + (f" with {self.found.nan} NaN" if self.found.nan else "")
        return Rejection(Code.VERIFY, "measured error", actual, f"at most {self.allowed:.2e} on this program's data")


_verdicts: dict[str, Verdict] = {}
_generation = 0


def generation() -> int:
    """Counts up whenever compiled code has to be made anew because verification learnt something."""
    return _generation


def forget() -> None:
    """Forget every verdict, so that calls are compared anew."""
    _verdicts.clear()


def compared() -> list[Verdict]:
    """The verdict of every call that was compared since `forget`."""
    return [verdict for verdict in _verdicts.values() if verdict.found is not None]


class Verifier:
    """Watches the rewritten calls of one graph.

    Args:
        frame: names the graph's frame, the same each time it is compiled.
        kernels: by name; those that come into being by being named may be added after this.

    Attributes:
        machines: set before a decision is asked about: how exact a kernel says it is may depend on the machine.
    """

    def __init__(self, frame: str, kernels: Mapping[str, Kernel]) -> None:
        self._frame = frame
        self._kernels = kernels
        self.machines: Mapping[torch.device, Machine] = {}

    def verdicts(self, call: AttentionCall, index: int) -> dict[str, Sequence[Rejection]]:
        """What earlier runs found out about this call, as reasons by kernel."""
        bad: dict[str, Sequence[Rejection]] = {}
        for name in self._kernels:
            verdict = _verdicts.get(self._key(call, index, name))
            if verdict is not None and verdict.found is not None and not verdict.good:
                bad[name] = [verdict.rejection()]
        return bad

    def watch(
        self,
        emitter: Emitter,
        out: Node,
        decision: Decision,
        written: AttentionCall,
        operands: Callable[[], Operands],
        index: int,
    ) -> Node:
        """Emit the comparison behind ``out``, unless the call was already found good or cannot be compared.

        Args:
            emitter: inserts nodes at the call's place.
            out: what the kernel gives, (B, H, Sq, Dv).
            decision: what was decided.
            written: the call as the program wrote it.
            operands: emits the operands of that.
            index: the call's number in the graph.
        """
        call = decision.call
        key = self._key(call, index, decision.kernel)
        if key in _verdicts and _verdicts[key].good:
            return out
        where = f"{call.source} {call.module or call.node}"
        if call.dropout_p:
            logger.info("attnpass verify: %s %s not compared: it drops out", decision.kernel, where)
            return out
        limits = self._kernels[decision.kernel].limits_for(self.machines[call.device])
        _verdicts[key] = Verdict(where, decision.kernel, limits.tolerance, limits.relative_error)
        args, empty = operands(), written.mask.empty.value
        tensors = (args.q, args.k, args.v, args.mask, args.scale, written.is_causal, written.is_gqa, key)
        return emitter(torch.ops.attnpass.verify.default, out, *tensors, args.sinks, written.softcap, empty)

    def _key(self, call: AttentionCall, index: int, kernel: str) -> str:
        return f"{self._frame}#{index} {kernel} {call.text()}"


def _judge(verdict: Verdict, out: Tensor, reference: Tensor, own: list[Tensor]) -> None:
    global _generation
    verdict.found = difference(out, reference)
    if verdict.relative is not None:
        verdict.allowed = verdict.relative
    else:
        verdict.allowed = allowed_error([difference(x, reference) for x in own], out.dtype, verdict.tolerance)
    word = "ok" if verdict.good else "OFF, put back"
    logger.log(
        logging.INFO if verdict.good else logging.WARNING,
        "attnpass verify: %s %s %s: %s (allowed %.2e)",
        word,
        verdict.kernel,
        verdict.where,
        verdict.found,
        verdict.allowed,
    )
    waiting = any(v.found is None for v in _verdicts.values())
    if not waiting or not verdict.good:
        _generation += 1


@torch.library.custom_op("attnpass::verify", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def verify(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float | None,
    is_causal: bool,
    enable_gqa: bool,
    key: str,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    empty: str = EmptyRows.ZERO.value,
) -> Tensor:
    """``out`` if it is as good as it has to be, else the reference. The verdict is kept under ``key``."""
    result = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device).copy_(out)
    verdict = _verdicts.get(key)
    if verdict is None or verdict.found is not None:
        return result
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa, "softcap": softcap}
    rows = None if mask is None or empty == EmptyRows.ZERO.value else _rows_with_keys(mask)
    if mask is not None and mask.dtype == torch.bool and empty == EmptyRows.AVERAGE.value:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
    reference = reference_attention(q, k, v, mask, sinks, **options)
    if rows is not None and empty == EmptyRows.NAN.value:
        reference = torch.where(rows, reference, torch.nan)
    _judge(verdict, out, reference, own_results(q, k, v, mask, sinks, **options))
    return result if verdict.good else result.copy_(reference)


def _rows_with_keys(mask: Tensor) -> Tensor:
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    return seen.any(-1, keepdim=True)


@verify.register_fake
def _(out: Tensor, *args: object) -> Tensor:
    return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (grad, *[None] * 11)


verify.register_autograd(_backward)
