"""Compile a function with attnpass and look at what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import attnpass
from attnpass.select import Decision


def run(
    fn: Callable[..., Any], *args: Any, kernel: str = "native_flash", compiler: str = "aot_eager", **kwargs: Any
) -> Any:
    """The result of ``fn(*args)`` compiled with ``kernel``; `decisions` says what was done."""
    options = {"attnpass.kernel": kernel, "attnpass.compiler": compiler, **kwargs.pop("options", {})}
    return torch.compile(fn, backend="attnpass", options=options, **kwargs)(*args)


def decisions() -> list[Decision]:
    return [decision for report in attnpass.reports() for decision in report.decisions]


def kernels_used() -> list[str]:
    return [decision.kernel for decision in decisions()]


def codes(decision: Decision, kernel: str) -> set[str]:
    return {rejection.code.value for rejection in decision.rejections(kernel)}
