"""Two toy kernels and a runner, for the tests of the command line."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest

from attnpass.cli import main
from attnpass.ir.limits import Limits
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library


class Native(Kernel):
    name: ClassVar[str] = "native"
    title: ClassVar[str] = "the call stays"
    keeps: ClassVar[bool] = True
    limits: ClassVar[Limits] = Limits(devices=frozenset({"cuda", "cpu", "rocm", "npu", "tpu", "xpu", "mps"}))

    def emit(self, *args: Any) -> Any:
        raise AssertionError


class Picky(Native):
    name: ClassVar[str] = "picky"
    title: ClassVar[str] = "a kernel for tests"
    aliases: ClassVar[tuple[str, ...]] = ("_picky",)
    keeps: ClassVar[bool] = False
    limits: ClassVar[Limits] = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_90", "sm_90"),
        library=Library("picky-attn", "1.2"),
        head_dim_max=128,
        head_dim_multiple=8,
        terms=frozenset({Term.CAUSAL}),
        dropout=True,
        exact=False,
    )


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on stdout, lines on stderr."""
    code = main(argv)
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset every variable of ours that is set around the tests."""
    for name in [name for name in os.environ if name.startswith("ATTNPASS_")]:
        monkeypatch.delenv(name)
