"""flash2 end to end against a stand-in: layouts, the diagonal, windows, softcap, dropout, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnpass.ir.mask import MaskSpec
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.sage import SAGE
from attnpass.machine.machine import Machine
from tests.helpers.compiled import assert_near, assert_right, codes, decisions, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.standins import flash_attn_2, pretend_all, sageattention_2

S = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_attn_2.install(monkeypatch)
    return pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3"})


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("D", (64, 60))
def test_training(bshd: bool, D: int) -> None:
    assert_right("flash2", *qkv(D=D, bshd=bshd, grad=True), is_causal=True)


def test_grouped_training_at_another_length_and_scale() -> None:
    assert_right("flash2", *qkv(H=6, Hkv=2, Sk=50, D=72, grad=True), enable_gqa=True, scale=0.3)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_inference(dtype: torch.dtype) -> None:
    assert_right("flash2", *qkv(D=60, dtype=dtype), is_causal=True)


def test_one_query() -> None:
    assert_right("flash2", *qkv(Sq=1, Sk=65))


def test_expanded_and_packed_operands() -> None:
    packed = torch.randn(2, 33, 3, 4, 64, dtype=torch.bfloat16).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in packed)
    assert_right("flash2", q, k, v, is_causal=True)
    assert_right("flash2", q, k[:1].expand_as(k), v[:1].expand_as(v))


def test_fewer_dims() -> None:
    assert_right("flash2", *(x[0].detach().requires_grad_() for x in qkv(bshd=False)), is_causal=True)


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
    assert_like_brute_force("flash2", machine, q, k, v, mask=MASKS[mask], softcap=softcap)


def test_rows_that_see_no_key_are_zero(machine: Machine) -> None:
    q, k, v = qkv(Sq=20, Sk=9, grad=True)
    assert_like_brute_force("flash2", machine, q, k, v, mask=MaskSpec.causal(-11))


def test_windows_of_2_6(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attn_2.install(monkeypatch, "2.6.3")
    machine = pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.6.3"})
    assert_like_brute_force("flash2", machine, *qkv(Sk=50, grad=True), mask=MASKS["both sides"])
    assert_right("flash2", *qkv(grad=True), is_causal=True)


def dropped(q: Tensor, k: Tensor) -> Tensor:
    """The weights behind dropout: V is the identity."""
    eye = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1).contiguous()
    return S(q, k, eye, dropout_p=0.4)


def test_dropout_drops_with_the_probability_and_scales_the_rest() -> None:
    q, k, _ = qkv(Sq=64, D=64, bshd=False)
    weights = run(dropped, q, k, kernel="flash2")
    assert kernels_used() == ["flash2"]
    kept = weights != 0
    assert abs(kept.float().mean() - 0.6) < 0.02
    whole = S(q.double(), k.double(), torch.eye(64, dtype=torch.double).expand(2, 4, -1, -1)) / 0.6
    assert (weights.double() - whole)[kept].abs().max() < 4 * torch.finfo(q.dtype).eps * whole.max()


def test_dropout_differs_between_runs_and_follows_the_seed() -> None:
    q, k, _ = qkv(Sq=64, D=64, bshd=False)
    options = {"attnpass.kernel": "flash2", "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(dropped, backend="attnpass", options=options)
    one, two = compiled(q, k), compiled(q, k)
    assert not torch.equal(one, two)
    torch.manual_seed(7)
    three = compiled(q, k)
    torch.manual_seed(7)
    assert torch.equal(three, compiled(q, k))


@pytest.mark.parametrize("recomputed", (False, True), ids=("kept", "checkpoint"))
def test_the_backward_drops_what_the_forward_dropped(recomputed: bool) -> None:
    q, k, _ = qkv(Sq=64, D=64, bshd=False, grad=True)
    v = torch.eye(64, dtype=q.dtype).repeat(2, 4, 1, 1).requires_grad_()

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return S(q, k, v, dropout_p=0.4)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return checkpoint(attention, q, k, v, use_reentrant=False) if recomputed else attention(q, k, v)

    out = run(model, q, k, v, kernel="flash2")
    assert kernels_used() == ["flash2"]
    weight = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, v, weight)
    wanted = out.detach().double().transpose(2, 3) @ weight.double()
    assert_near(grad, wanted)


def test_a_misaligned_gradient() -> None:
    """The output goes into a row of odd length, so its gradient comes as a view of one."""
    q, k, v = qkv(grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = S(q, k, v).transpose(1, 2).flatten(2)
        return torch.cat([out, torch.ones_like(out[..., :1])], -1)

    out, wanted = run(model, q, k, v, kernel="flash2"), model(q, k, v)
    assert kernels_used() == ["flash2"]
    weight = torch.randn_like(out)
    for got, right in zip(
        torch.autograd.grad(out, (q, k, v), weight), torch.autograd.grad(wanted, (q, k, v), weight), strict=True
    ):
        assert_near(got, right)


def test_frozen_part_and_trained_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattention_2.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3", SAGE: "2.2.0"})
    q, k, v = qkv(grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = S(q, k, v)
        return S(q, k, v) + frozen

    out, wanted = run(model, q, k, v, kernel="sage,flash2"), model(q, k, v)
    assert kernels_used() == ["sage", "flash2"]
    assert decisions()[1].rejections("sage")[0].code.value == "backward"
    assert (out - wanted).norm() < 0.05 * wanted.norm()
    out.sum().backward()


slow_vmap = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of PyTorch's own attention, beside ours


@slow_vmap
@pytest.mark.parametrize("in_dims", (0, (0, None, 1)))
def test_vmap(in_dims: Any) -> None:
    q, k, v = (torch.stack(x) for x in zip(*(qkv(bshd=False) for _ in range(3)), strict=True))
    if in_dims != 0:
        k, v = k[0], v.movedim(0, 1)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.vmap(lambda q, k, v: S(q, k, v, is_causal=True), in_dims)(q, k, v)

    out, wanted = run(model, q, k, v, kernel="flash2"), model(q, k, v)
    assert kernels_used() == ["flash2"]
    assert_near(out, wanted)


@slow_vmap
def test_vmap_over_a_misaligned_dimension() -> None:
    room = torch.randn(3, 4 * 33 * 64 + 1, dtype=torch.bfloat16)[:, :-1].view(3, 1, 4, 33, 64)
    out = run(lambda q: torch.vmap(lambda q: S(q, q, q))(q), room, kernel="flash2")
    assert kernels_used() == ["flash2"]
    assert_near(out, S(*[room.flatten(0, 1)] * 3).unflatten(0, (3, 1)))


@slow_vmap
def test_vmap_with_dropout_is_refused() -> None:
    """PyTorch asks whether the examples drop the same weights; the library cannot be told."""
    q = torch.stack(qkv(bshd=False))
    run(lambda q: torch.vmap(lambda q: S(q, q, q, dropout_p=0.1), randomness="different")(q), q, kernel="flash2")
    assert codes(decisions()[0], "flash2") == {"functorch"}


@slow_vmap
def test_vmap_in_training() -> None:
    q, k, v = (torch.stack(x).detach().requires_grad_() for x in zip(*(qkv(bshd=False) for _ in range(3)), strict=True))

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.vmap(S)(q, k, v)

    out, wanted = run(model, q, k, v, kernel="flash2"), model(q, k, v)
    assert_near(out, wanted)
    (got,), (right,) = torch.autograd.grad(out.sum(), q), torch.autograd.grad(wanted.sum(), q)
    assert_near(got, right)


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(bshd: bool) -> None:
    ops = torch.ops.attnpass
    numbers = (0.2, -1, 0, 0.0, 0.0)
    q, k, v = (x.transpose(1, 2) for x in qkv(bshd=not bshd, Hkv=2))
    torch.library.opcheck(ops.flash2.default, (q, k, v, *numbers))
    out, lse, rng_state = ops.flash2_train(q, k, v, *numbers)
    torch.library.opcheck(ops.flash2_backward.default, (out, q, k, v, out, lse, rng_state, *numbers))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(ops.flash2_train.default, (*leaves, *numbers))


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "causal_alignment": ({"Sk": 50}, {"is_causal": True}),
    "head_dim": ({"D": 264}, {}),
    "value_dim": ({"Dv": 32}, {}),
    "dtype": ({"dtype": torch.float32}, {}),
    "scale": ({}, {"scale": -0.5}),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_refusals(code: str) -> None:
    shape, options = REFUSALS[code]
    assert refused("flash2", *qkv(**shape), **options) == {code}


def test_near_misses_of_the_refusals() -> None:
    assert_right("flash2", *qkv(Sq=9, D=256))
    q, k, v = qkv()
    assert refused("flash2", q, k, v, torch.zeros(33, 33, dtype=torch.bfloat16)) == {"mask"}
    assert refused("flash2", *(x[:, :, :0].contiguous() for x in (q, k, v))) == {"length"}
    narrow = torch.randn(2, 33, 4, 65, dtype=torch.bfloat16)[..., :64].transpose(1, 2)
    assert refused("flash2", narrow, k, v) == {"alignment"}
    assert_right("flash2", *(x[..., :60] for x in (narrow, k, v)))  # padding it aligns it


def test_the_diagonal_of_a_window(machine: Machine) -> None:
    q, k, v = qkv(Sk=50)
    _, refusals = emitted("flash2", machine, q, k, v, mask=window(5, None))
    assert [reason.code.value for reason in refusals] == ["causal_alignment"]


def test_softcap_excludes_dropout(machine: Machine) -> None:
    _, refusals = emitted("flash2", machine, *qkv(), softcap=2.0, dropout_p=0.1)
    assert [reason.code.value for reason in refusals] == ["dropout"]


def test_large_head_dims_with_dropout_where_shared_memory_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attn_2.install(monkeypatch, little_memory=True)
    pretend_all(monkeypatch, "rtx4090", {FLASH_ATTN: "2.8.3"})
    assert refused("flash2", *qkv(Sq=9, D=256, grad=True), dropout_p=0.1) == {"head_dim"}
    assert_right("flash2", *qkv(Sq=9, D=256, grad=True))
    q, k, v = qkv(Sq=9, D=192, grad=True)
    out = run(lambda q, k, v: S(q, k, v, dropout_p=0.1), q, k, v, kernel="flash2")
    assert kernels_used()[-1] == "flash2"
    assert torch.autograd.grad(out.sum(), q)[0].abs().max() > 0
