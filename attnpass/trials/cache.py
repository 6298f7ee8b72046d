"""What this machine has learnt, on disk: one small JSON file for each thing, in a folder for each kind of thing.

A file for each, written aside and moved into place: two processes at once cannot damage each other's. What cannot be
read, whatever lies there, is set aside under another name, said once, and learnt anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from attnpass.settings.config import home_of_caches

DAMAGED = ".damaged"
LARGEST = 1 << 20  # bytes; what is kept here has some hundreds
NOT_THERE = (FileNotFoundError, NotADirectoryError)
T = TypeVar("T")
Make = Callable[[dict[str, Any]], T | None]
logger = logging.getLogger(__name__)
_said: set[Path] = set()


def cache_folder(chosen: str | None) -> Path:
    """The folder that ``ATTNPASS_CACHE`` chose, else ``$XDG_CACHE_HOME/attnpass`` or ``~/.cache/attnpass``.

    Without a home, or if nothing can be made there, one of this process alone: one in a place that others can write to
    would let them plant verdicts.
    """
    if chosen:
        return Path(chosen)
    try:
        folder = home_of_caches() / "attnpass"
        return folder if folder.is_dir() or _can_be_made(folder) else _temporary_folder()
    except (RuntimeError, KeyError, OSError):  # no HOME and no entry in the table of users
        return _temporary_folder()


def _can_be_made(folder: Path) -> bool:
    there = next((parent for parent in folder.parents if parent.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@cache
def _temporary_folder() -> Path:
    held = tempfile.TemporaryDirectory(prefix="attnpass-", ignore_cleanup_errors=True)
    _temporary_folder.held = held  # type: ignore[attr-defined]  # which removes it when the process ends
    logger.info("attnpass: no cache folder can be made; what is learnt is forgotten with the process (ATTNPASS_CACHE)")
    return Path(held.name)


def recall(folder: Path, key: Mapping[str, str], make: Make[T]) -> T | None:
    """What was learnt under exactly this key, or None.

    Args:
        folder: where this kind of thing is kept.
        key: everything that it depends on.
        make: from what was kept to what was learnt; None for the form of another version. A TypeError or ValueError
            says that the file is damaged.
    """
    stored = _read(_path(folder, key), make)
    return stored[1] if stored and stored[0] == dict(key) else None


def remember(folder: Path, key: Mapping[str, str], value: Mapping[str, Any]) -> None:
    """Keep it. A folder that cannot be written to costs the next process the learning, and nothing else."""
    path = _path(folder, key)
    aside = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(json.dumps({"key": dict(key), "value": dict(value)}, indent=1), encoding="utf-8")
            os.replace(aside, path)
        except OSError:
            aside.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
        logger.debug("attnpass: nothing could be kept in %s: %s", folder, error)


def everything(folder: Path, make: Make[T]) -> list[tuple[dict[str, str], T]]:
    """Every key in the folder with what was learnt under it."""
    try:
        paths = sorted(folder.glob("*.json"))
    except OSError:
        return []
    stored = ((path, _read(path, make)) for path in paths)
    return [(one[0], one[1]) for path, one in stored if one and one[1] is not None and path == _path(folder, one[0])]


def check(good: bool, name: str, value: object) -> None:
    """For `recall`'s ``make``.

    Raises:
        TypeError: ``value``, which was kept under ``name``, is not ``good``.
    """
    if not good:
        raise TypeError(f"its {name} cannot be {value!r}")


def _read(path: Path, make: Make[T]) -> tuple[dict[str, str], T | None] | None:
    """Key and value of the file; None if there is none, or it is damaged."""
    try:
        stored = json.loads(_text(path))
        key = dict(stored["key"])
        check(all(isinstance(text, str) for text in (*key, *key.values())), "key", key)
        return key, make(dict(stored["value"]))
    except NOT_THERE:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        _set_aside(path, error)
        return None


def _text(path: Path) -> str:
    """What stands in the file; never waits for a writer, as opening a pipe would."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST + 1)
    finally:
        os.close(descriptor)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    return content.decode()


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + DAMAGED)
    text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    try:
        os.replace(path, aside)
    except FileNotFoundError:  # another process was faster
        return
    except (OSError, ValueError):
        if path.parent not in _said:
            _said.add(path.parent)
            logger.warning("attnpass: %s cannot be read (%s), nor moved; such files are ignored", path, text)
        return
    logger.warning("attnpass: %s cannot be read (%s); kept as %s", path, text, aside.name)


def _path(folder: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    return folder / f"{digest}.json"
