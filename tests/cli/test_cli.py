"""The command line: what it prints, its exit codes, and one clear line for what a user can mend."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest
import torch

import attnpass
from attnpass.cli import explain, info, main, parser
from attnpass.cli import kernels as kernels_command
from attnpass.cli.table import plain, print_table
from attnpass.ir.call import AttentionCall
from attnpass.kernels.registry import registry
from attnpass.kernels.support_table import limits_row, support_rows
from attnpass.report.record import calls_of
from tests.helpers.cli_examples import Native, Picky, forget_settings, run

COMMANDS = (explain, info, kernels_command)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_settings(monkeypatch)


@pytest.fixture
def toy_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    toys = MappingProxyType({"native": Native(), "picky": Picky()})
    for module in COMMANDS:
        name = "registry" if hasattr(module, "registry") else "registry_for"
        monkeypatch.setattr(module, name, lambda *_: toys)


@pytest.mark.usefixtures("toy_registry")
def test_explain_a_shape_on_an_invented_machine(capsys: pytest.CaptureFixture[str]):
    assert run(capsys, "explain", "--shape", "2,24,4096,80", "--kernel", "picky", "--machine", "h100") == (
        0,
        [
            "B2 H24 S4096 D80 bf16, no mask, on NVIDIA H100, sm_90",
            "(an invented machine, on which the library of every kernel is installed)",
            "picky -> picky: picky was asked for by name",
            "",
            "kernel  answer",
            "native  takes it",
            "picky   takes it (chosen)",
        ],
        [],
    )


@pytest.mark.usefixtures("toy_registry")
def test_explain_a_shape_with_all_reasons(capsys: pytest.CaptureFixture[str]):
    argv = ["--shape", "2,24,4096,132", "--kv-shape", "2,8,77,132", "--mask", "bool", "--dtype", "fp32", "--training"]
    code, out, _ = run(capsys, "explain", *argv, "--machine", "t4", "--kernel", "_picky", "--dropout", "0.1")
    assert code == 0
    assert out[0] == ("B2 H24 Hkv8 Sq4096 Sk77 D132 fp32, bool mask, dropout 0.1, training, on NVIDIA T4, sm_75")
    assert out[2] == "_picky -> kept (native): no kernel that was asked for takes the call"
    assert out[-1] == (
        "picky   GPU is sm_75, needs sm_90; dtype is fp32, needs bf16 or fp16; head_dim is 132, needs at most "
        "128; head_dim is 132, needs a multiple of 8; grouped-query attention is 24 heads on 8, needs as many "
        "key/value heads as query heads; mask is a bool tensor, needs none or causal"
    )


@pytest.mark.usefixtures("toy_registry")
def test_explain_a_shape_as_json(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(
        capsys, "explain", "--shape", "1,2,3,8", "--causal", "--machine", "h100", "--kernel", "picky", "--json"
    )
    document = json.loads("\n".join(out))
    assert code == 0
    assert document["machine"]["versions"]["picky-attn"] == "1.2"
    assert [(call["kernel"], call["mask"], call["rewritten"]) for call in calls_of(document)] == [
        ("picky", "causal", True)
    ]


ELSEWHERE = "on other devices only: "


@pytest.mark.parametrize("machine", ["here", *explain.KNOWN_MACHINES])
@pytest.mark.parametrize("extra", [(), ("--mask", "float", "--causal"), ("--training", "--kv-shape", "1,1,0,16")])
def test_explain_answers_for_every_machine(machine: str, extra: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "explain", "--shape", "1,4,64,64", "--machine", machine, *extra)
    assert (code, err) == (0, [])
    elsewhere = [
        name for line in out if line.startswith(ELSEWHERE) for name in line.removeprefix(ELSEWHERE).split(", ")
    ]
    assert {line.split("  ")[0].strip() for line in out} & set(registry()) == set(registry()) - set(elsewhere)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["explain"], "reading the command line: give either FILE.py or --shape"),
        (["explain", "x.py", "--shape", "1,1,1,1"], "reading the command line: give either FILE.py or --shape"),
        (
            ["explain", "--shape", "1,1,8,8", "--kernel", "flx"],
            "choosing a kernel: --kernel names 'flx', which is",
        ),
        (["explain", "nothing.py"], "loading nothing.py: there is no file nothing.py, needs FILE.py or FILE.py:name"),
        (["demo", "--kernel", "flx"], "choosing a kernel: --kernel names 'flx', which is not a kernel"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_code_2(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, *argv)
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith(f"attnpass {argv[0]}: error: {told}")


@pytest.mark.parametrize("shape", ["1,2,3", "1,2,3,x", "1,2,3,-4"])
def test_a_bad_shape_is_refused_by_the_parser(shape: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["explain", "--shape", shape])
    assert shape in capsys.readouterr().err


@pytest.mark.usefixtures("toy_registry")
def test_kernels_prints_the_limits(capsys: pytest.CaptureFixture[str]):
    assert [re.sub(" {2,}", "|", line) for line in run(capsys, "kernels")[1]] == [
        "name|devices|GPUs|dtypes|head dims|Sq|masks|also|exact",
        "native|any|any|bf16, fp16|any|any|none|backward, deterministic|yes",
        "picky|cuda|sm_90|bf16, fp16|<= 128, multiple of 8|any|causal|dropout, backward, deterministic|no",
        "",
        "name|what it is|also accepted",
        "native|the call stays|-",
        "picky|a kernel for tests|_picky",
    ]


@pytest.mark.usefixtures("toy_registry")
def test_kernels_in_a_narrow_terminal_are_blocks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys, "kernels")[1]
    assert out[:3] == ["native", "  devices   any", "  GPUs      any"] and out[out.index("picky") - 1] == ""


def test_kernels_as_json_has_every_registered_kernel(capsys: pytest.CaptureFixture[str]):
    code, out, _ = run(capsys, "kernels", "--json")
    rows = json.loads("\n".join(out))
    assert code == 0
    assert list(dict.fromkeys(row["name"] for row in rows)) == list(registry())
    assert all(row.keys() == limits_row(registry()["native"]).keys() for row in rows)


def test_a_kernel_has_a_row_for_each_kind_of_machine_that_it_treats_differently():
    rows = support_rows(registry()["native_flash"])
    assert {row["devices"]: row["masks"] for row in rows} == {
        "cpu": "causal, tensor",
        "cuda": "causal, key_padding (alone, inference)",
        "rocm": "causal",
    }


@pytest.mark.usefixtures("toy_registry")
def test_info(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(info, "devices", lambda: [torch.device("cpu")])
    monkeypatch.setenv("ATTNPASS_LIMIT", "3")
    monkeypatch.setenv("ATTNPASS_KERNELS", "flex")
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert f"attnpass      {attnpass.__version__}" in out
    assert "picky-attn    -" in out
    assert "native  yes     -" in out
    assert "picky   no      device is cpu, needs cuda; picky-attn is not installed, needs >= 1.2" in out
    assert ["ATTNPASS_LIMIT", "3", "ATTNPASS_LIMIT"] in [line.split() for line in out]
    assert ["ATTNPASS_KERNEL", "auto", "default"] in [line.split() for line in out]
    assert out[-1].startswith(
        "problem: reading attnpass settings: unknown environment variable ATTNPASS_KERNELS, did you"
    )


def test_info_is_printed_even_if_a_setting_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATTNPASS_STRICT", "maybe")
    code, out, _ = run(capsys, "info", "--json")
    facts = json.loads("\n".join(out))
    assert code == 0
    assert facts["settings"] == []
    assert "ATTNPASS_STRICT is 'maybe', needs 0 or 1" in facts["problems"][0]
    assert facts["kernels"]["cpu"]["native_cudnn"] == ["device is cpu, needs cuda"]
    assert facts["kernels"]["cpu"]["native_math"] == []


def test_tables_are_plain_in_a_pipe_and_wrapped_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    rows = [{"name": "flex", "modules": "blocks.[0,20].cross " * 8}]
    print_table(rows)
    assert capsys.readouterr().out.splitlines() == plain(rows)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in (("COLUMNS", "60"), ("TERM", "xterm"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    print_table(rows)
    out = capsys.readouterr().out
    assert out.count("blocks.[0,20].cross") == 8
    assert all(len(line) <= 60 + len("\x1b[1;4m\x1b[0m") * 4 for line in out.splitlines())
    assert "\x1b[36m" not in out  # cyan, as the first column would be


def test_version_and_missing_command(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"attnpass {attnpass.__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        main([])


def test_as_a_module_into_a_pipe_that_closes():
    command = [sys.executable, "-m", "attnpass", "kernels", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, attnpass.cli; print(sorted({'rich', 'jinja2', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_invented_calls_lie_as_models_store_them():
    args = explain_args("--shape", "2,3,4,5", "--kv-shape", "2,1,7,6")
    call = explain.make_call(args, explain.KNOWN_MACHINES["rtx4090"])
    assert isinstance(call, AttentionCall)
    assert (call.q.stride, call.k.shape, call.v.shape) == ((60, 5, 15, 1), (2, 1, 7, 5), (2, 1, 7, 6))
    assert (call.out.shape, call.enable_gqa) == ((2, 3, 4, 6), True)


def explain_args(*argv: str) -> Any:
    return parser().parse_args(["explain", *argv])
