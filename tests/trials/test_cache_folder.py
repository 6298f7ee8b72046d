"""Where the cache lies, also where there is no home."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from attnpass.trials import cache
from attnpass.trials.validate import VERDICTS
from tests.trials.test_cache import GOOD, KEY, kept


class TestFolder:
    def test_what_is_chosen_is_taken(self, tmp_path: Path) -> None:
        assert cache.cache_folder(str(tmp_path / "x")) == tmp_path / "x"

    @pytest.mark.parametrize("error", (RuntimeError("Could not determine home directory."), KeyError(4711)))
    def test_no_home(self, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
        def home(_: object = None) -> Path:
            raise error

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", classmethod(home))
        folder = cache.cache_folder(None)
        assert folder == cache.cache_folder(None) and folder.is_relative_to(tempfile.gettempdir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        VERDICTS.remember(folder, KEY, GOOD)
        assert VERDICTS.recall(folder, KEY) == GOOD

    @pytest.mark.parametrize("home", ("/dev/null", "/proc/nobody", "/dev/null/deeper/still"))
    def test_a_home_where_nothing_can_be_made(self, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", home)
        monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith("/proc"))  # root may do anything
        assert cache.cache_folder(None).is_relative_to(tempfile.gettempdir())

    def test_a_folder_that_may_only_be_read_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        kept(tmp_path / "attnpass")
        monkeypatch.setattr(os, "access", lambda *_: False)
        assert VERDICTS.recall(cache.cache_folder(None), KEY) == GOOD

    def test_the_temporary_one_goes_with_the_process(self) -> None:
        code = "from attnpass.trials import cache; f = cache.cache_folder(None); print(f); (f / 'x').write_text('')"
        env = {**os.environ, "HOME": "/dev/null", "XDG_CACHE_HOME": ""}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        folder = Path(done.stdout.strip())
        assert folder.name.startswith("attnpass-") and not folder.exists() and not done.stderr
