"""Every library's kernel against calls drawn from its own limits, over its stand-in: right, or refused with a code.

It proves that what is handed to the library means what the call means; the libraries themselves are judged on a GPU
(``test_conformance.py``, ``pytest -m gpu``).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from attnpass import testing
from attnpass.kernels import registry
from tests.standins import (
    flash_attn_2,
    flash_attn_3,
    flash_attn_4,
    pretend_all,
    sageattention_1,
    sageattention_2,
    sageattn3,
    xformers,
)

COUNT = 150
LARGEST = 2_000_000  # products in a case: PyTorch's own attention in half precision is slow on a CPU
STANDINS: dict[str, tuple[Any, str, str, int]] = {  # stand-in, version, machine, right ones at least
    "flash2": (flash_attn_2, "2.8.3", "h100", 80),
    "flash3": (flash_attn_3, "3.0.0", "h100", 80),
    "flash4": (flash_attn_4, "4.0.0b36", "h100", 80),
    "sage": (sageattention_2, "2.2.0", "h100", 70),
    "sage_triton": (sageattention_2, "2.2.0", "h100", 45),
    "sage1": (sageattention_1, "1.0.6", "h100", 10),
    "sage3": (sageattn3, "1.0.0", "rtx5090", 40),
    "xformers": (xformers, "0.0.35", "h100", 70),
}


def work(case: testing.Case) -> int:
    B, H, _Hkv, Sq, Sk, D, Dv = case.shape
    return B * H * Sq * Sk * (D + Dv)


@pytest.mark.parametrize("kernel", STANDINS)
def test_right_or_refused(kernel: str, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty) -> None:
    standin, version, machine, floor = STANDINS[kernel]
    monkeypatch.setenv("ATTNPASS_PROBE", "0")  # a failed trial would refuse the call that is to be judged here
    standin.install(monkeypatch)
    limits = registry()[kernel].limits
    pretend_all(monkeypatch, machine, {limits.library: version})
    outcomes: Counter[str] = Counter()
    drawn = iter(testing.cases_for(limits, 6 * COUNT, seed=5))
    largest = LARGEST if limits.backward else 8 * LARGEST  # the latter take long keys only
    while outcomes.total() < COUNT:
        fit = testing.runnable(next(case for case in drawn if work(case) < largest))
        if fit is not None:
            outcome = testing.check(kernel, fit)
            outcomes["refused" if outcome.refused else "right"] += 1
    print(f"\nconformance of {kernel} over its stand-in: {dict(outcomes)}, none wrong")
    record_property("outcomes", str(dict(outcomes)))
    assert outcomes["right"] >= floor
