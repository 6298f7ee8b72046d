"""diffusers' models: every attention call is found and right, its mask proved; whole, and compiled block by block."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnpass
from tests.helpers.compiled import decisions, kernels_used
from tests.models.tiny_diffusers import MODELS

EVERYTHING = int(os.environ.get("ATTNPASS_EXAMPLES", "0")) >= 20_000
OPTIONS = {"attnpass.kernel": "native_flash", "attnpass.compiler": "aot_eager"}


def output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


def assert_as_good_as_eager(got: Tensor, model: nn.Module, inputs: dict[str, Any]) -> None:
    """``got`` is off by no more than a few times what eager PyTorch is off, against the same model in fp64."""
    eager = output(model, inputs)
    doubled = {name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in inputs.items()}
    exact = output(model.double(), doubled)
    model.float()
    mine, its = ((x.double() - exact).abs().max() for x in (got, eager))
    assert mine <= 3 * its, f"off by {mine:.1e}, eager by {its:.1e}"


@pytest.mark.parametrize("dynamic", (False, True) if EVERYTHING else (False,))  # Dynamo: 25 to 45 s with symbolic sizes
@pytest.mark.parametrize("name", MODELS)
def test_every_call_is_taken_and_its_mask_proved(name: str, dynamic: bool) -> None:
    model, inputs = MODELS[name].make()
    got = output(torch.compile(model, backend="attnpass", options=OPTIONS, dynamic=dynamic), inputs)
    assert_as_good_as_eager(got, model, inputs)
    calls = [decision.call for decision in decisions()]
    assert Counter(str(call.mask) for call in calls) == MODELS[name].masks
    assert set(kernels_used()) == {"native_flash"}
    assert all(MODELS[name].stops in call.mask.stop for call in calls if str(call.mask) == "tensor")
    assert not any(report.near_misses for report in attnpass.reports())
    assert not any("_modules" in call.module for call in calls)


@pytest.mark.parametrize("name", ("flux", "wan", "sdxl", "hunyuan_video"))
def test_block_by_block(name: str) -> None:
    """What diffusers recommends for short compilations: one graph for all blocks of a kind."""
    model, inputs = MODELS[name].make()
    blocks = {type(part) for part in model.modules() if type(part).__name__ in model._repeated_blocks}
    model.compile_repeated_blocks(backend="attnpass", options=OPTIONS, fullgraph=True)
    got = output(model, inputs)
    assert len(attnpass.reports()) >= len(blocks) > 0
    assert set(kernels_used()) == {"native_flash"}
    as_made, _ = MODELS[name].make()
    assert_as_good_as_eager(got, as_made, inputs)
