"""flash_decoding: emitted against a stand-in of its programs, and the programs themselves where Triton runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from attnpass.kernels import flash_decoding as kernel_file
from attnpass.kernels.flash_decoding import FLAT, LARGE, TRITON, USUAL, Tiling, tiling_of
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.select.select import select
from attnpass.settings.config import Config
from benchmarks.shapes import Shape
from tests.helpers.compiled import assert_near, assert_right, decisions, kernels_used, qkv, refused, run
from tests.helpers.emitted import assert_like_brute_force
from tests.standins import flash_decoding, pretend_all

KERNEL = "flash_decoding"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_decoding.install(monkeypatch)
    return pretend_all(monkeypatch, "h100", {TRITON: "3.7.1"})


def padding(B: int, Sk: int, *shown: tuple[int, int]) -> Tensor:
    key = torch.arange(Sk)
    return torch.stack([(key >= first) & (key < end) for first, end in shown])[:, None, None].expand(B, 1, 1, Sk)


@pytest.mark.parametrize("Sq", (1, 5, 16))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_lengths_and_grouped_heads(machine: Machine, Sq: int, dtype: torch.dtype) -> None:
    assert_right(KERNEL, *qkv(Sq=Sq, Sk=700, Hkv=2, dtype=dtype), enable_gqa=True)
    assert_right(KERNEL, *qkv(Sq=Sq, Sk=300, D=40, Dv=72, dtype=dtype), scale=-0.3)


@pytest.mark.parametrize("shown", (((0, 5), (90, 100)), ((0, 300), (299, 300)), ((17, 250), (0, 0))))
def test_only_the_keys_that_are_shown_are_read(machine: Machine, shown: Any) -> None:
    """Behind and in front of them lies what nobody wrote."""
    q, k, v = qkv(Sq=1, Sk=300)
    mask = padding(2, 300, *shown)
    wanted = F.scaled_dot_product_attention(q, k, v, mask)
    blocks = F.pad(mask, (0, 84)).unflatten(3, (3, 128)).any(4)
    spoilt = ~blocks.repeat_interleave(128, 3)[..., :300].transpose(2, 3)
    got = run(F.scaled_dot_product_attention, q, k.masked_fill(spoilt, math.nan), v.masked_fill(spoilt, math.nan), mask,
              kernel=KERNEL)  # fmt: skip
    assert kernels_used() == [KERNEL]
    assert_near(got, wanted)


@pytest.mark.parametrize("kind", ("bool, by row", "by head", "-inf", "lowest", "fp32 bias"))
def test_masks(machine: Machine, kind: str) -> None:
    q, k, v = qkv(Sq=3, Sk=200)
    shown = torch.rand(2, 4 if kind == "by head" else 1, 3, 200) < 0.5
    shown[0, :, 1] = False  # a row that sees no key
    masks: dict[str, Callable[[], Tensor]] = {
        "bool, by row": lambda: shown,
        "by head": lambda: shown,
        "-inf": lambda: torch.zeros(2, 1, 3, 200, dtype=q.dtype).masked_fill(~shown, -math.inf),
        "lowest": lambda: torch.zeros(2, 1, 3, 200).masked_fill(~shown, torch.finfo(torch.float32).min),
        "fp32 bias": lambda: torch.randn(1, 4, 3, 200),
    }
    assert_right(KERNEL, q, k, v, masks[kind]())


@pytest.mark.parametrize("softcap", (None, 2.0))
@pytest.mark.parametrize("Sk", (40, 900))
def test_sinks_and_softcap(machine: Machine, Sk: int, softcap: float | None) -> None:
    q, k, v = qkv(Sq=2, Sk=Sk, Hkv=2)
    assert_like_brute_force(KERNEL, machine, q, k, v, torch.randn(4), softcap=softcap)


def test_dynamic_caches_are_one_graph(machine: Machine) -> None:
    """The number of keys may be symbolic; that of queries may not: nothing proves that it stays small."""
    torch._dynamo.reset()
    for Sk in (100, 257):
        q, k, v = qkv(Sq=1, Sk=Sk)
        torch._dynamo.mark_dynamic(k, 2)
        torch._dynamo.mark_dynamic(v, 2)
        got = run(F.scaled_dot_product_attention, q, k, v, kernel=KERNEL)
        assert_near(got, F.scaled_dot_product_attention(q, k, v))
    assert kernels_used() == [KERNEL]


def test_what_it_refuses(machine: Machine) -> None:
    assert refused(KERNEL, *qkv(Sq=17, Sk=64)) == {"length"}
    assert refused(KERNEL, *qkv(Sq=4, Sk=64, grad=True)) == {"backward"}
    assert refused(KERNEL, *qkv(Sq=4, Sk=64), is_causal=True) == {"mask"}
    said = next(iter(decisions()[-1].rejections(KERNEL)))
    assert str(said) == "mask is causal, needs none"


def test_without_triton_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "h100", {})
    monkeypatch.setattr(Machine, "look", classmethod(lambda *_, **__: Machine("cuda", capability="sm_90")))
    with pytest.raises(BackendCompilerFailed, match="whose library triton is not installed here"):
        refused(KERNEL, *qkv(Sq=1, Sk=64))


@pytest.mark.parametrize(
    ("sizes", "mask", "graphs", "chosen"),
    [
        ((8, 32, 8, 1, 16384, 64), "padding", True, KERNEL),  # a tensor alone says how full the cache is
        ((1, 32, 8, 1, 4096, 128), "padding", True, KERNEL),
        ((1, 32, 8, 4, 4096, 128), "bool", True, KERNEL),
        ((32, 32, 8, 1, 16384, 64), "padding", False, KERNEL),
        ((1, 32, 8, 1, 4096, 128), "padding", False, "native_cudnn"),  # the host's time, which is the longer one
        ((2, 32, 8, 17, 4096, 128), "none", True, "native_cudnn"),
        ((2, 32, 8, 4096, 4096, 128), "none", True, "native_cudnn"),
    ],
)
def test_what_auto_takes_it_for(sizes: Any, mask: str, graphs: bool, chosen: str) -> None:
    call = Shape(sizes, mask).call(False, torch.device("cuda"))
    h100 = replace(KNOWN_MACHINES["h100"], cuda_graphs=graphs)
    assert select(call, registry(), h100, Config()).kernel == chosen


def test_large_caches_are_read_in_larger_tiles_and_flat_ones_where_memory_is_short() -> None:
    cache = 2 * 16 * 8 * 32768 * 128 * 2
    assert tiling_of(16, 128, cache) == LARGE
    assert tiling_of(16, 128, cache // 4) == tiling_of(32, 128, cache) == USUAL
    assert tiling_of(64, 256, cache) == FLAT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.sampled_from(((4, 4), (8, 2), (6, 1))), st.integers(1, 16), st.integers(1, 3000),
    st.sampled_from((16, 40, 64, 128, 256)), st.sampled_from(("none", "padding", "rows", "bias")), st.booleans(),
    st.sampled_from((0.0, 3.0)), st.sampled_from((USUAL, LARGE, FLAT)), st.integers(0, 2**20),
)  # fmt: skip
def test_the_programs_against_fp64(
    B: int,
    heads: tuple[int, int],
    Sq: int,
    Sk: int,
    D: int,
    kind: str,
    sunk: bool,
    softcap: float,
    tiling: Tiling,
    seed: int,
) -> None:
    (H, Hkv), device = heads, "cuda"
    make = torch.Generator(device=device).manual_seed(seed)
    q = torch.randn(B, H, Sq, D, device=device, generator=make, dtype=torch.bfloat16)
    k, v = (torch.randn(B, Hkv, Sk, D, device=device, generator=make, dtype=torch.bfloat16) for _ in range(2))
    sinks = torch.randn(H, device=device, generator=make) if sunk else None
    mask = None if kind == "none" else torch.randn(B if kind != "bias" else 1, H if kind == "bias" else 1,
        1 if kind == "padding" else Sq, Sk, device=device, generator=make)  # fmt: skip
    mask = mask if mask is None or kind == "bias" else mask > 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_file, "tiling_of", lambda *_: tiling)
        got = torch.ops.attnpass.flash_decoding(q, k, v, mask, sinks, D**-0.5, softcap)
    wanted = formula(q, k, v, mask, sinks, D**-0.5, softcap, torch.float64)
    near = formula(q, k, v, mask, sinks, D**-0.5, softcap, torch.float32).bfloat16()
    error, own = ((x.double() - wanted).norm() for x in (got, near))
    assert error <= 3 * own + 1e-6 * wanted.norm()


def formula(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, scale: float, cap: float, dtype: Any
) -> Tensor:
    G = q.shape[1] // k.shape[1]
    q, k, v = q.to(dtype), k.to(dtype).repeat_interleave(G, 1), v.to(dtype).repeat_interleave(G, 1)
    scores = q @ k.mT * scale
    scores = cap * torch.tanh(scores / cap) if cap else scores
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.to(dtype)
    if sinks is not None:
        logits = sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, logits], -1)
    return scores.softmax(-1).nan_to_num(0.0)[..., : k.shape[2]] @ v
