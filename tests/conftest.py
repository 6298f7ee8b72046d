"""What every test starts from: no settings in the environment, no compiled code, no reports, nothing tried or timed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import attnpass
from attnpass.report import log
from attnpass.trials import trials, verify

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers that each use every core get in each other's way: ten times slower


@pytest.fixture(autouse=True)
def clean_slate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("ATTNPASS_")]:
        monkeypatch.delenv(name)
    torch.manual_seed(0)
    torch._dynamo.reset()
    attnpass.clear_reports()
    verify.forget()
    trials.forget()
    yield
    log.configure("warning")
    logging.getLogger("attnpass").setLevel(logging.NOTSET)
    torch._dynamo.reset()
