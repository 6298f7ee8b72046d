"""xla end to end against a stand-in: the bias before the scale, padded keys, the backward's blocks, empty rows."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnpass import testing
from attnpass.kernels.registry import registry
from attnpass.kernels.xla import TORCH_XLA
from attnpass.machine.machine import Machine
from attnpass.select.wishes import resolve_policy
from attnpass.settings.policy import parse
from tests.helpers.compiled import assert_right, decisions, qkv, refused, run
from tests.standins import pretend, torch_xla

HALF = torch.bfloat16
LARGEST = 2_000_000  # products in a generated case: PyTorch's own half precision is slow on a CPU


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    torch_xla.install(monkeypatch)
    return pretend(monkeypatch, "tpu", TORCH_XLA, "2.9.0")


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("is_causal", (True, False), ids=("causal", "full"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
def test_inference(bshd: bool, is_causal: bool, dtype: torch.dtype) -> None:
    assert_right("xla", *qkv(Sk=50, D=60, bshd=bshd, dtype=dtype), is_causal=is_causal)


@pytest.mark.parametrize("shape", ((33, 128), (128, 256), (512, 512), (1024, 1024), (2048, 1024)))
@pytest.mark.parametrize("is_causal", (True, False), ids=("causal", "full"))
def test_training(shape: tuple[int, int], is_causal: bool) -> None:
    assert_right("xla", *qkv(B=1, H=2, Sq=shape[0], Sk=shape[1], D=16, grad=True), is_causal=is_causal)


def test_grouped_heads_and_scale() -> None:
    assert_right("xla", *qkv(H=6, Hkv=2, Sk=256, grad=True), enable_gqa=True, scale=0.3)


@pytest.mark.parametrize("D", (128, 256))
def test_head_dims(D: int) -> None:
    assert_right("xla", *qkv(B=1, H=1, Sq=600, Sk=1024, D=D))


def test_the_alias_of_diffusers() -> None:
    assert resolve_policy(parse("_native_xla"), registry()) == ("xla",)


def test_padded_keys_do_not_take_part() -> None:
    """600 keys are padded with 424 zeros: masked by a mask, by causal where q is not longer, and by nothing else."""
    q, k, v = qkv(B=1, H=2, Sq=600, D=16)
    assert refused("xla", q, k, v) == {"length"}
    wanted = "at most 512 or a multiple of it (zeros that pad k would count), a mask, or causal with Sq <= Sk"
    assert str(decisions()[-1].rejections("xla")[0]) == f"Sk is 600, needs {wanted}"
    assert_right("xla", q, k, v, is_causal=True)
    assert_right("xla", q, k, v, torch.rand(600, 600) > 0.3)
    assert_right("xla", q[:, :, :40], k, v, is_causal=True)
    longer = qkv(B=1, H=2, Sq=700, Sk=600, D=16)
    assert refused("xla", *longer, is_causal=True) == {"length"}
    assert_right("xla", *longer, torch.randn(700, 600, dtype=HALF))


def test_one_query_above_several_blocks() -> None:
    q, k, v = qkv(Sq=1, Sk=1024, D=16)
    assert refused("xla", q, k, v, is_causal=True) == {"known_bug"}
    assert_right("xla", q, k, v)
    assert_right("xla", q, k[:, :, :512], v[:, :, :512], is_causal=True)
    assert_right("xla", *qkv(Sq=2, Sk=1024, D=16), is_causal=True)


MASKS = {
    "bool": lambda Sk: torch.rand(33, Sk) > 0.3,
    "bool of batches": lambda Sk: torch.rand(2, 1, 33, Sk) > 0.3,
    "key padding": lambda Sk: (torch.arange(Sk) < torch.tensor([[40], [9]]))[:, None, None],
    "the first block hidden": lambda Sk: (torch.arange(Sk) > Sk - 20)[None],
    "additive": lambda Sk: torch.randn(33, Sk, dtype=HALF) * 3,
    "additive, fp32": lambda Sk: torch.randn(2, 33, Sk) * 3,
    "additive with -inf": lambda Sk: torch.randn(33, Sk, dtype=HALF).masked_fill(torch.rand(33, Sk) > 0.6, -math.inf),
}


@pytest.mark.parametrize("Sk", (700, 1024))
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str, Sk: int) -> None:
    assert_right("xla", *qkv(H=2, Sk=Sk, D=16, grad=Sk != 700), MASKS[mask](Sk))


def test_a_hidden_block_with_a_large_scale() -> None:
    seen = (torch.arange(1024) > 1000)[None]
    assert_right("xla", *qkv(Sk=1024, D=16, dtype=torch.float32), seen, scale=3.0)


@pytest.mark.parametrize("scale", (0.05, 0.3, 2.0))
def test_a_bias_is_added_behind_the_scale(scale: float) -> None:
    assert_right("xla", *qkv(Sk=128, grad=True, dtype=torch.float32), torch.randn(33, 128) * 5, scale=scale)


@pytest.mark.parametrize("Sk", (128, 1024))
@pytest.mark.parametrize("kind", ("bool", "additive", "half hidden, half low"))
def test_rows_that_see_no_key_are_zero(kind: str, Sk: int) -> None:
    mask = torch.rand(33, Sk) > 0.3
    mask[3] = mask[8] = False
    given = mask if kind == "bool" else torch.zeros(33, Sk, dtype=HALF).masked_fill(~mask, -math.inf)
    if kind.startswith("half"):
        given[9, :40], given[9, 40:] = torch.finfo(HALF).min, -math.inf
    q, k, v = qkv(Sk=Sk, grad=True)
    assert_right("xla", q, k, v, given)
    assert not run(lambda *x: F.scaled_dot_product_attention(*x), q, k, v, given, kernel="xla")[:, :, 3].any()


@pytest.mark.parametrize("scale", (None, 3.0))
@pytest.mark.parametrize("Sk", (128, 700))
def test_rows_hidden_by_a_large_finite_number_are_an_average(scale: float | None, Sk: int) -> None:
    bias = torch.zeros(33, Sk)
    bias[3] = bias[5, 7:] = torch.finfo(torch.float32).min
    assert_right("xla", *qkv(Sk=Sk, dtype=torch.float32), bias, scale=scale)


def test_ops() -> None:
    ops = torch.ops.attnpass
    q, k, v = qkv(Sk=128)
    given = (torch.randn(2, 4, 33, 128), False, 0.2)
    torch.library.opcheck(ops.xla.default, (q, k, v, *given))
    results = ops.xla_train(q, k, v, *given)
    torch.library.opcheck(ops.xla_backward.default, (results[0], q, k, v, given[0], *results, *given[1:]))
    torch.library.opcheck(ops.xla_train.default, (*(x.detach().requires_grad_() for x in (q, k, v)), *given))


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "value_dim": ({"Dv": 32}, {}),
    "head_dim": ({"D": 192}, {}),
    "dtype": ({"dtype": torch.float16}, {}),
    "scale": ({}, {"scale": -0.5}),
    "dropout": ({}, {"dropout_p": 0.1}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("xla", *qkv(**shape), **options) == {code}


@pytest.mark.parametrize("shape", ((513, 512), (1536, 512), (33, 33), (33, 384), (33, 640)))
def test_lengths_that_the_blocks_of_the_backward_do_not_divide(shape: tuple[int, int]) -> None:
    q, k, v = qkv(B=1, H=1, Sq=shape[0], Sk=shape[1], D=8, grad=True)
    assert refused("xla", q, k, v) == {"length"}


def test_one_key() -> None:
    assert refused("xla", *qkv(Sq=5, Sk=1)) == {"known_bug"}
    assert_right("xla", *qkv(Sq=5, Sk=2))


def test_near_misses_of_the_refusals() -> None:
    q, k, v = qkv()
    assert refused("xla", q, k[:1], v[:1]) == {"broadcast"}
    assert_right("xla", q, k[:1].expand_as(k), v[:1].expand_as(v))


def test_an_older_library(monkeypatch: pytest.MonkeyPatch) -> None:
    old = pretend(monkeypatch, "tpu", TORCH_XLA, "2.5.0")
    assert old.library_problem(TORCH_XLA) == "2.5.0"


def test_conformance() -> None:
    """The generated calls, and those drawn from the kernel's own limits."""
    limits, outcomes = registry()["xla"].limits, Counter[str]()
    general = testing.cases(60, seed=5, dtypes=tuple(sorted(limits.dtypes, key=str)))
    for case in (*general, *testing.cases_for(limits, 90, seed=5)):
        B, H, _, Sq, Sk, D, _ = case.shape
        fit = testing.runnable(case) if B * H * Sq * Sk * D < LARGEST else None
        if fit is not None:
            outcomes["refused" if testing.check("xla", fit).refused else "right"] += 1
    print(f"\nconformance of xla over its stand-in: {dict(outcomes)}, none wrong")
    assert outcomes["right"] >= 25
