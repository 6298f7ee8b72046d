"""Random programs through the whole backend: none may be wrong, crash the pass or hang.

A fixed, small number of them; ``scripts/fuzz.py`` runs the same generators for as long as one likes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.programs import make
from tests.fuzz.trial import BAD, KERNELS, attempt

# A failing program prints its source; making it smaller would take minutes.
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)
seeds = st.integers(0, 1 << 32)
kernel_names = st.sampled_from(KERNELS)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    trace = logging.getLogger("torch.__trace")  # pytest would keep what Dynamo traces, which takes as long as tracing
    trace.disabled = True
    logging.disable(logging.CRITICAL)  # "no attention found" is no news here
    yield
    logging.disable(logging.NOTSET)
    trace.disabled = False


def check(kind: str, seed: int, kernel: str, pure: bool = False) -> None:
    program = make(kind, seed, pure)
    again = f"python scripts/fuzz.py --{kind} 1 --only {seed}{' --pure' * pure}"
    for outcome in attempt(program, (kernel,)).outcomes:
        assert outcome.verdict not in BAD, f"{outcome.verdict} with {kernel}: {outcome.text}\n{again}\n{program}"


@settings(SETTINGS, max_examples=16)
@given(seeds, kernel_names)
def test_pure_masks(seed: int, kernel: str) -> None:
    check("masks", seed, kernel, pure=True)


@settings(SETTINGS, max_examples=32)
@given(seeds, kernel_names)
def test_masks_that_are_written(seed: int, kernel: str) -> None:
    check("masks", seed, kernel)


@settings(SETTINGS, max_examples=48)
@given(seeds, kernel_names)
def test_attention_by_hand(seed: int, kernel: str) -> None:
    check("chains", seed, kernel)


@settings(SETTINGS, max_examples=24)
@given(seeds, kernel_names)
def test_gradients(seed: int, kernel: str) -> None:
    check("grads", seed, kernel)
