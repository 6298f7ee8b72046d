"""PyTorch's own OpInfo samples of ``scaled_dot_product_attention``, forward and backward, through each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attnpass.trials.reference import allowed_error, difference
from tests.helpers.compiled import decisions, run

S = F.scaled_dot_product_attention


def with_gradients(out: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    leaves = [t for t in inputs if t.requires_grad]
    return [out, *torch.autograd.grad(out.sum(), leaves, materialize_grads=True)]


def eager(inputs: Sequence[Tensor], sample: Any, exact: bool = False) -> list[Tensor]:
    """Output and gradients without attnpass; in fp64 if ``exact``."""
    if exact:
        inputs = [t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    kwargs = {
        k: v.double() if exact and torch.is_tensor(v) and v.is_floating_point() else v for k, v in sample.kwargs.items()
    }
    return with_gradients(S(*inputs, **kwargs), inputs)


@pytest.mark.parametrize("kernel", ("auto", "native_math", "reference", "flex"))
def test_opinfo_samples(kernel: str) -> None:
    pytest.importorskip("expecttest", reason="PyTorch's own test helpers need it")
    from torch.testing._internal.common_methods_invocations import op_db

    info = next(op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    seen = 0
    for sample in info.sample_inputs("cpu", torch.float32, requires_grad=True):
        if sample.kwargs.get("dropout_p"):
            continue
        torch._dynamo.reset()
        inputs = (sample.input, *sample.args)
        out = run(lambda *a, k=sample.kwargs: S(*a, **k), *inputs, kernel=kernel)
        with sdpa_kernel(SDPBackend.MATH):
            composite = eager(inputs, sample)
        default, exact = eager(inputs, sample), eager(inputs, sample, exact=True)
        for got, right, *own in zip(with_gradients(out, inputs), exact, default, composite, strict=True):
            # OpInfo's values reach 9, so its scores some hundreds: one rounding step of a score is 3e-5 by itself.
            allowed = allowed_error([difference(x, right) for x in own], torch.float32, tolerance=3.0, largest=100.0)
            assert difference(got, right).max_abs <= allowed, (sample, difference(got, right), allowed)
        seen += 1
    assert len(decisions()) == seen >= 12
    print(f"\nOpInfo through {kernel}: {seen} samples, {sum(d.rewritten for d in decisions())} rewritten, none wrong")
