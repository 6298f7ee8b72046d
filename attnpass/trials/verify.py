"""ATTNPASS_VERIFY=1: compare each rewritten call with the program, in the program, on the user's own data.

A watched call keeps the nodes that the user wrote beside the rewritten ones, and one op, ``attnpass::verify``, compares
what both give: so a misread call is seen, and not only a bad kernel. What PyTorch's own rounding makes of the call as
it was read says how far both may be apart. When every watched call of a graph has run once, or one is off, the guard
that `attnpass.compilation.guards` put on the compiled code fails, the graph is compiled again, and this time good calls
are not watched and bad ones are put back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.apply.watcher import Outputs, Written
from attnpass.emit.emitter import Emitter
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Code, Limits, Rejection
from attnpass.ir.mask import EmptyRows
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machines
from attnpass.trials.accuracy import Accuracy
from attnpass.trials.reference import allowed_error, difference, own_results, reference_attention, written_out

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Watched:
    """A watched call, and what it turned out to be.

    Attributes:
        where: in the user's program.
        kernel: who computes it.
        limits: how exact the kernel says it is.
        accuracy: of the result beside the program's; None until it has run.
        misread: is the kernel right, and what it was asked not what the program computes?
    """

    where: str
    kernel: str
    limits: Limits
    accuracy: Accuracy | None = None
    misread: bool = False

    @property
    def good(self) -> bool:
        return self.accuracy is not None and self.accuracy.good

    @property
    def error(self) -> float:
        """The largest error, or its norm over the result's for an approximate kernel."""
        return 0.0 if self.accuracy is None else self.accuracy.error

    def rejection(self) -> Rejection:
        assert self.accuracy is not None
        if self.misread:
            return Rejection(
                Code.VERIFY, "this call", "misread by attnpass", "what the program computes; please report"
            )
        nan, allowed = self.accuracy.found.nan, self.accuracy.allowed
        actual = f"{self.error:.2e}" + (f" with {nan} NaN" if nan else "")
        return Rejection(Code.VERIFY, "measured error", actual, f"at most {allowed:.2e} on this program's data")


_watched: dict[str, Watched] = {}
_generation = 0


def generation() -> int:
    """Counts up whenever compiled code has to be made anew because verification learnt something."""
    return _generation


def forget() -> None:
    """Forget every call, so that all are compared anew."""
    _watched.clear()


def compared() -> list[Watched]:
    """Every call that was compared since `forget`."""
    return [watched for watched in _watched.values() if watched.accuracy is not None]


class Verifier:
    """Watches the rewritten calls of one graph.

    Args:
        frame: names the graph's frame, the same each time it is compiled.
        kernels: by name.
        machines: by device: how exact a kernel says it is may depend on the machine.
    """

    def __init__(self, frame: str, kernels: Mapping[str, Kernel], machines: Machines) -> None:
        self._frame = frame
        self._kernels = kernels
        self._machines = machines

    def known(self, call: AttentionCall, index: int) -> dict[str, Sequence[Rejection]]:
        """What earlier runs found out about this call, as reasons by kernel; one that was misread is bad with all."""
        found = {name: _watched.get(self._key(call, index, name)) for name in self._kernels}
        bad = {name: each for name, each in found.items() if each and each.accuracy and not each.good}
        misread = next((each for each in bad.values() if each.misread), None)
        if misread is not None:
            return {name: [misread.rejection()] for name in self._kernels}
        return {name: [each.rejection()] for name, each in bad.items()}

    def watch(
        self, emitter: Emitter, outputs: Outputs, decision: Decision, written: Written, index: int
    ) -> Node | None:
        """Emit the comparison with the program; None if the call was found good before or cannot be compared.

        Args:
            emitter: inserts nodes at the call's place.
            outputs: what is compared.
            decision: what was decided.
            written: the call as the program wrote it, for what PyTorch's own rounding makes of it.
            index: the call's number in the graph.
        """
        call = decision.call
        key = self._key(call, index, decision.kernel)
        if key in _watched and _watched[key].good:
            return None
        where = f"{call.source} {call.module or call.node}"
        if call.dropout_p:
            logger.info("attnpass verify: %s %s not compared: it drops out", decision.kernel, where)
            return None
        limits = self._kernels[decision.kernel].limits_for(self._machines[call.device])
        _watched[key] = Watched(where, decision.kernel, limits)
        args, call = written.operands(), written.call
        tensors = (args.q, args.k, args.v, args.mask, args.scale, call.is_causal, call.is_gqa, key)
        meant = (args.sinks, call.softcap, call.mask.empty.value)
        program = emitter.behind(outputs.program, torch.ops.aten.detach.default, outputs.program)
        compared = (outputs.result, program, outputs.kernel)
        return emitter.behind(program, torch.ops.attnpass.verify.default, *compared, *tensors, *meant)

    def _key(self, call: AttentionCall, index: int, kernel: str) -> str:
        return f"{self._frame}#{index} {kernel} {call.text()}"


