"""aiter end to end against a stand-in: the diagonal, its one kind of mask, rows without keys, versions, refusals."""

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
from attnpass.kernels.aiter import AITER
from attnpass.kernels.registry import registry
from attnpass.machine.machine import Machine
from tests.helpers.compiled import assert_near, assert_right, decisions, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import aiter, pretend

HALF = torch.bfloat16
LARGEST = 2_000_000  # products in a generated case: PyTorch's own half precision is slow on a CPU


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    aiter.install(monkeypatch)
    return pretend(monkeypatch, "mi300", AITER, "0.1.7.post2.dev18")


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("D", (64, 60))
def test_training(bshd: bool, D: int) -> None:
    assert_right("aiter", *qkv(D=D, bshd=bshd, grad=True), is_causal=True)
    assert aiter.calls[0]["return_lse"] and aiter.calls[-1] == {"deterministic": False}


def test_another_value_head_dim_grouped_heads_and_scale() -> None:
    assert_right("aiter", *qkv(H=6, Hkv=2, Sk=50, D=72, Dv=36, grad=True), enable_gqa=True, scale=0.3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_inference(dtype: torch.dtype) -> None:
    assert_right("aiter", *qkv(D=60, Sk=50, dtype=dtype))
    assert not aiter.calls[-1]["return_lse"]


def test_one_query() -> None:
    assert_right("aiter", *qkv(Sq=1, Sk=65))
    assert refused("aiter", *qkv(Sq=1, Sk=65), is_causal=True) == {"causal_alignment"}


@pytest.mark.parametrize("version", ("0.1.5", "0.1.16"))
def test_other_versions(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    aiter.install(monkeypatch, version)
    pretend(monkeypatch, "mi300", AITER, version)
    assert_right("aiter", *qkv(grad=True), is_causal=True)
    assert_right("aiter", *qkv(), is_causal=True)


def test_deterministic_is_what_the_program_says() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert_right("aiter", *qkv(grad=True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert aiter.calls[-1] == {"deterministic": True}


MASKS = {
    "bool": lambda: torch.rand(33, 50) > 0.3,
    "bool, one head": lambda: torch.rand(1, 1, 33, 50) > 0.3,
    "keys only": lambda: torch.arange(50)[None] < 40,
    "3-D": lambda: torch.randn(1, 33, 50, dtype=HALF),
    "additive": lambda: torch.randn(33, 50, dtype=HALF) * 3,
    "additive with -inf": lambda: torch.randn(33, 50, dtype=HALF).masked_fill(torch.rand(33, 50) > 0.6, -math.inf),
    "transposed": lambda: torch.randn(50, 33, dtype=HALF).t(),
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask: str) -> None:
    given = MASKS[mask]()
    assert_right("aiter", *qkv(Sk=50, grad=given.dtype == torch.bool), given)


def test_an_additive_mask_in_training() -> None:
    bias = torch.randn(33, 50).masked_fill(torch.rand(33, 50) > 0.6, -math.inf)
    assert refused("aiter", *qkv(Sk=50, grad=True), bias.to(HALF)) == {"known_bug"}
    bias[3] = -math.inf
    assert_right("aiter", *qkv(Sk=50, grad=True, dtype=torch.float16), bias.half())


@pytest.mark.parametrize("additive", (False, True), ids=("bool", "additive"))
def test_rows_that_see_no_key_are_zero(additive: bool) -> None:
    mask = torch.rand(33, 50) > 0.3
    mask[3] = mask[8] = False
    given = torch.zeros(33, 50, dtype=HALF).masked_fill(~mask, -math.inf) if additive else mask
    q, k, v = qkv(Sk=50, grad=not additive)
    assert_right("aiter", q, k, v, given)
    assert not run(lambda *x: F.scaled_dot_product_attention(*x), q, k, v, given, kernel="aiter")[:, :, 3].any()


def test_rows_hidden_by_a_large_finite_number_are_an_average() -> None:
    bias = torch.zeros(33, 50, dtype=HALF)
    bias[3] = bias[5, 7:] = torch.finfo(HALF).min
    bias[9, :40], bias[9, 40:] = torch.finfo(HALF).min, -math.inf
    assert_right("aiter", *qkv(Sk=50), bias)


BANDS = {
    "left": window(5, None, offset=17),
    "both sides": window(3, 4, offset=17),
    "wider than the keys": window(90, 0, offset=17),
    "causal, bottom-right": MaskSpec.causal(17),
    "causal window": MaskSpec((*MaskSpec.causal(17).terms, *window(6, None, offset=17).terms)),
}


@pytest.mark.parametrize("mask", BANDS)
def test_windows(machine: Machine, mask: str) -> None:
    assert_like_brute_force("aiter", machine, *qkv(Sk=50, Hkv=2), mask=BANDS[mask])
    wanted = {"wider than the keys": (-1, -1), "causal, bottom-right": (-1, -1), "causal window": (6, 0)}
    assert aiter.calls[-1]["window"] == wanted.get(mask, aiter.calls[-1]["window"])


def test_windows_in_training(machine: Machine) -> None:
    assert_like_brute_force("aiter", machine, *qkv(Hkv=2, grad=True), mask=window(6, 3))


def dropped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)


def test_dropout_and_its_backward() -> None:
    q, k, _ = qkv(Sq=64, D=64, bshd=False, grad=True)
    v = torch.eye(64, dtype=q.dtype).repeat(2, 4, 1, 1).requires_grad_()
    weights = run(dropped, q, k, v, kernel="aiter")
    assert kernels_used() == ["aiter"]
    assert abs((weights != 0).float().mean() - 0.6) < 0.02
    weight = torch.randn_like(weights)
    (grad,) = torch.autograd.grad(weights, v, weight)
    wanted = weights.detach().double().mT @ weight.double()
    assert (grad.double() - wanted).abs().max() < 4 * torch.finfo(q.dtype).eps * wanted.abs().max()
    assert not torch.equal(run(dropped, q, k, v, kernel="aiter"), weights)


def test_ops() -> None:
    ops = torch.ops.attnpass
    q, k, v = (x.transpose(1, 2) for x in qkv(Hkv=2, Sk=50, Dv=32))
    given = (torch.randn(33, 50, dtype=HALF), 0.2, -1, -1, 0.0)
    torch.library.opcheck(ops.aiter.default, (q, k, v, *given))
    out, lse, rng_state = ops.aiter_train(q, k, v, *given)
    torch.library.opcheck(ops.aiter_backward.default, (out, q, k, v, given[0], out, lse, rng_state, *given[1:]))
    torch.library.opcheck(ops.aiter_train.default, (*(x.detach().requires_grad_() for x in (q, k, v)), *given))


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal_alignment": ({"Sk": 50}, {"is_causal": True}),
    "head_dim": ({"D": 264}, {}),
    "dtype": ({"dtype": torch.float32}, {}),
    "scale": ({}, {"scale": -0.5}),
    "dropout": ({}, {"dropout_p": 1.0}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("aiter", *qkv(**shape), **options) == {code}


def test_a_mask_of_each_batch_or_head_is_refused() -> None:
    for shape in ((2, 1, 33, 33), (1, 4, 33, 33), (4, 33, 33)):
        assert refused("aiter", *qkv(), torch.zeros(shape, dtype=HALF)) == {"mask_shape"}
    text = str(decisions()[-1].rejections("aiter")[0])
    assert text == "mask size over H is 4, needs 1, one mask for all"


def test_near_misses_of_the_refusals() -> None:
    assert_right("aiter", *qkv(Sq=9, D=256))
    bias = torch.zeros(33, 33, dtype=torch.float16, requires_grad=True)
    assert refused("aiter", *qkv(grad=True, dtype=torch.float16), bias) == {"mask_grad"}
    assert refused("aiter", *qkv(), torch.zeros(33, 33)) == {"mask_dtype"}
    narrow = torch.randn(2, 33, 4, 65, dtype=HALF)[..., :64].transpose(1, 2)
    assert refused("aiter", narrow, *qkv()[1:]) == {"alignment"}


def test_a_diagonal_that_the_assembly_backward_would_misplace(machine: Machine) -> None:
    _, refusals = emitted("aiter", machine, *qkv(Sk=50, grad=True), mask=MaskSpec.causal(17))
    assert [reason.code.value for reason in refusals] == ["causal_alignment"]
    _, refusals = emitted("aiter", machine, *qkv(), mask=window(0, 0))
    assert [str(reason) for reason in refusals] == ["window is (0, 0), needs a key beside the diagonal"]


@pytest.mark.parametrize("name", ("h100", "cpu"))
def test_other_machines(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, name, AITER, "0.1.7")
    assert "device" in refused("aiter", *qkv())


def assert_symbolic(attention: Callable[..., Tensor], *masks: Callable[[int], Tensor]) -> None:
    options = {"attnpass.kernel": "aiter", "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(attention, backend="attnpass", options=options)
    for S in (33, 50):
        operands = [*qkv(Sq=S), *(mask(S) for mask in masks)]
        for x in operands:
            for dim in (2,) if x.ndim == 4 else (0, 1):
                torch._dynamo.mark_dynamic(x, dim)
        assert_near(compiled(*operands), attention(*operands))
    assert kernels_used()[-1] == "aiter"


def test_symbolic_lengths() -> None:
    assert_symbolic(F.scaled_dot_product_attention, lambda S: torch.rand(S, S) > 0.3)


def test_conformance() -> None:
    """The generated calls, and those drawn from the kernel's own limits."""
    limits, outcomes = registry()["aiter"].limits, Counter[str]()
    general = testing.cases(80, seed=5, dtypes=tuple(sorted(limits.dtypes, key=str)))
    for case in (*general, *testing.cases_for(limits, 120, seed=5)):
        B, H, _, Sq, Sk, D, _ = case.shape
        fit = testing.runnable(case) if B * H * Sq * Sk * D < LARGEST else None
        if fit is not None:
            outcomes["refused" if testing.check("aiter", fit).refused else "right"] += 1
    print(f"\nconformance of aiter over its stand-in: {dict(outcomes)}, none wrong")
    assert outcomes["right"] >= 25
