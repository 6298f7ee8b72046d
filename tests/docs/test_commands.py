"""Every command of README and docs runs, or is said to need a GPU, a download or many minutes; those are parsed.

A block is run line by line in a folder that holds the programs it names. Kernel libraries are there in name: on a CPU
their kernels refuse, which is what a user without a GPU sees.
"""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import attnpass
from attnpass.cli import main, parser
from attnpass.machine import library
from attnpass.machine.library import PYTORCH, Found, Library
from attnpass.trials import tuner
from attnpass.trials.clock import Timing
from attnpass.trials.example import Example
from tests.docs.pages import PAGES, blocks
from tests.test_docs import ROOT

BLOCKS = blocks("bash")
PROGRAMS = {"run.py": "model", "train.py": "model", "rollout.py": "model", "model.py": "model"}
PROGRAMS |= {"policy_model.py": "policy_model"}
# What is not run here: how such a line begins, and a word of which one stands on the line or above its block.
NOT_RUN = {
    "pip install": ("install",),
    "make ": ("make",),
    "python -m benchmarks.": ("minutes",),
    "python benchmarks/": ("GPU", "minutes", "anywhere", "how good"),
    "attnpass demo": ("needs", "demo"),  # tests/cli/test_cli_demo.py has it on a small model
    "ATTNPASS_KERNEL=hub:": ("Hub",),  # downloads; tests/kernels/test_hub.py has it on folders
    "attnpass explain --kernel hub:": ("Hub",),
}
INLINE = re.compile(r"`((?:python benchmarks/|python scripts/|attnpass |make )[^`\n]*)`")


def lines(block: str) -> Iterator[tuple[str, str]]:
    """Each command, and the comment behind it."""
    for line in block.splitlines():
        command, _, comment = line.partition(" #")
        if command.strip():
            yield command.strip(), comment


def is_run(command: str) -> bool:
    return not command.startswith(tuple(NOT_RUN))


def before(page: str, block: str) -> str:
    """The heading and the words above a block."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"```bash\n{block}")[0]
    return text[text.rfind("\n#") :]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the programs that the docs name, every library in name, and a clock that takes no time."""
    monkeypatch.chdir(tmp_path)
    for name, example in PROGRAMS.items():
        text = (ROOT / "docs" / "examples" / f"{example}.py").read_text(encoding="utf-8")
        (tmp_path / name).write_text(f"{text}\nnet = model\n")

    def there(one: Library) -> str:
        return str(torch.__version__) if one is PYTORCH else one.min_version or "1.0"

    monkeypatch.setattr(library, "version", there)
    monkeypatch.setattr(library, "try_out", lambda one: Found(there(one), build={}))
    monkeypatch.setattr(Example, "step", lambda *_: lambda: None)
    monkeypatch.setattr(tuner, "in_turns", lambda steps, *_: {name: Timing(1.0, 0.1) for name in steps})
    return tmp_path


def execute(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command in this process, with the variables that stand in front of it."""
    words = shlex.split(command)
    if words[0] == "export":
        monkeypatch.setenv(*words[1].split("=", 1))
        return
    with monkeypatch.context() as patch:
        patch.setenv("ATTNPASS_COMPILER", "eager")
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        torch._dynamo.reset()
        if words[0] == "attnpass":
            assert main(words[1:]) == 0
        else:
            assert words[0] == "python" and len(words) == 2
            attnpass.clear_reports()
            with torch.no_grad():
                runpy.run_path(words[1], run_name="__main__")
            assert attnpass.reports() and not any(report.error for report in attnpass.reports())


RUN = {key: block for key, block in BLOCKS.items() if any(is_run(command) for command, _ in lines(block))}


@pytest.mark.parametrize("key", RUN, ids=lambda key: f"{Path(key[0]).stem}-{key[1]}")
def test_a_block_of_commands_runs(key: tuple[str, int], workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "yesterday.json" in RUN[key]:
        for name in ("yesterday.json", "today.json"):
            main(["lock", "model.py", "--out", name])
    for command, _ in lines(RUN[key]):
        if is_run(command):
            execute(command, monkeypatch)


@pytest.mark.parametrize("key", BLOCKS, ids=lambda key: f"{Path(key[0]).stem}-{key[1]}")
def test_what_is_not_run_says_what_it_needs(key: tuple[str, int]) -> None:
    for command, comment in lines(BLOCKS[key]):
        words = next((words for start, words in NOT_RUN.items() if command.startswith(start)), ())
        around = comment + before(key[0], BLOCKS[key]) + BLOCKS[key]
        assert is_run(command) or any(word in around for word in words), command


def named() -> list[str]:
    """Every command that is not run, or that a sentence or a table names."""
    found = [command for block in BLOCKS.values() for command, _ in lines(block) if not is_run(command)]
    found += [one for page in PAGES for one in INLINE.findall((ROOT / page).read_text(encoding="utf-8"))]
    return list(dict.fromkeys(re.sub(r"^(?:\w+=\S+ )+", "", one) for one in found))


@pytest.mark.parametrize("command", named())
def test_a_command_that_is_named_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It parses: its options are there, and have such values."""
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "attnpass":
        parser().parse_args(words[1:] if "..." not in words else words[1:2])
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        name = Path(words[1]).stem
        script = importlib.import_module(f"benchmarks.{name}") if name != "figures" else None
        monkeypatch.setattr(sys, "argv", words[1:])
        if hasattr(script, "_arguments"):
            script._arguments()
        assert (ROOT / words[1]).exists()
    elif words[:2] == ["python", "-m"]:
        monkeypatch.setattr(sys, "argv", words[2:])
        importlib.import_module(words[2])._arguments()
    elif words[0] == "python":
        assert (ROOT / words[1]).exists() or words[1] in PROGRAMS
    else:
        assert words[:2] == ["pip", "install"]
