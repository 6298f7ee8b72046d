"""Zeros behind the last dimension, where other sizes are symbolic: none becomes a number, and the values are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.xformers import XFORMERS
from tests.helpers.compiled import assert_near, kernels_used, qkv
from tests.standins import flash_attn_2, pretend_all, xformers

LENGTHS = (100, 128, 131, 144)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_attn_2.install(monkeypatch)
    xformers.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3", XFORMERS: "0.0.35"})


def compiled_once(kernel: str, model: Any, *, D: int, mask: bool, grad: bool = False) -> None:
    options = {"attnpass.kernel": kernel, "attnpass.compiler": "aot_eager"}
    call = torch.compile(model, backend="attnpass", options=options)
    for length in LENGTHS:
        operands: list[Tensor] = qkv(Sq=length, D=D, grad=grad)
        operands += [torch.randn(length, length, dtype=operands[0].dtype)] if mask else []
        for each in operands:
            for dim in (2,) if each.ndim == 4 else (0, 1):
                torch._dynamo.mark_dynamic(each, dim)
        out = call(*operands)
        assert_near(out, model(*operands))
        if grad:
            out.sum().backward()
    assert kernels_used() == [kernel] and len(attnpass.reports()) == 1


@pytest.mark.parametrize("grad", (False, True))
def test_head_dims(grad: bool) -> None:
    compiled_once("flash2", F.scaled_dot_product_attention, D=60, mask=False, grad=grad)


def test_the_rows_of_a_bias() -> None:
    compiled_once("xformers", F.scaled_dot_product_attention, D=64, mask=True)
