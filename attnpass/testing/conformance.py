"""Rewrite one generated call with one kernel, and hold output, gradients and layout to the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule

from attnpass.explain import rewrite
from attnpass.kernels import registry
from attnpass.limits import Code
from attnpass.measure import allowed_error, difference, own_results, reference_attention
from attnpass.select import Decision
from attnpass.testing.cases import Case, make_operands


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a case: computed by ``kernel``, or refused with ``codes`` and computed by PyTorch."""

    kernel: str
    codes: tuple[Code, ...] = ()
    worst: float = 0.0

    @property
    def refused(self) -> bool:
        return bool(self.codes)


def check(kernel: str, case: Case, device: str = "cpu") -> Outcome:
    """Rewrite ``case`` with ``kernel`` and hold output and gradients to the reference.

    Raises:
        AssertionError: the result is off by more than the kernel's tolerance times PyTorch's own error, has the wrong
            shape, dtype or strides, or the call was kept without a reason.
    """
    operands, options = make_operands(case, device)
    gm = sdpa_graph(options, mask=operands[3] is not None)
    inputs = [x for x in operands if x is not None]
    rewritten, report = rewrite(gm, inputs, options={"attnpass.kernel": kernel})
    decision = report.decisions[0]
    _check_decision(decision, kernel)
    native = gm(*inputs)
    result = rewritten(*inputs)
    assert result.shape == native.shape, f"{case}: shape {tuple(result.shape)}, not {tuple(native.shape)}"
    assert result.dtype == native.dtype, f"{case}: dtype {result.dtype}, not {native.dtype}"
    _check_strides(case, result, native)
    if not decision.rewritten:
        assert torch.equal(result.nan_to_num(), native.nan_to_num()), f"{case}: kept, but not what PyTorch gives"
        return Outcome(decision.kernel, tuple(r.code for r in decision.rejections(kernel)))
    tolerance, worst = registry()[kernel].limits.tolerance, 0.0
    exact = reference_attention(*_detached(operands), **options)  # type: ignore[arg-type]
    own = own_results(*operands, **options)  # type: ignore[arg-type]
    results = [("output", result, own, exact)]
    if case.grad and result.numel():
        results += _gradients(operands, options, inputs, [result, *own])
    largest = max((difference(right, right).largest for *_, right in results), default=0.0)
    for name, got, own, right in results:
        found = difference(got, right)
        allowed = allowed_error([difference(x, right) for x in own], case.dtype, tolerance, largest)
        assert found.nan == 0, f"{case}: {name} of {decision.kernel} has {found.nan} NaN"
        assert found.max_abs <= allowed, f"{case}: {name} of {decision.kernel} is off: {found}, allowed {allowed:.2e}"
        worst = max(worst, found.max_abs / allowed if allowed else 0.0)
    return Outcome(decision.kernel, worst=worst)


def sdpa_graph(options: dict[str, Any], mask: bool) -> GraphModule:
    """A graph that holds one ``F.scaled_dot_product_attention(q, k, v[, mask], **options)``."""
    graph = Graph()
    names = ("q", "k", "v", "mask") if mask else ("q", "k", "v")
    inputs = tuple(graph.placeholder(name) for name in names)
    graph.output(graph.call_function(F.scaled_dot_product_attention, inputs, options))
    return GraphModule(torch.nn.Module(), graph)


def _check_decision(decision: Decision, kernel: str) -> None:
    if not decision.rewritten:
        assert decision.rejections(kernel), f"{kernel} kept {decision.call.text()} without a reason"
        assert all(str(reason) for reason in decision.rejections(kernel))


def _check_strides(case: Case, result: Tensor, native: Tensor) -> None:
    pairs = [(a, b) for a, b, size in zip(result.stride(), native.stride(), result.shape, strict=True) if size > 1]
    if result.numel():
        assert all(a == b for a, b in pairs), f"{case}: strides {result.stride()}, not {native.stride()}"


def _gradients(
    operands: list[Tensor | None], options: dict[str, Any], inputs: list[Tensor], outputs: list[Tensor]
) -> Iterator[tuple[str, Tensor, list[Tensor], Tensor]]:
    wanted = [x for x in inputs if x.requires_grad]
    weight = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
    got, *own = (torch.autograd.grad((out * weight).sum(), wanted, materialize_grads=True) for out in outputs)
    exact_in = [None if x is None else x.detach().double() if x.is_floating_point() else x for x in operands]
    pairs = zip(exact_in, operands, strict=True)
    leaves = [x.requires_grad_() for x, given in pairs if x is not None and given is not None and given.requires_grad]
    exact = reference_attention(*exact_in, **options)  # type: ignore[arg-type]
    right = torch.autograd.grad((exact * weight.double()).sum(), leaves, materialize_grads=True)
    for i, (mine, exact_one) in enumerate(zip(got, right, strict=True)):
        yield f"gradient {i}", mine, [each[i] for each in own], exact_one


def _detached(operands: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.detach() for x in operands]
