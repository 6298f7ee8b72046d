"""npu end to end against a stand-in: the triangle, inverted masks, the bias before the scale, empty rows, dropout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass import testing
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.npu import TORCH_NPU
from attnpass.kernels.registry import registry
from attnpass.machine.machine import Machine
from attnpass.select.wishes import resolve_policy
from attnpass.settings.policy import parse
from tests.helpers.compiled import assert_near, assert_right, decisions, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import pretend, torch_npu, tried

HALF = torch.bfloat16
LARGEST = 2_000_000  # products in a generated case: PyTorch's own half precision is slow on a CPU


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    torch_npu.install(monkeypatch)
    return pretend(monkeypatch, "ascend", TORCH_NPU, "2.13.0")


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("is_causal", (True, False), ids=("causal", "full"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
def test_training(bshd: bool, is_causal: bool, dtype: torch.dtype) -> None:
    assert_right("npu", *qkv(D=60, bshd=bshd, grad=True, dtype=dtype), is_causal=is_causal)


def test_grouped_heads_another_length_and_scale() -> None:
    assert_right("npu", *qkv(H=6, Hkv=2, Sk=50, D=72, grad=True), enable_gqa=True, scale=0.3)


@pytest.mark.parametrize("lengths", ((33, 50), (50, 33), (1, 65)))
def test_causal_is_top_left(lengths: tuple[int, int]) -> None:
    assert_right("npu", *qkv(Sq=lengths[0], Sk=lengths[1], grad=True), is_causal=True)
    assert torch_npu.calls[-1]["sparse_mode"] == 2


def test_the_triangle_does_not_grow_with_the_lengths() -> None:
    assert_right("npu", *qkv(B=1, H=1, Sq=2100, D=8, dtype=torch.float32), is_causal=True)


def test_the_alias_of_diffusers() -> None:
    assert resolve_policy(parse("_native_npu"), registry()) == ("npu",)
    assert run(F.scaled_dot_product_attention, *qkv(), kernel="_native_npu") is not None
    assert kernels_used() == ["npu"]


MASKS = {
    "bool": lambda: torch.rand(33, 50) > 0.3,
    "bool of batches": lambda: torch.rand(2, 1, 33, 50) > 0.3,
    "bool of heads": lambda: torch.rand(1, 4, 33, 50) > 0.3,
    "key padding": lambda: (torch.arange(50) < torch.tensor([[40], [9]]))[:, None, None],
    "rows": lambda: torch.rand(2, 1, 33, 1) > 0.3,
    "additive": lambda: torch.randn(33, 50, dtype=HALF) * 3,
    "additive of heads": lambda: torch.randn(1, 4, 33, 50, dtype=HALF),
    "additive of keys": lambda: torch.randn(2, 1, 1, 50, dtype=HALF),
    "additive with -inf": lambda: torch.randn(33, 50, dtype=HALF).masked_fill(torch.rand(33, 50) > 0.6, -math.inf),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    assert_right("npu", *qkv(Sk=50, grad=True), MASKS[mask]())


@pytest.mark.parametrize("scale", (0.05, 0.3, 2.0))
def test_a_bias_is_added_behind_the_scale(scale: float) -> None:
    bias = torch.randn(33, 33) * 5
    assert_right("npu", *qkv(grad=True, dtype=torch.float32), bias, scale=scale)


@pytest.mark.parametrize("kind", ("bool", "additive", "half hidden, half low"))
def test_rows_that_see_no_key_are_zero(kind: str) -> None:
    mask = torch.rand(33, 50) > 0.3
    mask[3] = mask[8] = False
    given = mask if kind == "bool" else torch.zeros(33, 50, dtype=HALF).masked_fill(~mask, -math.inf)
    if kind.startswith("half"):
        given[9, :40], given[9, 40:] = torch.finfo(HALF).min, -math.inf
    q, k, v = qkv(Sk=50, grad=True)
    assert_right("npu", q, k, v, given)
    assert not run(lambda *x: F.scaled_dot_product_attention(*x), q, k, v, given, kernel="npu")[:, :, 3].any()


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
@pytest.mark.parametrize("scale", (None, 3.0))
def test_rows_hidden_by_a_large_finite_number_are_an_average(dtype: torch.dtype, scale: float | None) -> None:
    bias = torch.zeros(33, 50, dtype=dtype)
    bias[3] = bias[5, 7:] = torch.finfo(dtype).min
    assert_right("npu", *qkv(Sk=50, grad=True, dtype=dtype), bias, scale=scale)


BANDS = {
    "left": window(5, None, offset=17),
    "right": window(None, 4, offset=17),
    "both sides": window(3, 4, offset=17),
    "causal, bottom-right": MaskSpec.causal(17),
    "causal window": MaskSpec((*MaskSpec.causal(17).terms, *window(6, None, offset=17).terms)),
}


@pytest.mark.parametrize("mask", BANDS)
def test_windows(machine: Machine, mask: str) -> None:
    assert_like_brute_force("npu", machine, *qkv(Sk=50, Hkv=2, grad=True), mask=BANDS[mask])
    wanted = {"left": (5, 2**31 - 1), "both sides": (3, 4), "causal window": (6, 0)}
    assert torch_npu.calls[-1]["sparse_mode"] == (3 if mask.endswith("bottom-right") else 4)
    assert torch_npu.calls[-1]["tockens"] == wanted.get(mask, torch_npu.calls[-1]["tockens"])


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)


def test_dropout_and_its_backward() -> None:
    q, k, _ = qkv(Sq=64, D=64, bshd=False, grad=True)
    v = torch.eye(64, dtype=q.dtype).repeat(2, 4, 1, 1).requires_grad_()
    weights = run(dropped, q, k, v, kernel="npu")
    assert kernels_used() == ["npu"] and torch_npu.calls[-1]["keep_prob"] == 0.6
    assert abs((weights != 0).float().mean() - 0.6) < 0.02
    weight = torch.randn_like(weights)
    (grad,) = torch.autograd.grad(weights, v, weight)
    wanted = weights.detach().double().mT @ weight.double()
    assert (grad.double() - wanted).abs().max() < 4 * torch.finfo(q.dtype).eps * wanted.abs().max()
    assert not torch.equal(run(dropped, q, k, v, kernel="npu"), weights)


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(bshd: bool) -> None:
    ops = torch.ops.attnpass
    q, k, v = qkv(bshd=bshd, Hkv=2, Sk=50)
    masks, numbers = (
        (torch.randn(1, 4, 33, 50, dtype=HALF), torch.rand(2, 1, 33, 50) > 0.6),
        (0.2, 0, 2**31 - 1, 5, 0.0),
    )
    torch.library.opcheck(ops.npu.default, (q, k, v, *masks, *numbers))
    results = ops.npu_train(q, k, v, *masks, *numbers)
    torch.library.opcheck(ops.npu_backward.default, (results[0], q, k, v, *masks, *results, *numbers))
    leaves = (x.detach().requires_grad_() for x in (q, k, v))
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")  # the seed is not initialised
    torch.library.opcheck(ops.npu_train.default, (*leaves, *masks, *numbers), test_utils=utilities)


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "value_dim": ({"Dv": 32}, {}),
    "head_dim": ({"Sq": 3, "D": 776}, {}),
    "dtype": ({"dtype": torch.float64}, {}),
    "gqa": ({"B": 1, "H": 257, "Sq": 2, "D": 8}, {}),
    "scale": ({}, {"scale": -0.5}),
    "dropout": ({}, {"dropout_p": 1.0}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("npu", *qkv(**shape), **options) == {code}


def test_near_misses_of_the_refusals() -> None:
    assert_right("npu", *qkv(Sq=3, D=768))
    assert_right("npu", *qkv(B=1, H=256, Sq=2, D=8))
    q, k, v = qkv()
    assert refused("npu", q, k, v, torch.zeros(33, 33)) == {"mask_dtype"}
    assert refused("npu", q, k[:1], v[:1]) == {"broadcast"}
    assert_right("npu", q, k[:1].expand_as(k), v[:1].expand_as(v))


def test_rows_of_a_diagonal_that_could_be_empty(machine: Machine) -> None:
    for mask in (MaskSpec.causal(-17), window(5, None, offset=-17)):
        _, refusals = emitted("npu", machine, *qkv(Sq=50, Sk=33), mask=mask)
        assert [reason.code.value for reason in refusals] == ["empty_rows"]
    _, refusals = emitted("npu", machine, *qkv(Sk=50), mask=window(5, None))
    assert [str(reason) for reason in refusals] == ["offset of a window is 0, needs Sk - Sq, 17"]


def test_a_deterministic_backward_is_not_promised(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    from dataclasses import replace

    monkeypatch.setattr(Machine, "look", classmethod(lambda *_, **__: replace(machine, deterministic=True)))
    assert refused("npu", *qkv(grad=True)) == {"deterministic"}
    assert_right("npu", *qkv())


def test_a_library_without_v3(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_npu.install(monkeypatch, old=True)
    assert "npu_fusion_attention_v3" in tried(monkeypatch, TORCH_NPU, "2.5.1").problem
    torch_npu.install(monkeypatch)
    assert not tried(monkeypatch, TORCH_NPU, "2.13.0").problem


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cpu", TORCH_NPU, "2.13.0")
    assert refused("npu", *qkv()) == {"device"}
    assert str(decisions()[-1].rejections("npu")[0]) == "device is cpu, needs npu"


def assert_symbolic(attention: Callable[..., Tensor], *masks: Callable[[int], Tensor]) -> None:
    options = {"attnpass.kernel": "npu", "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(attention, backend="attnpass", options=options)
    for S in (33, 50):
        operands = [*qkv(Sq=S), *(mask(S) for mask in masks)]
        for x in operands:
            for dim in (2,) if x.ndim == 4 else (0, 1):
                torch._dynamo.mark_dynamic(x, dim)
        assert_near(compiled(*operands), attention(*operands))
    assert kernels_used()[-1] == "npu"


def test_symbolic_lengths() -> None:
    assert_symbolic(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert_symbolic(F.scaled_dot_product_attention, lambda S: torch.rand(S, S) > 0.3)


def test_conformance() -> None:
    """The generated calls, and those drawn from the kernel's own limits."""
    limits, outcomes = registry()["npu"].limits, Counter[str]()
    general = testing.cases(60, seed=5, dtypes=tuple(sorted(limits.dtypes, key=str)))
    for case in (*general, *testing.cases_for(limits, 90, seed=5)):
        B, H, _, Sq, Sk, D, _ = case.shape
        fit = testing.runnable(case) if B * H * Sq * Sk * D < LARGEST else None
        if fit is not None:
            outcomes["refused" if testing.check("npu", fit).refused else "right"] += 1
    print(f"\nconformance of npu over its stand-in: {dict(outcomes)}, none wrong")
    assert outcomes["right"] >= 55
