"""Chains in programs that verify, log or write."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import attnpass
from tests.find.test_handwritten_details import B, H, S, capped, mask_with_an_empty_row, plain, qkv
from tests.helpers.compiled import assert_near, decisions, kernels_used, run


@pytest.mark.parametrize("fn", (plain, capped))
def test_verify_compares_with_the_chain(fn: Callable[..., Tensor], caplog: pytest.LogCaptureFixture) -> None:
    tensors = qkv()
    options = {"attnpass.kernel": "native_flash,flex", "attnpass.verify": True, "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(fn, backend="attnpass", options=options)
    for _ in range(3):
        assert_near(compiled(*tensors), fn(*tensors))
    said = [record.getMessage() for record in caplog.records if "attnpass verify" in record.getMessage()]
    assert len(said) == 1
    assert "verify: ok" in said[0]


@pytest.mark.parametrize("fill", (-math.inf, -1e9))
def test_verify_knows_rows_without_keys(fill: float, caplog: pytest.LogCaptureFixture) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~mask, fill).softmax(-1) @ v

    tensors = [*qkv(), mask_with_an_empty_row()]
    got = run(fn, *tensors, options={"attnpass.verify": True})
    torch.testing.assert_close(got, fn(*tensors), equal_nan=True)
    assert any("verify: ok native_flash" in record.getMessage() for record in caplog.records)


def test_sinks_are_understood() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        scores = torch.cat([q @ k.mT, sinks.reshape(1, -1, 1, 1).expand(B, H, S, 1)], dim=-1)
        return scores.softmax(-1)[..., :-1] @ v

    tensors = [*qkv(), torch.randn(H)]
    assert_near(run(fn, *tensors), fn(*tensors))
    (decision,) = decisions()
    assert decision.call.sinks is not None
    assert decision.call.sinks.shape == (H,)
    assert decision.kernel == "native_flash"


def test_the_log_tells_chains_apart(caplog: pytest.LogCaptureFixture) -> None:
    run(plain, *qkv())
    text = attnpass.report.text.block(attnpass.last_report())
    assert "(handwritten)" in text
    assert "test_handwritten_details.py" in text


def test_operands_changed_in_place() -> None:
    """What an op in place read is not there any more: it is no way back to the operand."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = q.tanh(), k.tanh()
        q *= 0.25
        k.transpose_(2, 3)
        k.mul_(2.0)
        return (q @ k).softmax(-1) @ v

    tensors = qkv()
    assert_near(run(fn, *tensors), fn(*tensors))
    assert kernels_used() == ["native_flash"]
    assert decisions()[0].call.scale == 1.0


def test_no_keys() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(torch.ones(S, 0, dtype=torch.bool), -math.inf).softmax(-1) @ v

    q, k, v = qkv()
    torch.testing.assert_close(run(fn, q, k[:, :, :0], v[:, :, :0]), fn(q, k[:, :, :0], v[:, :, :0]))
    assert not decisions()
