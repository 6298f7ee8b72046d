"""flash3 end to end against a stand-in: its order of arguments, what builds leave out, windows, sinks, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnpass.ir.mask import MaskSpec
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.machine.machine import Machine
from tests.helpers.compiled import assert_near, assert_right, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import flash_attn_3, pretend_all

S = F.scaled_dot_product_attention
Build = Callable[..., Machine]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Install a build ``without`` some features on an H100."""

    def install(*without: str, machine: str = "h100", deterministic: bool = False, **how: Any) -> Machine:
        flash_attn_3.install(monkeypatch, without, **how)
        return pretend_all(monkeypatch, machine, {FLASH_ATTN_3: "3.0.0"}, deterministic=deterministic)

    return install


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, built: Build) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    return built(sinks=True)


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("D", (64, 60))
def test_training(bshd: bool, D: int) -> None:
    assert_right("flash3", *qkv(D=D, bshd=bshd, grad=True), is_causal=True)


def test_grouped_training_at_another_length_and_scale() -> None:
    assert_right("flash3", *qkv(H=6, Hkv=2, Sk=50, D=72, grad=True), enable_gqa=True, scale=0.3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_inference(dtype: torch.dtype, bshd: bool) -> None:
    assert_right("flash3", *qkv(D=60, dtype=dtype, bshd=bshd), is_causal=True)


@pytest.mark.parametrize("grad", (False, True))
def test_the_op_behind_the_python_function(built: Build, grad: bool) -> None:
    """The same results through the C++ op, which the real library has; the Python function is for older ones."""
    built(raw=True, sinks=True)
    before = flash_attn_3.RawOp.calls
    assert_right("flash3", *qkv(grad=grad, Hkv=2), enable_gqa=True, is_causal=True)
    assert flash_attn_3.RawOp.calls > before


MASKS = {
    "left": window(5, None, offset=17),
    "both sides": window(3, 4, offset=17),
    "causal, bottom-right": MaskSpec.causal(17),
    "causal window": MaskSpec((*MaskSpec.causal(17).terms, *window(6, None, offset=17).terms)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", (None, 2.0))
def test_windows_and_softcap(machine: Machine, mask: str, softcap: float | None) -> None:
    q, k, v = qkv(1, 2, 12, 32, Hkv=1, Sk=29, grad=True)
    assert_like_brute_force("flash3", machine, q, k, v, mask=MASKS[mask], softcap=softcap)


@pytest.mark.parametrize("mask", ("causal window", "left"))
def test_sinks(machine: Machine, mask: str) -> None:
    q, k, v = qkv(Sk=50, Hkv=2)
    sinks = torch.randn(4).bfloat16().float()  # the library wants bf16
    assert_like_brute_force("flash3", machine, q, k, v, sinks, mask=MASKS[mask])


@pytest.mark.parametrize("mask", ("causal window", "left"))
def test_sinks_learn(machine: Machine, mask: str) -> None:
    """By the log-sum-exp, of which the library's backward is told; it has no gradient for sinks of its own."""
    q, k, v = qkv(Sk=50, Hkv=2, grad=True)
    assert_like_brute_force("flash3", machine, q, k, v, torch.randn(4, requires_grad=True), mask=MASKS[mask])


def test_checkpoint_and_a_misaligned_gradient() -> None:
    q, k, v = qkv(grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Any = checkpoint(S, q, k, v, use_reentrant=False)
        out = out.transpose(1, 2).flatten(2)
        return torch.cat([out, torch.ones_like(out[..., :1])], -1)

    out, wanted = run(model, q, k, v, kernel="flash3"), model(q, k, v)
    assert kernels_used() == ["flash3"]
    weight = torch.randn_like(out)
    got, right = (torch.autograd.grad(x, (q, k, v), weight) for x in (out, wanted))
    for one, other in zip(got, right, strict=True):
        assert_near(one, other)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("grad", (False, True))
def test_vmap(grad: bool) -> None:
    q, k, v = (torch.stack(x).detach().requires_grad_(grad) for x in zip(qkv(), qkv(), strict=True))
    out = run(lambda q, k, v: torch.vmap(S)(q, k, v), q, k, v, kernel="flash3")
    assert kernels_used() == ["flash3"]
    wanted = S(q, k, v)
    assert_near(out, wanted)
    if grad:
        assert_near(torch.autograd.grad(out.sum(), k)[0], torch.autograd.grad(wanted.sum(), k)[0])


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(bshd: bool) -> None:
    ops = torch.ops.attnpass
    numbers = (0.2, -1, 0, 0.0)
    q, k, v = (x.transpose(1, 2) for x in qkv(bshd=not bshd, Hkv=2))
    torch.library.opcheck(ops.flash3.default, (q, k, v, None, None, *numbers))
    torch.library.opcheck(ops.flash3.default, (q, k, v, torch.randn(4, dtype=q.dtype), None, *numbers))
    out, lse = ops.flash3_train(q, k, v, *numbers)
    torch.library.opcheck(ops.flash3_backward.default, (out, q, k, v, out, lse, *numbers))
    torch.library.opcheck(ops.flash3_train.default, (*(x.detach().requires_grad_() for x in (q, k, v)), *numbers))


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal_alignment": ({"Sk": 50}, {"is_causal": True}),
    "value_dim": ({"Dv": 32}, {}),
    "dtype": ({"dtype": torch.float32}, {}),
    "scale": ({}, {"scale": -0.5}),
    "dropout": ({}, {"dropout_p": 0.1}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("flash3", *qkv(**shape), **options) == {code}


def test_a_forward_only_build(built: Build) -> None:
    machine = built(*flash_attn_3.FORWARD_ONLY)
    assert refused("flash3", *qkv(grad=True)) == {"backward"}
    assert_right("flash3", *qkv(D=96))  # its own kernel is not there, the one for 128 is
    _, refusals = emitted("flash3", machine, *qkv(), softcap=2.0)
    assert [reason.code.value for reason in refusals] == ["softcap"]
    assert_like_brute_force("flash3", machine, *qkv(), torch.randn(4))  # sinks by the log-sum-exp


def test_a_build_without_windows_and_fp16(built: Build) -> None:
    machine = built("LOCAL", "FP16")
    assert refused("flash3", *qkv(dtype=torch.float16)) == {"dtype"}
    assert_right("flash3", *qkv(), is_causal=True)
    _, refusals = emitted("flash3", machine, *qkv(), mask=window(4, None))
    assert [reason.code.value for reason in refusals] == ["mask"]


def test_a_build_of_few_head_dims(built: Build) -> None:
    built("HDIM192", "HDIM256")
    assert refused("flash3", *qkv(D=136)) == {"head_dim"}
    assert_right("flash3", *qkv(D=128))


def test_an_old_build_that_does_not_say_what_is_in_it(built: Build) -> None:
    built(config=False)
    assert_right("flash3", *qkv(grad=True))


def test_deterministic_backward(built: Build) -> None:
    built(deterministic=True)
    assert refused("flash3", *qkv(Sq=9, D=256, grad=True)) == {"deterministic"}
    assert_right("flash3", *qkv(Sq=9, D=248, grad=True))
    assert_right("flash3", *qkv(Sq=9, D=256))


@pytest.mark.parametrize("machine", ("a100", "b200", "rtx5090"))
def test_other_gpus_have_no_kernel_image(built: Build, machine: str) -> None:
    built(machine=machine)
    assert refused("flash3", *qkv()) == {"capability"}
