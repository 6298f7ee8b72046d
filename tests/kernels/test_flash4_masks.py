"""flash4's masks by function: rules and padding together, over the stand-in, and over the library on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnpass
from attnpass.index.expr import FALSE, K, Lin, NonNeg, Q
from attnpass.index.logic import all_of
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.kernels.flash4_masks import _mask_function, parts_of
from tests.helpers.compiled import assert_near, decisions, kernels_used, qkv, run, skip_without
from tests.standins import flash_attn_4, pretend_all

S = F.scaled_dot_product_attention
GPU = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
)
Mask = Callable[[Tensor, Tensor], Tensor]
BOUNDS = st.one_of(st.integers(-40, 40), st.sampled_from((-(1 << 40), 1 << 40)))
RULES: dict[str, Mask] = {
    "causal": lambda q, k: k <= q,
    "window": lambda q, k: (k <= q) & (q - k < 100),
    "both sides": lambda q, k: (k - q < 50) & (q - k <= 30),
    "left": lambda q, k: q - k < 64,
}


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    _mask_function.cache_clear()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_attn_4.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {FLASH_ATTN_4: "4.0.0b36"})


@pytest.fixture(params=("cpu", GPU))
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu":
        request.getfixturevalue("stand_in")
        return "cpu"
    skip_without(FLASH_ATTN_4)
    return "cuda"


def padded(rule: Mask) -> Callable[..., Tensor]:
    """Attention under a rule and padding, as models write it."""

    def attention(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        rows = torch.arange(q.shape[2], device=q.device)[:, None]
        seen = rule(rows, torch.arange(k.shape[2], device=q.device)[None])
        mask = seen[None, None] & padding[:, None, None, :]
        return S(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

    return attention


def exact(rule: Mask, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    """The same in fp64, a row without keys 0: in eager PyTorch such a row is another number on each GPU and kernel."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    places = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    seen = rule(next(places)[:, None], next(places)[None])[None, None] & padding[:, None, None, :]
    scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v


def scattered(B: int, Sk: int) -> Tensor:
    """Padding in the middle, at the end, and everywhere."""
    seen = torch.rand(B, Sk, generator=torch.Generator().manual_seed(3)) > 0.2
    seen[0, Sk // 2 :] = False
    seen[-1] = B < 3
    return seen


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "shape", ({"Sq": 300}, {"Sq": 256, "Hkv": 2, "D": 128}, {"Sq": 130, "D": 72, "Hkv": 1}), ids=str
)
def test_right_beside_padding(rule: str, shape: dict[str, Any], device: str) -> None:
    q, k, v = (x.to(device) for x in qkv(B=3, **shape))
    padding = scattered(3, k.shape[2]).to(device)
    attention = padded(RULES[rule])
    out = run(attention, q, k, v, padding, kernel="flash4")
    assert_near(out, exact(RULES[rule], q, k, v, padding))
    assert kernels_used() == ["flash4"]
    assert "key_padding" in str(decisions()[0].call.mask)


@pytest.mark.parametrize("offset", (260, 0, 100))
def test_more_keys_than_queries(offset: int, device: str) -> None:
    """With a cache the diagonal ends in the last corner; with one of fixed size, in a prefill, somewhere else."""
    q, k, v = (x.to(device) for x in qkv(Sq=70, Sk=330))
    padding = scattered(2, 330).to(device)

    def rule(i: Tensor, j: Tensor) -> Tensor:
        return j <= i + offset

    assert_near(run(padded(rule), q, k, v, padding, kernel="flash4"), exact(rule, q, k, v, padding))
    assert kernels_used() == ["flash4"]


def test_layers_share_what_a_mask_is_made_of(device: str) -> None:
    attention = padded(RULES["causal"])

    def two(q: Tensor, padding: Tensor) -> Tensor:
        return attention(attention(q, q, q, padding), q, q, padding)

    q, padding = qkv(Sq=200)[0].to(device), scattered(2, 200).to(device)
    first = exact(RULES["causal"], q, q, q, padding).to(q.dtype)
    assert_near(
        run(two, q, padding, kernel="flash4", compiler="inductor"), exact(RULES["causal"], first, q, q, padding)
    )
    assert kernels_used() == ["flash4", "flash4"]
    gm = attnpass.rewrite(torch.fx.symbolic_trace(two), (q, padding), options={"attnpass.kernel": "flash4"})[0]
    calls = [node for node in gm.graph.nodes if "flash4_masked" in str(node.target)]
    assert len(calls) == 2 and calls[0].args[3:10] == calls[1].args[3:10]


@pytest.mark.parametrize(
    ("change", "code", "text"),
    (
        ({"D": 256}, "head_dim", "head_dim beside this mask is 256, needs at most 128"),
        ({"grad": True}, "mask", "mask in training is key_padding, needs no padding, or inference"),
    ),
    ids=("head dim", "training"),
)
def test_refusals(change: dict[str, Any], code: str, text: str, device: str) -> None:
    q, k, v = (x.to(device) for x in qkv(Sq=64, **change))
    if change.get("grad"):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    attention, padding = padded(RULES["causal"]), scattered(2, 64).to(device)
    run(attention, q, k, v, padding, kernel="flash4")
    reasons = decisions()[0].rejections("flash4")
    assert [(reason.code.value, str(reason)) for reason in reasons] == [(code, text)]


