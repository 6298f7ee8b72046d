"""What this machine has learnt, on disk: one small JSON file for each thing, in a folder for each kind of thing.

A file for each, written aside and moved into place: two processes at once cannot damage each other's. What cannot be
read, whatever lies there, is set aside under another name, said once, and learnt anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import torch

from attnpass.machine.machine import Machine
from attnpass.settings.config import home_of_caches

DAMAGED = ".damaged"
LARGEST = 1 << 20  # bytes; what is kept here has some hundreds
NOT_THERE = (FileNotFoundError, NotADirectoryError)
T = TypeVar("T")
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


@dataclass(frozen=True, slots=True)
class Store(Generic[T]):
    """Where one kind of thing is kept, each under a key: everything that it depends on.

    Attributes:
        name: of its folder in the cache folder.
        kind: the dataclass of what is kept; its fields are bools, floats, texts, and mappings of these. A ValueError
            of its constructor says that the file is damaged.
        shown: what a key has to say to be listed.
    """

    name: str
    kind: type[T]
    shown: frozenset[str]

    def recall(self, folder: Path, key: Mapping[str, str]) -> T | None:
        """What was learnt under exactly this key, or None."""
        stored = self._read(self.path(folder, key))
        return stored[1] if stored and stored[0] == dict(key) else None

    def remember(self, folder: Path, key: Mapping[str, str], value: T) -> None:
        """Keep it. A folder that cannot be written to costs the next process the learning, and nothing else."""
        path = self.path(folder, key)
        aside = path.with_name(f"{path.stem}.{secrets.token_hex(8)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stored = {"key": dict(key), "value": asdict(value)}  # type: ignore[call-overload]
                aside.write_text(json.dumps(stored, indent=1), encoding="utf-8")
                os.replace(aside, path)
            except OSError:
                aside.unlink(missing_ok=True)
                raise
        except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
            logger.debug("attnpass: nothing could be kept in %s: %s", folder, error)

    def everything(self, folder: Path) -> list[tuple[dict[str, str], T]]:
        """Every key in the cache folder that can be shown, with what was learnt under it."""
        try:
            paths = sorted((folder / self.name).glob("*.json"))
        except OSError:
            return []
        found = []
        for path in paths:
            key, value = self._read(path) or ({}, None)
            if value is not None and key.keys() >= self.shown and path == self.path(folder, key):
                found.append((key, value))
        return found

    def path(self, folder: Path, key: Mapping[str, str]) -> Path:
        """The file that holds what is known under ``key``."""
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
        return folder / self.name / f"{digest}.json"

    def _read(self, path: Path) -> tuple[dict[str, str], T | None] | None:
        """Key and value of the file; None if there is none, or it is damaged."""
        try:
            stored = json.loads(_text(path))
            key = dict(stored["key"])
            _check(key, Mapping[str, str], "key")
            return key, self._made(dict(stored["value"]))
        except NOT_THERE:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            _set_aside(path, error)
            return None

    def _made(self, value: dict[str, Any]) -> T | None:
        """None for what another version of attnpass kept in another form.

        Raises:
            TypeError: it has this form, and what is in it cannot be: "false" would pass for good.
            ValueError: so does its constructor find.
        """
        if value.keys() != {field.name for field in fields(self.kind)}:  # type: ignore[arg-type]
            return None
        for name, hint in get_type_hints(self.kind).items():
            _check(value[name], hint, name)
        return self.kind(**value)


def machine_key(machine: Machine) -> dict[str, str]:
    """What every outcome depends on: a part of its key."""
    return {
        "torch": machine.versions.get("torch", ""),
        "gpu": f"{machine.name} {machine.capability}".strip(),
        "cuda": str(torch.version.cuda or torch.version.hip or ""),
    }


def now() -> str:
    """When something was learnt, in ISO form."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _check(value: object, hint: Any, name: str) -> None:
    """Hold ``value``, which was kept under ``name``, to its type.

    Raises:
        TypeError: it has another.
    """
    if not _fits(value, hint):
        raise TypeError(f"its {name} cannot be {value!r}")


def _fits(value: object, hint: Any) -> bool:
    if get_origin(hint) is None:
        return isinstance(value, (int, float) if hint is float else hint)
    of_keys, of_values = get_args(hint)
    return isinstance(value, dict) and all(_fits(k, of_keys) and _fits(v, of_values) for k, v in value.items())


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
