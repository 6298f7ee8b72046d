"""Approximate kernels in a whole model: held to what they declare, call by call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.kernels.sage import FP8_ERROR, SAGE
from benchmarks import approximate
from benchmarks.approximate import declared, with_each_call
from benchmarks.steps import FORWARD
from benchmarks.zoo.models import Subject
from tests.helpers.compiled import decisions
from tests.standins import pretend, sageattention_2

LAYERS = 3


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(LAYERS):
            x = x + F.scaled_dot_product_attention(x, x, x)
        return x


@pytest.fixture(autouse=True)
def sage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"KERNEL": "sage", "PROBE": "0", "COMPILER": "aot_eager", "CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(f"ATTNPASS_{name}", value)
    sageattention_2.install(monkeypatch)
    pretend(monkeypatch, "h100", SAGE, "2.2.0")


def record() -> dict[str, Any]:
    subject = Subject(Model(), {"x": torch.randn(1, 2, 128, 64, dtype=torch.bfloat16)}, lambda out: out)
    return with_each_call(subject, FORWARD, {"calls": {"kernels": {"sage": LAYERS}}, "problems": [], "ok": True})


def test_every_call_is_compared_on_the_models_own_data() -> None:
    found = record()
    assert found["ok"] and found["compared"] == LAYERS
    assert 0 < found["worst_call"] <= FP8_ERROR


def test_a_call_that_is_off_fails_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sageattention_2, "attention", _wrong(sageattention_2.attention))
    found = record()
    assert not found["ok"] and "off by" in found["problems"][0]


def _wrong(attention: Any) -> Any:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        out, lse = attention(*args, **kwargs)
        return out * 1.2, lse

    return wrong


def test_exact_kernels_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_each_call", lambda *_: pytest.fail("run again"))
    exact = {"calls": {"kernels": {"native_cudnn": 2}}, "problems": [], "ok": True}
    assert with_each_call(Subject(Model(), {}, lambda out: out), FORWARD, exact) is exact


def test_errors_of_several_calls_add_up_with_the_root_of_their_number() -> None:
    record()
    found = [decision for decision in decisions() if decision.kernel == "sage"]
    one = found[0]
    assert declared([one] * 4) == pytest.approx(2 * declared([one])) and declared([one]) == FP8_ERROR
    assert declared([]) == 0.0