def test_lengths_must_be_numbers(device: str) -> None:
    def attention(q: Tensor, padding: Tensor) -> Tensor:
        places = torch.arange(q.shape[2], device=q.device)
        return S(q, q, q, (places[None] <= places[:, None]) & padding[:, None, None])

    q, padding = qkv(Sq=64)[0].to(device), scattered(2, 64).to(device)
    padding[:, 0] = True  # PyTorch computes it, for which a row without keys is another number on each GPU
    for tensor, dim in ((q, 2), (padding, 1)):
        torch._dynamo.mark_dynamic(tensor, dim)
    assert_near(run(attention, q, padding, kernel="flash4"), exact(RULES["causal"], q, q, q, padding))
    reasons = decisions()[0].rejections("flash4")
    assert [reason.code.value for reason in reasons] == ["dynamic", "dynamic"]
    assert all("beside this mask" in str(reason) and "needs a number" in str(reason) for reason in reasons)


@pytest.mark.parametrize(
    "rule",
    (lambda q, k: (k <= q) | (k < 7), lambda q, k: (q - k) % 2 == 0, lambda q, k: (q * 2 <= k) & (k <= q)),
    ids=("prefix", "every other", "another slope"),
)
def test_other_masks_are_refused(rule: Mask, device: str) -> None:
    """They may say more than bands and padding: PyTorch computes them as before."""
    q, k, v = (x.to(device) for x in qkv(Sq=64))
    padding, attention = scattered(2, 64).to(device), padded(rule)
    assert run(attention, q, k, v, padding, kernel="flash4").shape == q.shape
    assert kernels_used() == ["native"]


@st.composite
def masked_calls(draw: st.DrawFn) -> tuple[tuple[int, ...], Mask, str]:
    """Lengths around the size of a block, a band around any diagonal, and a way to say who takes part."""
    Sq, Sk = (draw(st.sampled_from((1, 77, 127, 128, 129, 256, 300))) for _ in range(2))
    left, right = (draw(st.one_of(st.none(), st.integers(0, 150))) for _ in range(2))
    diagonal = draw(st.sampled_from((0, Sk - Sq, -3, 100)))

    def rule(q: Tensor, k: Tensor) -> Tensor:
        seen = k < Sk + q
        seen = seen if left is None else seen & (q + diagonal - k <= left)
        return seen if right is None else seen & (k - q - diagonal <= right)

    return (draw(st.sampled_from((1, 3))), Sq, Sk), rule, draw(st.sampled_from(("bool", "ints", "lengths", "left")))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=masked_calls(), seed=st.integers(0, 1 << 30))
def test_any_band_and_padding(stand_in: None, one: tuple[tuple[int, ...], Mask, str], seed: int) -> None:
    """Rewritten as it is found, and computed by the stand-in: what is taken is right, blocks and all."""
    (B, Sq, Sk), rule, how = one
    torch.manual_seed(seed)
    q, k, v = qkv(B=B, H=2, Sq=Sq, Sk=Sk, D=16)
    lengths = torch.randint(0, Sk + 1, (B,))
    given_padding: dict[str, tuple[Tensor, Mask]] = {
        "bool": (torch.rand(B, Sk) > 0.4, lambda x, k: x),
        "ints": (torch.randint(0, 2, (B, Sk)), lambda x, k: x != 0),
        "lengths": (lengths, lambda x, k: k < x[:, None]),
        "left": (lengths, lambda x, k: k >= x[:, None]),
    }
    tensor, read = given_padding[how]

    def attention(q: Tensor, k: Tensor, v: Tensor, tensor: Tensor) -> Tensor:
        keys = torch.arange(Sk)
        mask = rule(torch.arange(Sq)[:, None], keys[None]) & read(tensor, keys)[:, None, None]
        return S(q, k, v, attn_mask=mask)

    torch._dynamo.reset()
    attnpass.clear_reports()
    out = run(attention, q, k, v, tensor, kernel="flash4", dynamic=False)
    (decision,) = decisions()
    hypothesis.event(f"{decision.kernel} {decision.call.mask} {[str(r)[:70] for r in decision.rejections('flash4')]}")
    if decision.kernel == "flash4":
        assert_near(out, exact(rule, q, k, v, read(tensor, torch.arange(Sk))))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from((1, -1)), BOUNDS), max_size=4), st.integers(1, 40))
def test_parts_are_the_mask(bounds: list[tuple[int, int]], length: int) -> None:
    """The bounds taken from conjuncts, against the conjuncts at every place."""
    bands = [NonNeg(Lin(((K, sign), (Q, -sign)), bound)) for sign, bound in bounds]
    keys = NonNeg(Lin(((K, -1),), length))
    parts = parts_of(all_of([*bands, keys]))
    assert parts.keys in (keys, FALSE)  # FALSE: bounds that leave nothing
    for q in range(0, 45, 4):
        for k in range(45):
            seen = all(sign * (k - q) + bound >= 0 for sign, bound in bounds) and k <= length
            inside = (parts.left is None or q - parts.left <= k) and (parts.right is None or k <= q + parts.right)
            assert seen == (inside and parts.keys == keys and k <= length)
