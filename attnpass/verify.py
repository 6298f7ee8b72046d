"""ATTNPASS_VERIFY=1: compare each rewritten call with the reference, in the user's program, on the user's own data.

A watched call is followed by one op, ``attnpass::verify``, that computes the reference beside it. When every watched
call of a graph has run once, or one is off, the guard that `attnpass.staleness` put on the compiled code fails, the
graph is compiled again, and this time good calls are not watched and bad ones are put back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.emit import Emitter
from attnpass.limits import Code, Limits, Rejection
from attnpass.measure import Difference, allowed_error, difference, own_results, reference_attention
from attnpass.patterns.sdpa import arguments
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


class Verifier:
    """Watches the rewritten calls of one graph.

    Args:
        frame: names the graph's frame, the same each time it is compiled.
        limits: of each kernel: how exact it says it is.
    """

    def __init__(self, frame: str, limits: Mapping[str, Limits]) -> None:
        self._frame = frame
        self._limits = limits

    def verdicts(self, call: AttentionCall, index: int) -> dict[str, Sequence[Rejection]]:
        """What earlier runs found out about this call, as reasons by kernel."""
        bad: dict[str, Sequence[Rejection]] = {}
        for name in self._limits:
            verdict = _verdicts.get(self._key(call, index, name))
            if verdict is not None and verdict.found is not None and not verdict.good:
                bad[name] = [verdict.rejection()]
        return bad

    def watch(self, emitter: Emitter, node: Node, out: Node, decision: Decision, index: int) -> Node:
        """Emit the comparison behind ``out``, unless the call was already found good or cannot be compared."""
        call = decision.call
        key = self._key(call, index, decision.kernel)
        if key in _verdicts and _verdicts[key].good:
            return out
        where = f"{call.source} {call.module or call.node}"
        if call.dropout_p:
            logger.info("attnpass verify: %s %s not compared: it drops out", decision.kernel, where)
            return out
        limits = self._limits[decision.kernel]
        _verdicts[key] = Verdict(where, decision.kernel, limits.tolerance, limits.relative_error)
        args = arguments(node)
        operands = [args[name] for name in ("query", "key", "value", "attn_mask")]
        if call.context.autocast is not None:
            operands = [emitter.cast(x, call.dtype) if _is_float(emitter, x) else x for x in operands]
        scale = call.scale_or_default()
        return emitter(torch.ops.attnpass.verify.default, out, *operands, scale, call.is_causal, call.enable_gqa, key)

    def _key(self, call: AttentionCall, index: int, kernel: str) -> str:
        return f"{self._frame}#{index} {kernel} {call.text()}"


def _is_float(emitter: Emitter, node: Node | None) -> bool:
    return node is not None and emitter.value(node).dtype.is_floating_point


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
) -> Tensor:
    """``out`` if it is as good as it has to be, else the reference. The verdict is kept under ``key``."""
    result = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device).copy_(out)
    verdict = _verdicts.get(key)
    if verdict is None or verdict.found is not None:
        return result
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    reference = reference_attention(q, k, v, mask, **options)
    _judge(verdict, out, reference, own_results(q, k, v, mask, **options))
    return result if verdict.good else result.copy_(reference)


@verify.register_fake
def _(out: Tensor, *args: object) -> Tensor:
    return torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (grad, *[None] * 8)


verify.register_autograd(_backward)
