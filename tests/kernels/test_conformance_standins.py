"""Every library's kernel against calls drawn from its own limits, over its stand-in: right, or refused with a code.

It proves that what is handed to the library means what the call means; the libraries themselves are judged on a GPU
(``test_conformance.py``, ``pytest -m gpu``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attnpass import testing
from attnpass.kernels.registry import registry
from tests.standins import (
    flash_attn_2,
    flash_attn_3,
    flash_attn_4,
    flash_decoding,
    pretend_all,
    sageattention_1,
    sageattention_2,
    sageattn3,
    xformers,
)

COUNT = 150  # of `make slow`; half of them otherwise
STANDINS: dict[str, tuple[Any, str, str, int]] = {  # stand-in, version, machine, right ones at least
    "flash2": (flash_attn_2, "2.8.3", "h100", 80),
    "flash3": (flash_attn_3, "3.0.0", "h100", 80),
    "flash3_fp8": (flash_attn_3, "3.0.0", "h100", 70),
    "flash4": (flash_attn_4, "4.0.0b36", "h100", 80),
    "flash_decoding": (flash_decoding, "3.7.1", "h100", 80),
    "sage": (sageattention_2, "2.2.0", "h100", 70),
    "sage_triton": (sageattention_2, "2.2.0", "h100", 45),
    "sage1": (sageattention_1, "1.0.6", "h100", 10),
    "sage3": (sageattn3, "1.0.0", "rtx5090", 40),
    "xformers": (xformers, "0.0.35", "h100", 70),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The cases are small: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", (COUNT // 2, pytest.param(COUNT, marks=pytest.mark.slow)))
@pytest.mark.parametrize("kernel", STANDINS)
def test_right_or_refused(
    kernel: str, count: int, monkeypatch: pytest.MonkeyPatch, record_property: pytest.RecordProperty
) -> None:
    standin, version, machine, floor = STANDINS[kernel]
    standin.install(monkeypatch, **({"raw": True} if standin is flash_attn_3 else {}))  # as the real one is
    pretend_all(monkeypatch, machine, {registry()[kernel].limits.library: version})
    outcomes = testing.conform(kernel, count=count, seed=5)
    print(f"\nconformance of {kernel} over its stand-in: {dict(outcomes)}, none wrong")
    record_property("outcomes", str(dict(outcomes)))
    assert outcomes["right"] >= floor * count / COUNT * 0.8
