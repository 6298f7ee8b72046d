"""Decisions that travel: what a file says, what another process makes of it, and what is said where it cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import attnpass
from attnpass.errors import ConfigError
from attnpass.report import log
from attnpass.settings.config import Config
from attnpass.settings.decisions import DecisionsError, Locked, differences, entry_of, load
from benchmarks.shapes import Shape
from tests.helpers.cli_examples import run as command
from tests.helpers.compiled import decisions, kernels_used

X = torch.randn(2, 12, 32)


class Layer(nn.Module):
    """Self-attention, and attention over half as many tokens, in one module."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(2, (2, 16)).transpose(1, 2)
        k = q[:, :, ::2]
        return F.scaled_dot_product_attention(q, q, q) + F.scaled_dot_product_attention(q, k, k)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).transpose(1, 2).flatten(2)
        return x


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ATTNPASS_KERNEL", "ATTNPASS_DECISIONS"):
        monkeypatch.delenv(name, raising=False)
    attnpass.clear_reports()
    log._said.clear()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, x: Tensor = X, **options: str) -> Tensor:
    torch._dynamo.reset()
    attnpass.clear_reports()
    settings = {f"attnpass.{name}": value for name, value in {"compiler": "aot_eager", **options}.items()}
    with torch.no_grad():
        out: Tensor = torch.compile(model, backend="attnpass", options=settings)(x)
    return out


def test_another_process_gets_the_same_kernels(tmp_path: Path) -> None:
    model, file = Net(), str(tmp_path / "decisions.json")
    policy = "native_flash; Sk<12=native_math; layers.1=reference"
    wanted = compiled(model, kernel=policy)
    chosen = kernels_used()
    assert len(set(chosen)) > 1
    attnpass.lock(file)
    got = compiled(model, decisions=file)
    assert kernels_used() == chosen and torch.equal(got, wanted)
    compiled(model, torch.randn(1, 40, 32), decisions=file)  # other lengths: the nearest entry
    assert kernels_used() == chosen
    assert all("decisions.json" in decision.clause for decision in decisions())


def test_equal_entries_stand_there_once(tmp_path: Path) -> None:
    compiled(Net())
    first = attnpass.lock(tmp_path / "one.json").read_text()
    attnpass.reports()[0]
    doubled = attnpass.lock(tmp_path / "two.json", attnpass.reports() * 2).read_text()
    assert first == doubled and len(json.loads(first)["calls"]) == 4
    assert not differences(load(str(tmp_path / "one.json")), load(str(tmp_path / "two.json")))


def test_what_cannot_be_is_said_and_auto_chooses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "decisions.json"
    compiled(Net())
    attnpass.lock(file)
    file.write_text(file.read_text().replace('"native_flash"', '"native_cudnn"'))
    compiled(Net(), decisions=str(file))
    assert set(kernels_used()) == {"native_flash"}
    said = [record.message for record in caplog.records if "names native_cudnn for layers.0" in record.message]
    assert said and "which gets native_flash: device is cpu, needs cuda" in said[0]
    with pytest.raises(BackendCompilerFailed, match=r"taken by none of .*decisions\.json"):
        compiled(Net(), decisions=str(file), strict="1")


def test_a_call_that_the_file_lacks_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "decisions.json"
    compiled(Net())
    attnpass.lock(file)
    compiled(Net().bfloat16(), X.bfloat16(), decisions=str(file))
    assert any("has no entry for layers.0" in record.message for record in caplog.records)
    assert set(kernels_used()) == {"native_flash"}


@pytest.mark.parametrize("change", ("module", "mask", "dtype", "train", "D", "Hkv"))
def test_what_makes_it_another_call(change: str) -> None:
    call = Shape((1, 8, 8, 64, 64, 64)).call(False, torch.device("cpu"))
    entry = entry_of(call, "flex")
    assert Locked("f", (entry,)).kernel_of(call) == "flex"
    other = {**entry, change: {"module": "x", "mask": "causal", "dtype": "fp32", "train": True}.get(change, 2)}
    assert Locked("f", (other,)).kernel_of(call) is None


def test_of_several_lengths_the_nearest_counts() -> None:
    entries = [
        entry_of(Shape((1, 8, 8, S, S, 64)).call(False, torch.device("cpu")), kernel)
        for S, kernel in ((128, "native_cudnn"), (16384, "flash3"))
    ]
    near = {S: Shape((1, 8, 8, S, S, 64)).call(False, torch.device("cpu")) for S in (100, 1000, 4096, 99999)}
    found = {S: Locked("f", tuple(entries)).kernel_of(call) for S, call in near.items()}
    assert found == {100: "native_cudnn", 1000: "native_cudnn", 4096: "flash3", 99999: "flash3"}


@pytest.mark.parametrize("text", ("", "{", "[]", '{"schema": 1}', '{"schema": 1, "calls": [{"kernel": "flex"}]}'))
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with pytest.raises(DecisionsError, match="cannot be read"):
        load(str(file))
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"options\['attnpass.decisions'\] is .*`attnpass lock`"):
        Config.load({"attnpass.decisions": str(file)})


def test_the_command_writes_and_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch, torch.nn.functional as F\n"
        "model = lambda x: F.scaled_dot_product_attention(x, x, x)\n"
        "inputs = torch.randn(1, 2, 8, 16)\n"
    )
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    code, out, err = command(capsys, "lock", str(net), "--out", str(one))
    assert (code, err) == (0, []) and out == [f"{one}: 1 call; ATTNPASS_DECISIONS={one} holds a program to it"]
    two.write_text(one.read_text().replace("native_flash", "flex"))
    assert command(capsys, "lock", "--diff", str(one), str(one))[:2] == (0, ["the same kernels for the same calls"])
    code, out, _ = command(capsys, "lock", "--diff", str(one), str(two))
    assert code == 1 and out[1].split()[:2] == ["native_flash", "flex"]
    assert command(capsys, "lock", "--diff", str(one), str(tmp_path / "none.json"))[0] == 2
