"""The cache folder, whatever lies in it: set aside and said once, never waited for, never trusted, never an error."""

from __future__ import annotations

import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from attnpass.cli import main
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.kernels.registry import registry
from attnpass.machine.machine import Machine
from attnpass.trials import cache, tuner
from attnpass.trials.tuner import TUNED, Candidate, Tuned, Tuner
from attnpass.trials.validate import VERDICTS, Verdict

KEY = {"kernel": "flash2", "library": "flash-attn 2.8", "gpu": "H100", "class": "B1"}
GOOD = Verdict(True, "all well", 1e-3, 2e-3, "2026-11-28")
VALUE = {"good": True, "text": "t", "error": 0.0, "allowed": 0.0, "date": "d"}


@pytest.fixture(autouse=True)
def forget_what_was_said() -> Iterator[None]:
    cache._said.clear()
    cache._temporary_folder.cache_clear()
    yield
    cache._temporary_folder.cache_clear()


def kept(folder: Path) -> Path:
    """The file of a good verdict."""
    VERDICTS.remember(folder, KEY, GOOD)
    (path,) = (folder / VERDICTS.name).glob("*.json")
    return path


def text(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def stored(**value: Any) -> Callable[[Path], object]:
    return text(json.dumps({"key": KEY, "value": {**VALUE, **value}}))


def folder_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("")


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket may have no more than 100 bytes
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


ODD: dict[str, Callable[[Path], Any]] = {
    "pipe": lambda path: os.mkfifo(path),
    "folder": folder_with_a_file,
    "socket": listening,
    "loop of links": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "invalid UTF-8": text(b'{"key": "\xff\xfe'),
    "nul bytes": text(b"\0" * 100),
    "empty": text(""),
    "cut short": text('{"key": {"ker'),
    "a list": text("[[[]], [[[1]]]]"),
    "a number": text("7"),
    "nothing": text("null"),
    "a text": text('"key"'),
    "lists for mappings": text('{"key": [[["kernel"], 1]], "value": [[]]}'),
    "a key of numbers": text(json.dumps({"key": {**KEY, "gpu": 7}, "value": VALUE})),
    "no value": text(json.dumps({"key": KEY})),
    "deep": text("[" * 100_000 + "]" * 100_000),
    "deep inside": text('{"key": {}, "value": ' + '{"good": ' * 50_000 + "1" + "}" * 50_001),
    "huge": text(b" " * (cache.LARGEST + 1) + b"{}"),
    "a huge number": text('{"key": {}, "value": ' + "9" * 10_000 + "}"),
    "a text for true": stored(good="false"),
    "a number for true": stored(good=1),
    "a text for a number": stored(error="small"),
    "a list for a text": stored(text=["a"]),
    "a mapping for a date": stored(date={}),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_cannot_be_read_is_set_aside_and_said_once(
    odd: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept(tmp_path)
    path.unlink()
    ODD[odd](path)
    with caplog.at_level(logging.WARNING, "attnpass"):
        for _ in range(2):
            assert VERDICTS.recall(tmp_path, KEY) is None
            assert VERDICTS.everything(tmp_path) == []
    assert len(caplog.records) == 1, caplog.text
    assert "cannot be read" in caplog.text and len(caplog.text) < 1000
    assert not os.path.lexists(path) and os.path.lexists(path.with_name(path.name + cache.DAMAGED))
    VERDICTS.remember(tmp_path, KEY, GOOD)
    assert VERDICTS.recall(tmp_path, KEY) == GOOD


@pytest.mark.parametrize("odd", ("pipe", "folder", "a number"))
def test_listing_meets_it_first(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_CACHE", str(tmp_path))
    good = kept(tmp_path)
    for kind in (VERDICTS.name, TUNED.name):
        (tmp_path / kind).mkdir(exist_ok=True)
        ODD[odd](tmp_path / kind / "odd.json")
    assert main(["tune", "--show"]) == 0
    assert VERDICTS.everything(tmp_path) == [(KEY, GOOD)] and good.exists()


def test_a_file_under_another_keys_name_is_not_listed(tmp_path: Path) -> None:
    path = kept(tmp_path)
    path.rename(path.with_name("0123.json"))
    assert VERDICTS.everything(tmp_path) == []


def test_a_key_without_what_is_shown_is_not_listed(tmp_path: Path) -> None:
    VERDICTS.remember(tmp_path, {"kernel": "flash2"}, GOOD)
    assert VERDICTS.recall(tmp_path, {"kernel": "flash2"}) == GOOD and VERDICTS.everything(tmp_path) == []


def test_the_form_of_another_version_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = kept(tmp_path)
    stored(more=1)(path)
    with caplog.at_level(logging.WARNING, "attnpass"):
        assert VERDICTS.recall(tmp_path, KEY) is None and VERDICTS.everything(tmp_path) == []
    assert path.exists() and not caplog.records


@pytest.mark.parametrize("error", (PermissionError, IsADirectoryError, OSError))
def test_what_can_be_neither_read_nor_moved_is_said_once_for_its_folder(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise error(13, "denied")

    kept(tmp_path)
    VERDICTS.remember(tmp_path, {**KEY, "gpu": "A100"}, GOOD)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "attnpass"):
        patch.setattr(os, "open", denied)
        patch.setattr(os, "replace", denied)
        assert VERDICTS.recall(tmp_path, KEY) is None and VERDICTS.everything(tmp_path) == []
    assert len(caplog.records) == 1 and "are ignored" in caplog.text
    assert VERDICTS.recall(tmp_path, KEY) == GOOD


def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for odd in ("folder", "pipe", "huge", "invalid UTF-8"):
        path = kept(tmp_path)
        path.unlink()
        ODD[odd](path)
        VERDICTS.recall(tmp_path, KEY)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_kept_leaves_nothing_behind(tmp_path: Path) -> None:
    path = kept(tmp_path)
    path.unlink()
    folder_with_a_file(path)
    VERDICTS.remember(tmp_path, KEY, GOOD)
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "a file").write_text("")
    for blocked in (tmp_path / "a file", Path("/dev/null"), Path("nul\0"), Path("x" * 300)):
        VERDICTS.remember(blocked, KEY, GOOD)
        assert VERDICTS.recall(blocked, KEY) is None and VERDICTS.everything(blocked) == []


def test_others_may_read_a_shared_folder(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert stat.S_IMODE(kept(tmp_path).stat().st_mode) == 0o644
    finally:
        os.umask(before)


WRITER = """
import sys
from pathlib import Path
from attnpass.trials.validate import VERDICTS, Verdict

folder, number = Path(sys.argv[1]), sys.argv[2]
for turn in range(300):
    VERDICTS.remember(folder, {"kernel": "same"}, Verdict(True, number * 2000, 0.0, 0.0, str(turn)))
"""


def test_writers_at_once_leave_whole_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), number]) for number in "12"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        learnt = VERDICTS.recall(tmp_path, {"kernel": "same"})
        if learnt is not None:
            assert len(learnt.text) == 2000
            seen.add(learnt.text[0])
    assert [writer.returncode for writer in writers] == [0, 0] and seen
    assert not caplog.records and len(list((tmp_path / VERDICTS.name).iterdir())) == 1


def test_two_processes_that_set_the_same_file_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        path = kept(tmp_path)
        path.write_text("{")
        threads = [threading.Thread(target=VERDICTS.recall, args=(tmp_path, KEY)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caplog.records) == 20


class TestTuned:
    X = TensorSpec((2, 4, 64, 16), (4096, 16, 64, 1), torch.float32, torch.device("cpu"))
    CALL = AttentionCall(q=X, k=X, v=X, out=X)

    def key_and_tuner(self, folder: Path) -> tuple[dict[str, str], Tuner, list[Candidate]]:
        some = [Candidate(registry()[name]) for name in ("native_flash", "flex")]
        machine = Machine.look(torch.device("cpu"))
        key = tuner.key_of(tuner.signature(self.CALL) or self.CALL, some, machine)
        return key, Tuner(folder, in_all=0.0), some

    def fastest(self, folder: Path, value: dict[str, Any]) -> Tuned | None:
        key, timer, some = self.key_and_tuner(folder)
        path = TUNED.path(folder, key)
        path.parent.mkdir()
        path.write_text(json.dumps({"key": key, "value": value}))
        return timer.fastest(self.CALL, some, Machine.look(torch.device("cpu")))

    def test_of_this_machine(self, tmp_path: Path) -> None:
        value = {"winner": "flex", "ms": {"flex": 1.0, "native_flash": 2}, "failed": {}, "date": "2026"}
        found = self.fastest(tmp_path, value)
        assert found is not None and found.winner == "flex"

    @pytest.mark.parametrize(
        "wrong",
        (
            {"winner": "rm -rf"},
            {"winner": ["flex"]},
            {"winner": {}},
            {"ms": {"flex": "1.0"}},
            {"ms": [["flex", 1.0]]},
            {"ms": None},
            {"failed": {"flex": 7}},
            {"date": 2026},
            {"winner": "sage", "ms": {"sage": 1.0}},  # whole, and no candidate
        ),
        ids=str,
    )
    def test_nothing_else_is_believed(self, wrong: dict[str, Any], tmp_path: Path) -> None:
        value = {"winner": "flex", "ms": {"flex": 1.0}, "failed": {}, "date": "2026", **wrong}
        assert self.fastest(tmp_path, value) is None
