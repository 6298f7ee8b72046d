"""Rewrite one generated call with one kernel, and hold output, gradients and layout to the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule

from attnpass.ir.limits import Code
from attnpass.kernels.registry import registry
from attnpass.offline import rewrite
from attnpass.testing.cases import Case, make_operands
from attnpass.trials.accuracy import judge
from attnpass.trials.example import runnable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: computed by ``kernel``, or refused with ``codes`` and computed by PyTorch."""

    kernel: str
    codes: tuple[Code, ...] = ()

    @property
    def refused(self) -> bool:
        return bool(self.codes)


def check(kernel: str, case: Case, device: str = "cpu", *, probe: bool = False) -> Outcome:
    """Rewrite ``case`` with ``kernel`` and hold output and gradients to the reference.

    Args:
        kernel: its name.
        case: the call.
        device: where it is computed.
        probe: is the kernel tried first, as it is for users?

    Raises:
        AssertionError: the result is off by more than the kernel's tolerance times PyTorch's own error, has the wrong
            shape, dtype or strides, an operand was changed, or the call was kept without a reason.
    """
    operands, options = make_operands(case, device)
    gm = sdpa_graph(options, mask=operands[3] is not None)
    inputs = [x for x in operands if x is not None]
    # not tried beforehand: a failed trial would turn a wrong result, which is looked for here, into a refusal
    rewritten, report = rewrite(gm, inputs, options={"attnpass.kernel": kernel, "attnpass.probe": probe})
    decision = report.decisions[0]
    reasons = decision.rejections(kernel)
    if not decision.rewritten:
        assert reasons and all(map(str, reasons)), f"{kernel} kept {decision.call.text()} without a reason"
    run = rewritten if device == "cpu" else runnable(rewritten, inputs, {})  # FlexAttention compiles 10 s on a CPU
    native = gm(*inputs)
    before = [x.detach().clone() for x in inputs]
    result = run(*inputs)
    for name, now, then in zip(("q", "k", "v", "mask"), inputs, before, strict=False):
        assert torch.equal(now.detach().nan_to_num(), then.nan_to_num()), f"{case}: {kernel} changes {name} in place"
    assert result.shape == native.shape, f"{case}: shape {tuple(result.shape)}, not {tuple(native.shape)}"
    assert result.dtype == native.dtype, f"{case}: dtype {result.dtype}, not {native.dtype}"
    _check_strides(case, result, native)
    if not decision.rewritten:
        assert torch.equal(result.nan_to_num(), native.nan_to_num()), f"{case}: kept, but not what PyTorch gives"
        return Outcome(decision.kernel, tuple(reason.code for reason in reasons))
    limits = registry()[kernel].limits_for(next(iter(report.machines.values())))
    for accuracy in judge(limits, run, operands, options):
        assert accuracy.good, f"{case}: {decision.kernel}: {accuracy}"
    return Outcome(decision.kernel)


def sdpa_graph(options: dict[str, Any], mask: bool) -> GraphModule:
    """A graph that holds one ``F.scaled_dot_product_attention(q, k, v[, mask], **options)``."""
    graph = Graph()
    names = ("q", "k", "v", "mask") if mask else ("q", "k", "v")
    inputs = tuple(graph.placeholder(name) for name in names)
    graph.output(graph.call_function(F.scaled_dot_product_attention, inputs, options))
    return GraphModule(torch.nn.Module(), graph)


def _check_strides(case: Case, result: Tensor, native: Tensor) -> None:
    pairs = [(a, b) for a, b, size in zip(result.stride(), native.stride(), result.shape, strict=True) if size > 1]
    if result.numel():
        assert all(a == b for a, b in pairs), f"{case}: strides {result.stride()}, not {native.stride()}"