def _compare(watched: Watched, result: Tensor, program: Tensor, kernel: Tensor, meant: Meant) -> None:
    global _generation
    limits = watched.limits
    rounding = [difference(each, meant.exact) for each in meant.own]
    allowed = allowed_error(rounding, result.dtype, limits.tolerance)
    strays = int((result.isnan() != program.isnan()).sum().item())
    found = difference(result, program)
    found = replace(found, nan=max(found.nan, strays))
    program_rounds_too = allowed_error(rounding, result.dtype, 1.0)
    watched.accuracy = accuracy = Accuracy.of("result", found, limits, allowed + program_rounds_too)
    if not accuracy.good:
        watched.misread = Accuracy.of("kernel", difference(kernel, meant.exact), limits, allowed).good
    word = "ok" if accuracy.good else "MISREAD, put back (please report this)" if watched.misread else "OFF, put back"
    logger.log(
        logging.INFO if accuracy.good else logging.WARNING,
        "attnpass verify: %s %s %s: %s (allowed %.2e)",
        word,
        watched.kernel,
        watched.where,
        accuracy.found,
        accuracy.allowed,
    )
    waiting = any(each.accuracy is None for each in _watched.values())
    if not waiting or not accuracy.good:
        _generation += 1


@dataclass(frozen=True, slots=True)
class Meant:
    """What the call is, as it was read: ``exact`` in fp32 or fp64, and PyTorch's ``own`` results in its own dtype."""

    exact: Tensor
    own: list[Tensor]

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, empty: str, **options: Any
    ) -> Meant:
        rows = None if mask is None or empty == EmptyRows.ZERO.value else _rows_with_keys(mask)
        if mask is not None and mask.dtype == torch.bool and empty == EmptyRows.AVERAGE.value:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, torch.finfo(torch.float32).min)
        exact = reference_attention(q, k, v, mask, sinks, **options)
        if rows is not None and EmptyRows(empty).is_nan:
            exact = torch.where(rows, exact, torch.nan)
        written = {"is_causal": False, "scale": None, "enable_gqa": False, "softcap": None, **options}
        by_hand = written_out(q, k, v, mask, sinks, **written)
        return cls(exact, [*own_results(q, k, v, mask, sinks, **options), by_hand])


@torch.library.custom_op("attnpass::verify", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def verify(
    result: Tensor,
    program: Tensor,
    kernel: Tensor,
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
    """``result`` if it is as good as it has to be, else ``program``. What was found is kept under ``key``."""
    given = torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=result.device).copy_(result)
    watched = _watched.get(key)
    if watched is None or watched.accuracy is not None:
        return given
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa, "softcap": softcap}
    _compare(watched, result, program, kernel, Meant.of(q, k, v, mask, sinks, empty, **options))
    return given if watched.good else given.copy_(program)


def _rows_with_keys(mask: Tensor) -> Tensor:
    seen = mask if mask.dtype == torch.bool else mask != -torch.inf
    return seen.any(-1, keepdim=True)


@verify.register_fake
def _(result: Tensor, *args: object) -> Tensor:
    return torch.empty_strided(result.shape, result.stride(), dtype=result.dtype, device=result.device)


def _backward(ctx: object, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (grad, *[None] * 13)


verify.register_autograd(_backward)
