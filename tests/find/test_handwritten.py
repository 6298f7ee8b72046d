"""Attention written by hand: every spelling is recognised and right, forward and backward."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnpass
from attnpass.ir.decision import Decision
from attnpass.trials.reference import allowed_error, difference
from tests.helpers.compiled import codes, decisions, run
from tests.helpers.handwritten_chains import PARTS, Chain, exact, random_chain, traced
from tests.models.handwritten_models import VERBATIM, inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANDOM_CHAINS = int(os.environ.get("RANDOM_CHAINS", "300"))

SPELLINGS = {
    str(chain): chain
    for chain in (Chain(**{part: value}) for part, values in PARTS.items() for value in dict.fromkeys(values))
}


def rewritten(chain: Chain, tensors: list[Tensor], kernel: str) -> tuple[Callable[..., Tensor], Decision]:
    gm, report = attnpass.rewrite(traced(chain), tensors, options={"attnpass.kernel": kernel})
    assert not report.error, report.error
    assert len(report.decisions) == 1, [str(miss.reason) for miss in report.near_misses]
    (decision,) = report.decisions
    assert decision.call.pattern.value == "handwritten"
    return gm, decision


def gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    leaves = [t for t in tensors if t.requires_grad]
    return list(torch.autograd.grad((out * weight).sum(), leaves)) if leaves else []


def in_double(tensors: list[Tensor]) -> list[Tensor]:
    return [
        t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t.detach() for t in tensors
    ]


def assert_as_exact(got: list[Tensor], own: list[Tensor], right: list[Tensor], dtype: torch.dtype) -> None:
    """NaN where the chain gives NaN, else within a small multiple of the error that the chain itself makes."""
    largest = max((r.abs().nan_to_num(posinf=0.0).max().item() for r in right if r.numel()), default=0.0)
    for mine, eager, wanted in zip(got, own, right, strict=True):
        assert (mine.isnan() == wanted.isnan()).all()
        allowed = allowed_error([difference(eager, wanted)], dtype, 3.0, largest)
        found = difference(mine, wanted)
        assert found.nan == 0, found
        assert found.max_abs <= allowed, f"{found}, allowed {allowed:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_part_in_every_spelling(spelling: str, dtype: torch.dtype) -> None:
    """Forward and backward; a softcap has no kernel on the CPU that trains, and stays.

    So do biases that are added in fp16: one of -65504 rounds the score away there, and in no kernel.
    """
    chain = replace(SPELLINGS[spelling], dtype=dtype)
    tensors = chain.tensors(grad=True)
    gm, decision = rewritten(chain, tensors, "native_flash,native_math")
    rounded = dtype == torch.float16 and chain.bias != "none"
    assert decision.rewritten is (chain.softcap == "none" and not rounded)
    right_in = in_double(tensors)
    out, own, right = gm(*tensors), chain(*tensors), exact(chain, right_in)
    assert (out.dtype, out.shape) == (own.dtype, own.shape)
    assert_as_exact([out], [own], [right], dtype)
    assert_as_exact(gradients(out, tensors), gradients(own, tensors), gradients(right, right_in), dtype)


MIXED = {"GPT-J"}  # hides some keys by writing a low number and others by adding one: kept in training
ADDED = {"LLaMA", "Falcon", "Wav2Vec2", "ESM", "OpenCLIP", "MaxViT"}  # their masks; in fp16 kept in training
ADDED |= {"SAM", "Swin", "BEiT", "T5", "Bloom"}  # and biases that are no parameters


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(MIXED | ADDED))
def test_what_a_hidden_row_gives_is_not_tracked_in_training(name: str, dtype: torch.dtype) -> None:
    fn, shapes = VERBATIM[name]
    tensors = inputs(shapes, dtype)
    run(fn, *tensors, kernel="native_math")
    (decision,) = decisions()
    kept = name in MIXED or dtype == torch.float16
    assert decision.rewritten is not kept
    assert ("empty_rows" in codes(decision, "native_math")) is kept


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VERBATIM)
def test_models_as_their_authors_write_them(name: str, dtype: torch.dtype) -> None:
    fn, shapes = VERBATIM[name]
    tensors = inputs(shapes, dtype)
    right_in = in_double(tensors)
    trains = name not in MIXED and not (dtype == torch.float16 and name in ADDED)
    with torch.set_grad_enabled(trains):
        out = run(fn, *tensors, kernel="native_flash,native_math", fullgraph=True)
    (decision,) = decisions()
    assert decision.rewritten, decision.refused
    assert decision.call.source.file.endswith("handwritten_models.py")
    own, right = fn(*tensors), fn(*right_in)
    assert out.stride() == own.stride()
    assert_as_exact([out], [own], [right], dtype)
    if trains:
        assert_as_exact(gradients(out, tensors), gradients(own, tensors), gradients(right, right_in), dtype)


def test_there_are_many_spellings() -> None:
    assert len(SPELLINGS) + len(VERBATIM) >= 60


@pytest.mark.parametrize("seed", range(4))
def test_random_chains(seed: int) -> None:
    """Random combinations of the parts, rewritten and not, against the chain in fp64: none is wrong."""
    rng = random.Random(seed)
    checked = 0
    while checked < RANDOM_CHAINS // 4:
        chain = random_chain(rng.choice)
        if chain.meaningful:
            check_random_chain(chain)
            checked += 1


FOUND_WRONG_ONCE = (
    Chain(product="bmm", softcap="tanh", bias="-inf", mask="min", order="mask first", empty=True),
    Chain(softcap="tanh", bias="-inf", mask="min", empty=True, shape=(3, 2, 1, 4, 6, 32)),
    Chain(bias="padding", mask="min", empty=True),
    Chain(bias="-10000", softcap="tanh", empty=True),
)


@pytest.mark.parametrize("chain", FOUND_WRONG_ONCE, ids=str)
def test_chains_that_were_wrong_once(chain: Chain) -> None:
    check_random_chain(chain)


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    chain = random_chain(lambda values: draw(st.sampled_from(values)))
    return chain if chain.meaningful else Chain()


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(chains())
def test_any_chain(chain: Chain) -> None:
    check_random_chain(chain)


def check_random_chain(chain: Chain) -> None:
    tensors = chain.tensors()
    gm, _ = rewritten(chain, tensors, "native_math,flex")
    out, own, right = gm(*tensors), chain(*tensors), exact(chain, tensors)
    assert (out.dtype, out.shape) == (own.dtype, own.shape)
    assert all(a == b or n == 1 for a, b, n in zip(out.stride(), own.stride(), out.shape, strict=True))
    assert_as_exact([out], [own], [right], chain.dtype)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
