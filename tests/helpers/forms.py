"""One form of attention written by hand: compiled, and judged by the same program in fp64, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import attnpass
from attnpass.report.record import Report
from attnpass.trials.reference import allowed_error, difference
from tests.helpers.compiled import run

Program = Callable[..., Tensor]
B, H, S, D = 2, 4, 6, 16  # of `qkv` and `padding`
MULTIPLE = 8.0  # of eager's error: the gradient of one factor is a sum over everything, in another order than eager's


def qkv(dtype: torch.dtype = torch.float32, grad: bool = True) -> list[Tensor]:
    return [torch.randn(B, H, S, D, dtype=dtype, requires_grad=grad) for _ in range(3)]


def padding(empty: bool = True) -> Tensor:
    """(B, 1, 1, S) bool, True takes part; with ``empty`` nobody does in the last example."""
    keep = torch.ones(B, 1, 1, S, dtype=torch.bool)
    keep[0, ..., 4:] = False
    keep[1] = not empty
    return keep


def check(program: Program, *given: Tensor, kernel: str = "native_math", dynamic: bool | None = None) -> Report:
    """Compile ``program`` and compare all that it gives; the report of its graph.

    The output and the gradient of each tensor that requires one are NaN where eager's are, and elsewhere as near to
    what the program gives in fp64 as a small multiple of eager's own error.
    """
    torch._dynamo.reset()
    attnpass.clear_reports()
    mine = _results(lambda *x: run(program, *x, kernel=kernel, dynamic=dynamic), given)
    eager = _results(program, given)
    right = _results(program, [x.detach().double().requires_grad_(x.requires_grad) if _floats(x) else x for x in given])
    largest = max(r.abs().nan_to_num(posinf=0.0).max().item() for r in right)
    for got, own, wanted in zip(mine, eager, right, strict=True):
        assert (got.shape, got.dtype) == (own.shape, own.dtype)
        assert (got.isnan() == own.isnan()).all(), "NaN in other places than eager's"
        allowed = allowed_error([difference(own, wanted)], own.dtype, MULTIPLE, largest)
        found = difference(got.nan_to_num(nan=0.0), torch.where(got.isnan(), 0.0, wanted))
        assert found.max_abs <= allowed, f"{found}, allowed {allowed:.2e}"
    report = attnpass.last_report()
    assert not report.error, report.error
    return report


def found(program: Program, *given: Tensor, kernel: str = "native_math", dynamic: bool | None = None) -> Report:
    """As `check`: and the program is one call that is rewritten, with no near miss."""
    report = check(program, *given, kernel=kernel, dynamic=dynamic)
    reasons = [miss.reason for miss in report.near_misses]
    assert [decision.rewritten for decision in report.decisions] == [True], reasons
    assert not reasons
    return report


def left(program: Program, reason: str, *given: Tensor) -> None:
    """As `check`: and the program is left alone, with one near miss that says ``reason``."""
    report = check(program, *given)
    reasons = [miss.reason for miss in report.near_misses]
    assert not report.decisions
    assert [each for each in reasons if reason in each], reasons


def _floats(x: Tensor) -> bool:
    return x.is_floating_point()


def _results(program: Program, given: list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    own = [x.detach().clone().requires_grad_(x.requires_grad) for x in given]
    out = program(*own)
    leaves = [x for x in own if x.requires_grad]
    if not leaves:
        return [out]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves, allow_unused=True)
    return [out, *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, leaves, strict=True))]
