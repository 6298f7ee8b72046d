"""The end of ``attnpass demo``: attention as people write it, which gains on any machine. Timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.report.text import block
from attnpass.trials.clock import in_turns

H, S, D = 8, 2048, 64  # on two cores: eager 246 ms, Inductor 116, attnpass 33
SECONDS = 3.0  # a form, beyond its first round


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """matmul, masked_fill and softmax, as in most tutorials."""
    hidden = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    scores: Tensor = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(hidden, float("-inf"))
    return torch.matmul(scores.softmax(-1), v)


def with_a_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA with the triangle as a tensor, in place of ``is_causal=True``."""
    seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


FORMS: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "causal, written by hand": by_hand,
    "SDPA with a triangle as its mask": with_a_mask,
}


def measure(device: torch.device, compiler: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row for each form: its milliseconds in eager, with the compiler alone and with attnpass.

    Args:
        device: where.
        compiler: the backend that attnpass is compared with.
        say: is handed the block of each log.
    """
    rows = []
    for name, form in FORMS.items():
        torch._dynamo.reset()
        attnpass.clear_reports()
        operands = [torch.randn(1, H, S, D, device=device) for _ in range(3)]
        runs = {
            "eager": form,
            compiler: torch.compile(form, backend=compiler, dynamic=False),
            "attnpass": torch.compile(form, backend="attnpass", dynamic=False),
        }
        with torch.no_grad():
            found = {run: call(*operands) for run, call in runs.items()}
            timed = in_turns({run: partial(call, *operands) for run, call in runs.items()}, device, SECONDS)
        for report in attnpass.reports():
            say(block(report))
        exact = form(*(x.double() for x in operands))
        error = {run: float((out.double() - exact).abs().max()) for run, out in found.items()}
        rows.append({"form": name, "ms": {run: timing.ms for run, timing in timed.items()}, "error": error})
    return rows
