"""flash3_fp8 end to end against flash3's stand-in, which computes with the numbers of 8 bits that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnpass.ir.mask import MaskSpec
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.flash3_fp8 import E4M3, LARGEST, LEAST, fp8_heads
from attnpass.machine.machine import Machine
from attnpass.offline import rewrite
from attnpass.testing import sdpa_graph
from tests.helpers.compiled import assert_right, kernels_used, qkv, refused, run
from tests.helpers.emitted import emitted, seen_by, window
from tests.standins import flash_attn_3, pretend_all

S = F.scaled_dot_product_attention
KERNEL = "flash3_fp8"
ALLOWED = 0.07
Build = Callable[..., Machine]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Install a build ``without`` some features on an H100."""

    def install(*without: str, machine: str = "h100", **how: Any) -> Machine:
        flash_attn_3.install(monkeypatch, without, **how)
        return pretend_all(monkeypatch, machine, {FLASH_ATTN_3: "3.0.0"})

    return install


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, built: Build) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    return built(raw=True)


def off(out: Tensor, wanted: Tensor) -> float:
    return ((out.double() - wanted).norm() / wanted.norm()).item()


def exact(q: Tensor, k: Tensor, v: Tensor, *mask: Tensor, **options: Any) -> Tensor:
    return S(q.double(), k.double(), v.double(), *mask, **options)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.parametrize("D", (64, 60))
def test_right(dtype: torch.dtype, bshd: bool, D: int) -> None:
    assert_right(KERNEL, *qkv(D=D, dtype=dtype, bshd=bshd), is_causal=True)
    assert_right(KERNEL, *qkv(H=6, Hkv=2, Sk=50, D=D, dtype=dtype, bshd=bshd), enable_gqa=True, scale=0.05)


def test_by_inductor_and_by_the_python_function(built: Build) -> None:
    assert_right(KERNEL, *qkv(Hkv=2), enable_gqa=True, compiler="inductor")
    built()
    before = flash_attn_3.RawOp.calls
    assert_right(KERNEL, *qkv(Hkv=2), enable_gqa=True, is_causal=True)
    assert flash_attn_3.RawOp.calls == before


def test_the_library_gets_numbers_of_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    met = []
    real = flash_attn_3._forward
    monkeypatch.setattr(flash_attn_3, "_forward", lambda q, *rest: met.append((q.dtype, rest[-1])) or real(q, *rest))
    q, k, v = qkv(Hkv=2)
    out = run(lambda q, k, v: S(q, k, v, enable_gqa=True), q, k, v, kernel=KERNEL)
    ((dtype, worth),) = met
    assert dtype == E4M3 and [each.shape for each in worth] == [(2, 2)] * 3
    assert 0.02 < off(out, exact(q, k, v, enable_gqa=True)) < ALLOWED, "as exact as bf16, or wrong"


@pytest.mark.parametrize("size", (1.0, 1e-4, 3e4))
def test_one_head_much_larger_than_another_and_keys_far_from_zero(size: float) -> None:
    """Each head has steps of its own; K's mean costs no bits, in causal calls and windows neither."""
    q, k, v = qkv(Sq=70, dtype=torch.float32)
    v = v * torch.tensor([size, 1.0, 1.0, 1.0])[:, None, None]
    k = k + 20 * torch.randn(1, 4, 1, 64)
    for options in ({}, {"is_causal": True}):
        out = run(lambda *x, o=options: S(*x, **o), q, k, v, kernel=KERNEL)
        wanted = exact(q, k, v, **options)
        assert all(off(out[:, head], wanted[:, head]) < ALLOWED for head in range(4))


def test_a_whole_head_of_zeros() -> None:
    q, k, v = qkv(dtype=torch.float32)
    for which in range(3):
        given = [x.clone() for x in (q, k, v)]
        given[which][:, 1] = 0.0
        assert_right(KERNEL, *given)
    assert_right(KERNEL, *(0 * x for x in (q, k)), v)


def test_one_key_is_its_own_mean() -> None:
    """K without its mean is 0, and what 1 of it is worth must not be: the kernel makes NaN of it."""
    assert_right(KERNEL, *qkv(Sq=1, Sk=1), is_causal=True)
    assert_right(KERNEL, *(1e-20 * x for x in qkv(Sq=3, Sk=7, dtype=torch.float32)))


