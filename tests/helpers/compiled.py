"""Compile a function with attnpass and look at what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

import attnpass
from attnpass.ir.decision import Decision
from attnpass.kernels.registry import registry_for
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine
from attnpass.trials.accuracy import judge

NOT_ON_2_9 = pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.10",
    reason="PyTorch 2.9: nn.MultiheadAttention is one op in inference, its math makes numbers of symbolic lengths",
)


def qkv(
    B: int = 2,
    H: int = 4,
    Sq: int = 33,
    D: int = 64,
    *,
    Hkv: int = 0,
    Sk: int = 0,
    Dv: int = 0,
    bshd: bool = True,
    grad: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Tensor]:
    """q, k and v as (B, H, S, D), lying in memory as (B, S, H, D) if ``bshd``; 0 is "as q's"."""
    Hkv, Sk = Hkv or H, Sk or Sq

    def made(heads: int, length: int, size: int) -> Tensor:
        lying = torch.randn((B, length, heads, size) if bshd else (B, heads, length, size), dtype=dtype)
        return (lying.transpose(1, 2) if bshd else lying).requires_grad_(grad)

    return [made(H, Sq, D), made(Hkv, Sk, D), made(Hkv, Sk, Dv or D)]


def run(
    fn: Callable[..., Any], *args: Any, kernel: str = "native_flash", compiler: str = "aot_eager", **kwargs: Any
) -> Any:
    """The result of ``fn(*args)`` compiled with ``kernel``; `decisions` says what was done."""
    options = {"attnpass.kernel": kernel, "attnpass.compiler": compiler, **kwargs.pop("options", {})}
    return torch.compile(fn, backend="attnpass", options=options, **kwargs)(*args)


def decisions() -> list[Decision]:
    return [decision for report in attnpass.reports() for decision in report.decisions]


def kernels_used() -> list[str]:
    return [decision.kernel for decision in decisions()]


def codes(decision: Decision, kernel: str) -> set[str]:
    return {rejection.code.value for rejection in decision.rejections(kernel)}


def assert_right(kernel: str, *operands: Tensor, compiler: str = "aot_eager", **options: Any) -> None:
    """Compile one SDPA call (q, k, v and perhaps a mask): ``kernel`` takes it, and all that it gives is right.

    All that it gives: the output, its strides, and the gradients of what requires one.
    """

    def attention(*tensors: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*tensors, **options)

    torch._dynamo.reset()  # the machine may have changed since, which no guard watches
    compiled = run(attention, *operands, kernel=kernel, compiler=compiler, dynamic=False)
    report = attnpass.reports()[-1]
    (decision,) = report.decisions
    assert decision.kernel == kernel, [str(reason) for reason in decision.rejections(kernel)]
    native = attention(*operands)
    assert (compiled.shape, compiled.dtype) == (native.shape, native.dtype)
    pairs = zip(compiled.stride(), native.stride(), native.shape, strict=True)
    assert all(mine == wanted or size == 1 for mine, wanted, size in pairs)
    limits = registry_for((kernel,))[kernel].limits_for(next(iter(report.machines.values())))
    padded = [*operands, *[None] * (4 - len(operands))]
    found = judge(limits, lambda *_: compiled, padded, options)
    assert all(each.good for each in found), [str(each) for each in found if not each.good]


def assert_near(got: Tensor, wanted: Tensor, steps: int = 8) -> None:
    """Equal up to ``steps`` rounding steps of the largest value: for results that are no single SDPA call."""
    assert got.shape == wanted.shape
    gap, largest = (got.double() - wanted.double()).abs().max(), wanted.double().abs().max()
    assert gap <= steps * torch.finfo(got.dtype).eps * largest, f"off by {gap:.2e} of {largest:.2e}"


def skip_without(library: Library) -> None:
    """Skip where the library is not installed beside the GPU, or cannot be used."""
    problem = Machine.look(torch.device("cuda"), [library], [library]).library_problem(library)
    if problem:
        pytest.skip(f"{library.name} is {problem}")


def refused(kernel: str, *operands: Tensor, **options: Any) -> set[str]:
    """Compile one SDPA call; the codes for which ``kernel`` refuses it."""
    torch._dynamo.reset()
    run(lambda *tensors: F.scaled_dot_product_attention(*tensors, **options), *operands, kernel=kernel, dynamic=False)
    (decision,) = attnpass.reports()[-1].decisions
    assert not decision.rewritten
    return codes(decision, kernel)
