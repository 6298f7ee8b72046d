"""The blocks of text that pages show are what the programs beside them print, up to measured times."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.cli import minilm
from attnpass.report.text import mask_text, no_calls_warning, unmatched_text
from tests.test_docs import ROOT

EXAMPLES = ROOT / "docs" / "examples"
MEASURED = re.compile(r"\d+\.\d+(e[-+]\d+)?|(?<=graph )\d+")  # differs from run to run


def blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [alike(block) for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL)]


def alike(text: str) -> str:
    return MEASURED.sub("N", text.replace(f"{EXAMPLES}/", "")).strip()


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of ``docs/examples``, as if run in that folder."""
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("page", ("README.md", "docs/index.md", "docs/reading_the_log.md"))
def test_a_call_is_kept(page: str, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_KERNEL", "flex")
    program = example("model")
    (report,) = attnpass.explain(program.model, *program.inputs)
    assert alike(str(report)) in blocks(page)


def test_a_policy(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "docs/choosing_a_kernel.md"
    (wish,) = re.findall(r'ATTNPASS_KERNEL="(.*)" python policy_model.py', (ROOT / page).read_text(encoding="utf-8"))
    monkeypatch.setenv("ATTNPASS_KERNEL", wish)
    program = example("policy_model")
    (report,) = attnpass.explain(program.model, *program.inputs)
    assert alike(str(report)) in blocks(page)


def test_the_demos_model() -> None:
    pytest.importorskip("transformers")
    if importlib.util.find_spec(minilm.PACKAGE) is None:
        pytest.skip("the weights are not installed")
    loaded = minilm.load(torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        (report,) = attnpass.explain(loaded.model, **loaded.batch)
    assert alike(str(report)) in blocks("README.md")


def test_what_a_mask_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_KERNEL", "flex")

    def program(q: Tensor, attention_mask: Tensor) -> Tensor:
        rows, columns = torch.arange(2048)[:, None], torch.arange(2048)[None]
        near = (columns <= rows) & (rows - columns < 1024)
        return F.scaled_dot_product_attention(q, q, q, near & attention_mask[:, None, None].bool())

    (report,) = attnpass.explain(program, torch.randn(2, 1, 2048, 16), torch.ones(2, 2048, dtype=torch.long))
    assert alike(f"mask: {mask_text(report.decisions[0])}") in blocks("docs/masks.md")


def test_no_call() -> None:
    def program(q: Tensor) -> Tensor:
        return torch.softmax(q @ q.mT, -1).tanh() @ q

    (report,) = attnpass.explain(program, torch.randn(2, 4, 8, 16))
    told = alike(no_calls_warning(report))
    (shown,) = (each for each in blocks("docs/reading_the_log.md") if "no attention call" in each)
    beginning = " ".join(shown.removesuffix("[...]").split())
    assert re.sub(r"at \S+:\d+", "at hand.py:3", told).startswith(beginning)


def test_a_verified_call(example: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, value in {"KERNEL": "native_flash", "VERIFY": "1", "COMPILER": "aot_eager"}.items():
        monkeypatch.setenv(f"ATTNPASS_{name}", value)
    program = example("model")
    torch.compile(program.model, backend="attnpass")(*program.inputs)
    told = [alike(record.getMessage()) for record in caplog.records]
    (shown,) = (each for each in blocks("docs/verifying.md") if "verify: ok" in each)
    assert shown in told


def test_a_pattern_that_matches_nothing(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_KERNEL", "native_flash; *.crss=native_math")
    program = example("policy_model")
    (report,) = attnpass.explain(program.model, *program.inputs)
    assert unmatched_text(report) in blocks("docs/choosing_a_kernel.md")


def test_a_clause_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_KERNEL", "Sk>64=reference; native_flash")
    x = torch.randn(1, 2, 128, 16)
    torch._dynamo.mark_dynamic(x, 2)
    (report,) = attnpass.explain(F.scaled_dot_product_attention, x, x, x)
    (told,) = (line for line in str(report).splitlines() if "skipped" in line)
    assert re.sub(r"\bs\d+\b", "s12", told.strip()) in blocks("docs/choosing_a_kernel.md")


# A diagram or a grammar, and one sample of an H100.
NO_OUTPUT = {"docs/how_it_works.md": 1, "docs/masks.md": 1, "docs/handwritten.md": 1, "docs/choosing_a_kernel.md": 1}
TESTED = {"README.md": 2, "docs/index.md": 1, "docs/reading_the_log.md": 2, "docs/masks.md": 1, "docs/verifying.md": 1}
TESTED |= {"docs/choosing_a_kernel.md": 3, "docs/integrations.md": 1}


def test_no_block_of_text_is_without_a_test() -> None:
    for page in ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]:
        assert len(blocks(page)) == TESTED.get(page, 0) + NO_OUTPUT.get(page, 0), page