@pytest.mark.parametrize("side", ("left", "right", "scattered"))
def test_keys_that_are_padding_cost_no_bits(side: str) -> None:
    """What lies in them may be anything: it is part of no mean and no largest number."""
    q, k, v = qkv(Sq=20, Sk=33, dtype=torch.float32)
    seen = torch.rand(2, 33) > 0.5 if side == "scattered" else torch.arange(33) < torch.tensor([[30], [12]])
    seen = seen.flip(1) if side == "left" else seen
    hidden = ~seen[:, None, :, None]
    k, v = (x.masked_fill(hidden, 1e5).transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    assert_right(KERNEL, q, k, v, seen[:, None, None])


@pytest.mark.parametrize("mask", (window(5, None, offset=17), window(3, 4, offset=17), MaskSpec.causal(17)), ids=str)
def test_windows(machine: Machine, mask: MaskSpec) -> None:
    q, k, v = qkv(1, 2, 12, 32, Hkv=1, Sk=29)
    k = k + 8 * torch.randn(32, dtype=k.dtype)
    gm, refusals = emitted(KERNEL, machine, q, k, v, mask=mask)
    assert not refusals
    assert off(gm(q, k, v), exact(q, k, v, seen_by(mask, 12, 29), enable_gqa=True)) < ALLOWED


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap() -> None:
    q, k, v = (torch.stack(x) for x in zip(qkv(), qkv(), strict=True))
    out = run(lambda q, k, v: torch.vmap(S)(q, k, v), q, k, v, kernel=KERNEL)
    assert kernels_used() == [KERNEL] and off(out, exact(q, k, v)) < ALLOWED


def test_autocast() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return S(q, k, v)

    q, k, v = qkv(dtype=torch.float32)
    out = run(model, q, k, v, kernel=KERNEL)
    assert kernels_used() == [KERNEL] and out.dtype == torch.bfloat16 and off(out, exact(q, k, v)) < ALLOWED


REFUSALS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("backward", {"grad": True}, {}),
    ("scale", {}, {"scale": -0.1}),
    ("scale", {}, {"scale": 0.126}),
    ("scale", {}, {"scale": 0.3}),
    ("dropout", {}, {"dropout_p": 0.1}),
    ("causal_alignment", {"Sk": 50}, {"is_causal": True}),
    ("value_dim", {"Dv": 32}, {}),
    ("head_dim", {"D": 264}, {}),
    ("head_dim", {"D": 16}, {}),
    ("dtype", {"dtype": torch.float64}, {}),
)


@pytest.mark.parametrize(("code", "shape", "options"), REFUSALS, ids=lambda x: x if isinstance(x, str) else "")
def test_refusals(code: str, shape: dict[str, Any], options: dict[str, Any]) -> None:
    assert code in refused(KERNEL, *qkv(**shape), **options)


def test_what_sees_the_mean_of_k_is_refused(machine: Machine) -> None:
    """A softcap or a sink beside the scores: K without its mean gives other weights."""
    for changes in ({"softcap": 2.0}, {"sinks": torch.randn(4)}):
        sinks = changes.pop("sinks", None)
        _, refusals = emitted(KERNEL, machine, *qkv(), sinks=sinks, **changes)
        assert [reason.code.value for reason in refusals] == ["softcap" if sinks is None else "sinks"]


def test_masks_that_are_refused() -> None:
    q, k, v = qkv()
    assert refused(KERNEL, q, k, v, torch.rand(33, 33) > 0.5) == {"mask"}
    assert refused(KERNEL, q, k, v, torch.randn(33, 33, dtype=q.dtype)) == {"mask"}
    each = (torch.arange(33) < 20) & torch.ones(33, 33, dtype=torch.bool).tril()
    assert refused(KERNEL, q, k, v, each) == {"mask"}


def test_builds_and_gpus(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    built("FP8", raw=True)
    assert refused(KERNEL, *qkv()) == {"library"}
    built("HDIM192", "HDIM256", raw=True)
    assert refused(KERNEL, *qkv(D=136)) == {"head_dim"}
    built(*flash_attn_3.FORWARD_ONLY, raw=True)
    assert_right(KERNEL, *qkv(D=96))
    for gpu in ("a100", "b200", "rtx5090"):
        built(machine=gpu)
        assert refused(KERNEL, *qkv()) == {"capability"}
    monkeypatch.setattr("tests.standins.flash_attn_3.flash_attn_func", lambda q, k, v, softmax_scale=None: q)
    built()
    assert refused(KERNEL, *qkv()) == {"library"}


def test_auto_never_takes_it() -> None:
    operands = qkv(Sq=16384, H=1)
    for library in ("flash3_fp8", "auto", "auto,flash3_fp8"):
        _, report = rewrite(sdpa_graph({}, mask=False), operands, options={"attnpass.kernel": library})
        assert (report.decisions[0].kernel == KERNEL) == (library == KERNEL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rounding(data: st.DataObject) -> None:
    """A number is off by a sixteenth of itself, or half the smallest step; nothing is NaN, and the largest is 448."""
    B, S, Hkv, group = (data.draw(st.integers(1, 3)) for _ in range(4))
    lengths = data.draw(st.none() | st.lists(st.integers(0, S), min_size=B, max_size=B))
    centred = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(B, S, Hkv * group, 16, generator=generator) * 10.0 ** data.draw(st.integers(-30, 30))
    counts = torch.ones(B, S) if lengths is None else (torch.arange(S) < torch.tensor(lengths)[:, None]).float()
    given_lengths = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
    least = data.draw(st.sampled_from(tuple(LEAST.values())))
    rounded, worth = fp8_heads(x, Hkv, given_lengths, centred, least)
    assert (rounded.dtype, rounded.shape, worth.dtype, worth.shape) == (E4M3, x.shape, torch.float32, (B, Hkv))
    counts = counts[..., None, None]
    mean = (x.double() * counts).sum(1, keepdim=True) / counts.sum(1, keepdim=True).clamp_min(1) if centred else 0.0
    wanted = (x.double() - mean) * counts
    steps = worth.double().repeat_interleave(group, 1)[:, None, :, None]
    gap = (rounded.double() * steps - wanted).abs()
    assert (gap <= wanted.abs() / 16 * 1.001 + steps * 2**-10 * 1.001 + x.abs().max() * 1e-6).all()
    largest = rounded.float().abs().unflatten(2, (Hkv, group)).amax((1, 3, 4))
    assert (
        (largest == LARGEST) | (wanted.unflatten(2, (Hkv, group)).abs().amax((1, 3, 4)) < LARGEST * least)
    ).all() or centred
