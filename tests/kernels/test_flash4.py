"""flash4 end to end against a stand-in: its tuples, its windows, sinks, value head dims, GPU generations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnpass.ir.mask import MaskSpec
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.machine.machine import Machine
from tests.helpers.compiled import assert_near, assert_right, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import flash_attn_4, pretend_all

S = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_attn_4.install(monkeypatch)
    return pretend_all(monkeypatch, "h100", {FLASH_ATTN_4: "4.0.0b36"})


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("is_causal", (True, False))
def test_training(bshd: bool, is_causal: bool) -> None:
    assert_right("flash4", *qkv(bshd=bshd, grad=True), is_causal=is_causal)


def test_grouped_training_at_another_length_and_scale() -> None:
    """At head dim 72 the library's gradients are wrong: the graph pads to 96."""
    assert_right("flash4", *qkv(H=6, Hkv=2, Sk=50, D=72, grad=True), enable_gqa=True, scale=0.3)


def test_another_value_dim_in_inference_and_not_on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Hopper some pairs of head dims fault."""
    assert refused("flash4", *qkv(D=72, Dv=40)) == {"value_dim"}
    pretend_all(monkeypatch, "b200", {FLASH_ATTN_4: "4.0.0b36"})
    assert_right("flash4", *qkv(D=72, Dv=40))
    assert refused("flash4", *qkv(D=64, Dv=32, grad=True)) == {"value_dim"}


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_inference(dtype: torch.dtype, bshd: bool) -> None:
    assert_right("flash4", *qkv(D=72, dtype=dtype, bshd=bshd), is_causal=True)


MASKS = {
    "left": window(5, None, offset=17),
    "right": window(None, 4, offset=17),
    "both sides": window(3, 4, offset=17),
    "causal, bottom-right": MaskSpec.causal(17),
    "causal window": MaskSpec((*MaskSpec.causal(17).terms, *window(6, None, offset=17).terms)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", (None, 2.0))
def test_windows_and_softcap(machine: Machine, mask: str, softcap: float | None) -> None:
    q, k, v = qkv(1, 2, 12, 32, Hkv=1, Sk=29, grad=True)
    assert_like_brute_force("flash4", machine, q, k, v, mask=MASKS[mask], softcap=softcap)


def test_rows_that_see_no_key_are_zero(machine: Machine) -> None:
    q, k, v = qkv(Sq=20, Sk=9, grad=True)
    assert_like_brute_force("flash4", machine, q, k, v, mask=MaskSpec.causal(-11))


@pytest.mark.parametrize("mask", ("causal window", "left"))
def test_sinks(machine: Machine, mask: str) -> None:
    q, k, v = qkv(Sk=50, Hkv=2)
    sinks = torch.randn(4).bfloat16().float()  # the library wants bf16
    assert_like_brute_force("flash4", machine, q, k, v, sinks, mask=MASKS[mask])


@pytest.mark.parametrize("mask", ("causal window", "left"))
def test_sinks_learn(machine: Machine, mask: str) -> None:
    """By the log-sum-exp, of which the library's backward is told; it has no gradient for sinks of its own."""
    q, k, v = qkv(Sk=50, Hkv=2, grad=True)
    assert_like_brute_force("flash4", machine, q, k, v, torch.randn(4, requires_grad=True), mask=MASKS[mask])


def test_checkpoint() -> None:
    q, k, v = qkv(grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return checkpoint(S, q, k, v, use_reentrant=False)

    out, wanted = run(model, q, k, v, kernel="flash4"), S(q, k, v)
    assert kernels_used() == ["flash4"]
    assert_near(torch.autograd.grad(out.sum(), k)[0], torch.autograd.grad(wanted.sum(), k)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("grad", (False, True))
def test_vmap(grad: bool) -> None:
    q, k, v = (torch.stack(x).detach().requires_grad_(grad) for x in zip(qkv(), qkv(), strict=True))
    out = run(lambda q, k, v: torch.vmap(S)(q, k, v), q, k, v, kernel="flash4")
    assert kernels_used() == ["flash4"]
    wanted = S(q, k, v)
    assert_near(out, wanted)
    if grad:
        assert_near(torch.autograd.grad(out.sum(), k)[0], torch.autograd.grad(wanted.sum(), k)[0])


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(bshd: bool) -> None:
    ops = torch.ops.attnpass
    numbers = (0.2, -1, 0, 0.0)
    q, k, v = (x.transpose(1, 2) for x in qkv(bshd=not bshd, Hkv=2, Dv=40))
    torch.library.opcheck(ops.flash4.default, (q, k, v, None, None, *numbers))
    torch.library.opcheck(ops.flash4.default, (q, k, v, torch.randn(4, dtype=q.dtype), None, *numbers))
    out, lse = ops.flash4_train(q, k, v, *numbers)
    torch.library.opcheck(ops.flash4_backward.default, (out, q, k, v, out, lse, *numbers))
    torch.library.opcheck(ops.flash4_train.default, (*(x.detach().requires_grad_() for x in (q, k, v)), *numbers))


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal_alignment": ({"Sk": 50}, {"is_causal": True}),
    "head_dim": ({"D": 264}, {}),
    "dtype": ({"dtype": torch.float32}, {}),
    "scale": ({}, {"scale": -0.5}),
    "dropout": ({}, {"dropout_p": 0.1}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("flash4", *qkv(**shape), **options) == {code}


def test_head_dims_are_not_padded() -> None:
    assert refused("flash4", *qkv(D=60, bshd=False)) == {"head_dim", "alignment"}
    assert_right("flash4", *qkv(Sq=9, D=256))


def test_k_that_is_v_with_512_values() -> None:
    """The library takes this for multi-head latent attention and computes another formula."""
    q, k, _ = qkv(Sq=9, D=512)
    assert refused("flash4", q, k, k) == {"head_dim"}


DATACENTER = ("b200", {"D": 192, "Dv": 128}, {"D": 192})
CONSUMER = ("rtx5090", {"D": 128}, {"D": 136})


@pytest.mark.parametrize(("name", "taken", "not_taken"), (DATACENTER, CONSUMER), ids=("b200", "rtx5090"))
def test_head_dims_of_other_generations(
    monkeypatch: pytest.MonkeyPatch, name: str, taken: dict[str, int], not_taken: dict[str, int]
) -> None:
    pretend_all(monkeypatch, name, {FLASH_ATTN_4: "4.0.0b36"})
    assert_right("flash4", *qkv(Sq=9, **taken))
    assert refused("flash4", *qkv(Sq=9, **not_taken)) == {"head_dim"}


def test_ampere_has_no_backward_and_consumer_blackwell_no_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "a100", {FLASH_ATTN_4: "4.0.0b36"})
    assert refused("flash4", *qkv(grad=True)) == {"backward"}
    assert refused("flash4", *qkv(Dv=32)) == {"value_dim"}
    machine = pretend_all(monkeypatch, "rtx5090", {FLASH_ATTN_4: "4.0.0b36"}, deterministic=True)
    _, refusals = emitted("flash4", machine, *qkv(), softcap=2.0)
    assert [reason.code.value for reason in refusals] == ["softcap", "deterministic"]
