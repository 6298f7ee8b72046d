"""How far approximate kernels may be off: each call of a model held to what its kernel declares, and their sum."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import torch

import attnpass
from attnpass.ir.decision import Decision
from attnpass.trials import verify
from benchmarks.steps import backend, run_step
from benchmarks.zoo.models import Subject


def declared(decisions: Iterable[Decision]) -> float:
    """What the approximate kernels in use may add to a model's relative error; 0 if all are exact.

    They declare the error of one call, which `with_each_call` holds each of them to. Those of several calls add up like
    independent errors: with the square root of their number.
    """
    errors = {kernel.name: kernel.limits.relative_error or 0.0 for kernel in attnpass.list_kernels()}
    return math.sqrt(sum(errors.get(decision.kernel, 0.0) ** 2 for decision in decisions))


def with_each_call(subject: Subject, step: str, record: dict[str, Any]) -> dict[str, Any]:
    """The record of a model, with the worst error of a single call where approximate kernels compute them."""
    approximate = {kernel.name for kernel in attnpass.list_kernels() if not kernel.limits.exact}
    if not approximate & {*record["calls"]["kernels"]}:
        return record
    calls = [call for call in _each_call(subject, step) if call.kernel in approximate]
    off = [f"{call.where}: off by {call.error:.2e}" for call in calls if not call.good]
    problems = [*record["problems"], *off, *([] if calls else ["no approximate call was compared"])]
    worst = max((call.error for call in calls), default=0.0)
    return {**record, "compared": len(calls), "worst_call": worst, "ok": not problems, "problems": problems}


def _each_call(subject: Subject, step: str) -> list[verify.Watched]:
    """Every rewritten call of the model on its own data, beside the reference (``ATTNPASS_VERIFY``)."""
    with patch.dict(os.environ, ATTNPASS_VERIFY="1"):
        torch._dynamo.reset()
        run_step(subject, torch.compile(subject.model, backend=backend()), step)
        return verify.compared()
