"""The page's code names no settings; its tests want a kernel to look for, and no code generation."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quick(clean_slate: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_KERNEL", "native_flash")
    monkeypatch.setenv("ATTNPASS_COMPILER", "aot_eager")
