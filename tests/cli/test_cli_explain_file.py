"""``attnpass explain FILE.py``: a user's own model, and everything that can be wrong with the file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnpass.cli.model_file import MODULE_NAME, load_model
from attnpass.errors import AttnpassError
from attnpass.report.record import calls_of
from tests.helpers.cli_examples import forget_settings, run


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget_settings(monkeypatch)
    yield
    sys.modules.pop(MODULE_NAME, None)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "import torch.nn.functional as F\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x, scale=None):\n"
        "        return F.scaled_dot_product_attention(x, x, x, scale=scale)\n"
        "model = Net()\n"
        "broken = lambda x: x.no_such_method()\n"
        "number = 3\n"
        "inputs = (torch.randn(1, 2, 8, 16),)\n"
    )
    return path


def test_explain_a_file(model_file: Path, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "explain", str(model_file), "--kernel", "native_math")
    assert (code, err) == (0, [])
    assert out[0].partition(": ")[2].startswith("1 attention call, 1 rewritten, 0 kept (")
    assert out[1].startswith("  native_math  x1  B1 H2 S8 D16 fp32, no mask  (top level)")
    assert out[2].startswith("  x1 in (top level), ")
    assert out[4] == "      native_math, because native_math was asked for by name; considered: native_math"
    assert "ATTNPASS_KERNEL" not in os.environ


def test_explain_names_the_machine_and_folds_the_kernels_of_others(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = run(capsys, "explain", str(model_file))[1]
    there = run(capsys, "explain", str(model_file), "--machine", "a100")[1]
    assert any(line.endswith(", on cpu") for line in here)
    assert any(line.endswith(", on NVIDIA A100, sm_80") for line in there)
    assert not any(line.endswith(", on cpu") for line in there)
    folded = [[line.strip() for line in out if "on other devices only: " in line] for out in (here, there)]
    assert folded[0] and all("flash2" in line and "xla" in line for line in folded[0])
    assert folded[1] and set(folded[1]) == {"on other devices only: aiter, npu, xla"}
    assert not any("device is" in line for line in here + there)


def test_explain_a_model_that_never_calls_sdpa(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What was recognised, line by line; and what was not, with the culprit."""
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\n"
        "class Attention(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        weights = (x @ x.mT / 4).softmax(-1)\n"
        "        return weights @ x\n"
        "class Cleaned(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        weights = (x @ x.mT / 4).softmax(-1)\n"
        "        return weights.tanh() @ x\n"
        "model = torch.nn.Sequential(Attention(), Cleaned(), Attention())\n"
        "inputs = (torch.randn(1, 2, 8, 16),)\n"
    )
    code, out, err = run(capsys, "explain", str(path), "--kernel", "native_math")
    assert (code, err) == (0, [])
    assert out[0].partition(": ")[2].startswith("2 attention calls, 2 rewritten, 0 kept (")
    assert "[0,2] (handwritten)" in out[1]
    assert out[1].endswith("net.py:5")
    code, out, _ = run(capsys, "explain", str(path), "--kernel", "native_math", "--json")
    (report,) = json.loads("\n".join(out))
    assert [(call["module"], call["source"].rpartition(":")[2]) for call in report["calls"]] == [("0", "5"), ("2", "5")]
    (miss,) = report["near_misses"]
    assert miss["source"].endswith("net.py:9")
    assert "`tanh`" in miss["reason"]


def test_explain_a_file_as_json(model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ATTNPASS_KERNEL", "native")
    code, out, _ = run(capsys, "explain", str(model_file), "--json")
    (report,) = json.loads("\n".join(out))
    assert code == 0
    assert [(call["kernel"], call["rewritten"]) for call in calls_of(report)] == [("native", False)]


def test_an_error_of_the_model_is_told_with_its_place(model_file: Path, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "explain", f"{model_file}:broken")
    assert (code, len(err)) == (2, 1)
    assert err[0].startswith(f"attnpass explain: error: tracing {model_file}:broken: ")
    assert "no_such_method" in err[0]


@pytest.mark.parametrize(
    ("source", "args", "kwargs"),
    [
        ("inputs = (1, 2)", (1, 2), {}),
        ("inputs = [1]", (1,), {}),
        ("inputs = {'x': 1}", (), {"x": 1}),
        ("def inputs(): return {'x': 1}", (), {"x": 1}),
    ],
)
def test_inputs_may_be_several_things(source: str, args: tuple[int, ...], kwargs: dict[str, int], tmp_path: Path):
    path = tmp_path / "net.py"
    path.write_text(f"model = print\n{source}\n")
    loaded = load_model(str(path))
    assert (loaded.model, loaded.args, loaded.kwargs) == (print, args, kwargs)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("1 / 0", r"loading .*net.py: ZeroDivisionError: division by zero \(at .*net.py:1\)"),
        ("raise SystemExit(3)", r"loading .*net.py: SystemExit: 3 \(at .*net.py:1\)"),
        ("inputs = ()", "defines no `model`, needs a module or a function; or name another one: FILE.py:name$"),
        ("import torch\nnet = torch.nn.Identity()", "modules in it: net$"),
        ("model = 3\ninputs = ()", "model is int, needs a module or a function"),
        ("model = print", "defines no `inputs`, needs a tuple, a dict, or a function that returns one$"),
        ("model = print\ninputs = 3", "`inputs` is int, needs a tuple, a dict, or a function that returns one"),
        (
            "model = print\ndef inputs(): raise ValueError('no\\ndetails')",
            r"calling inputs\(\) of .*: ValueError: no \(at",
        ),
    ],
)
def test_a_file_that_does_not_do_is_told(source: str, told: str, tmp_path: Path):
    path = tmp_path / "net.py"
    path.write_text(source + "\n")
    with pytest.raises(AttnpassError, match=told):
        load_model(str(path))
