"""Every block of Python in README and docs runs, in the surroundings that its page describes, and does what it says."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from tests.docs.pages import blocks
from tests.helpers.compiled import kernels_used
from tests.standins import module
from tests.test_distributed import WIDTH, Block

Names = dict[str, Any]


@dataclass(frozen=True)
class Given:
    """What a check may need of pytest."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]


SNIPPETS = blocks("python")
ELSEWHERE = "docs/integrations.md"  # each of its blocks has a test in tests/integrations


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_COMPILER", "aot_eager")


def run(page: str, number: int = 0, **names: Any) -> Names:
    """Run one block; it sees ``names``, and what comes back has those that it set."""
    exec(compile(SNIPPETS[page, number], f"{page}, block {number}", "exec"), names)
    return names


def x() -> Tensor:
    return torch.randn(2, 5, WIDTH)


def readme(_: Given) -> None:
    hub = SimpleNamespace(from_pretrained=lambda _: Block())
    run("README.md", AutoModel=hub, torch=torch)["model"](x())
    assert kernels_used() == ["native_flash"]


def first_page(_: Given) -> None:
    run("docs/index.md", model=Block())["model"](x())
    assert kernels_used() == ["native_flash"]


def api(_: Given) -> None:
    made: list[Any] = []
    compiled = SimpleNamespace(compile=lambda *args, **kwargs: made.append(torch.compile(*args, **kwargs)))
    run("docs/api.md", torch=compiled, model=Block())
    with torch.no_grad():
        made[0](x())
    (report,) = attnpass.reports()
    assert report.config.kernel.wishes == ("flex",) and len(report.decisions) == 1


def quickstart(given: Given) -> None:
    run("docs/quickstart.md")
    assert kernels_used() == ["native_flash"]
    run("docs/quickstart.md", 1)
    assert given.capsys.readouterr().out.split() == ["native_flash", "auto"]


def strict(_: Given) -> None:
    made: list[Any] = []
    compiled = SimpleNamespace(compile=lambda *args, **kwargs: made.append(torch.compile(*args, **kwargs)))
    run("docs/quickstart.md", 2, torch=compiled, model=Block())
    with pytest.raises(Exception, match="native_cudnn: device is cpu, needs cuda"):
        made[0](x())


def explained(_: Given) -> None:
    run("docs/quickstart.md", 3, attnpass=attnpass, model=Block(), args=(x(),))
    assert attnpass.reports() == []  # nothing is compiled


def counters(_: Given) -> None:
    run("docs/caches.md")


def changed(given: Given) -> None:
    given.monkeypatch.setenv("ATTNPASS_KERNEL", "auto")  # so that it is taken back behind the test
    run("docs/caches.md", 1, model=torch.compile(Block(), backend="attnpass"), x=x())
    assert os.environ["ATTNPASS_KERNEL"] == "native_math"
    assert kernels_used() == ["native_flash", "native_math"]


def two_models(_: Given) -> None:
    made = run("docs/caches.md", 2, torch=torch, model_a=Block(), model_b=Block())
    for name in ("fast", "plain"):
        made[name](x())
    assert kernels_used() == ["native_flash", "native"]


def by_hand(_: Given) -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
        around = {"torch": torch, "math": math, "F": F, "head_dim": 16, "p": 0.0, "training": False}
        out: Tensor = run("docs/handwritten.md", **around, q=q, k=k, v=v, attention_mask=attention_mask)["out"]
        return out

    q = torch.randn(2, 3, 8, 16)
    hidden = torch.full((8, 8), -math.inf).triu(1)
    torch.testing.assert_close(program(q, q, q, hidden), F.scaled_dot_product_attention(q, q, q, is_causal=True))


def proved(_: Given) -> None:
    B, S = 2, 32
    q, mask = torch.randn(B, 1, S, 16), torch.ones(B, S, dtype=torch.long)
    around = {"torch": torch, "F": F, "B": B, "S": S, "attention_mask": mask}
    made = run("docs/masks.md", **around, q_states=q, k_states=q, v_states=q)
    assert torch.equal(made["mask"].expand(B, 1, S, S), torch.ones(S, S, dtype=torch.bool).tril().expand(B, 1, S, S))


def selective(_: Given) -> None:
    block = Block()
    run("docs/training_memory.md", torch=torch, block=block)["step"](x()).sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())


def verified(given: Given) -> None:
    run("docs/verifying.md", model=Block(), x=x())
    assert float(given.capsys.readouterr().out.split("(")[-1].split(",")[0].rstrip(")\n")) < 1e-5
    assert kernels_used() == ["reference"]


def kernel_test(given: Given) -> None:
    module(given.monkeypatch, "my_package.attnpass_kernel", MyAttention=object)
    assert callable(
        run("docs/add_a_kernel.md")["test_my_attention"]
    )  # on a GPU; tests/kernels has the example on a CPU


def library(given: Given) -> None:
    made = run("docs/add_a_kernel.md", 1)
    module(given.monkeypatch, "my_attention", build_flags={"BACKWARD": True})
    assert made["MY_ATTENTION"].build() == {"backward": True}
    module(given.monkeypatch, "my_attention", build_flags={})
    with pytest.raises(made["UnusableError"], match="for another GPU"):
        made["MY_ATTENTION"].build()


CHECKS: dict[tuple[str, int], Callable[[Given], None]] = {
    ("README.md", 0): readme,
    ("docs/index.md", 0): first_page,
    ("docs/api.md", 0): api,
    ("docs/quickstart.md", 0): quickstart,
    ("docs/quickstart.md", 1): quickstart,
    ("docs/quickstart.md", 2): strict,
    ("docs/quickstart.md", 3): explained,
    ("docs/caches.md", 0): counters,
    ("docs/caches.md", 1): changed,
    ("docs/caches.md", 2): two_models,
    ("docs/handwritten.md", 0): by_hand,
    ("docs/masks.md", 0): proved,
    ("docs/training_memory.md", 0): selective,
    ("docs/verifying.md", 0): verified,
    ("docs/add_a_kernel.md", 0): kernel_test,
    ("docs/add_a_kernel.md", 1): library,
}


def test_every_block_is_run() -> None:
    assert set(CHECKS) == {key for key in SNIPPETS if key[0] != ELSEWHERE}


@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()), ids=lambda check: check.__name__)
def test_a_block_does_what_it_says(
    check: Callable[[Given], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(Given(monkeypatch, capsys))
