"""What this machine has learnt, on disk: one small JSON file for each thing, in a folder for each kind of thing.

A file for each, written aside and moved into place: two processes at once cannot damage each other's. A file that
cannot be read is set aside under another name, said once, and learnt anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DAMAGED = ".damaged"
logger = logging.getLogger(__name__)


def cache_folder(chosen: str | None) -> Path:
    """The folder that ``ATTNPASS_CACHE`` chose, else ``$XDG_CACHE_HOME/attnpass`` or ``~/.cache/attnpass``."""
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnpass"


def recall(folder: Path, key: Mapping[str, str]) -> dict[str, Any] | None:
    """What was learnt under exactly this key, or None."""
    stored = _read(_path(folder, key))
    return stored["value"] if stored and stored["key"] == dict(key) else None


def remember(folder: Path, key: Mapping[str, str], value: Mapping[str, Any]) -> None:
    """Keep it. A folder that cannot be written to costs the next process the learning, and nothing else."""
    path = _path(folder, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump({"key": dict(key), "value": dict(value)}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        logger.debug("attnpass: nothing could be kept in %s: %s", folder, error)


def everything(folder: Path) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Every key in the folder with what was learnt under it."""
    stored = map(_read, sorted(folder.glob("*.json")))
    return [(one["key"], one["value"]) for one in stored if one]


def _read(path: Path) -> dict[str, Any] | None:
    """What the file holds; None if there is none, or it is damaged."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {"key": dict(stored["key"]), "value": dict(stored["value"])}
    except OSError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        _set_aside(path, error)
        return None


def _set_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(path.name + DAMAGED)
    try:
        os.replace(path, aside)
    except OSError:  # another process was faster
        return
    logger.warning("attnpass: %s cannot be read (%s: %s); kept as %s", path, type(error).__name__, error, aside.name)


def _path(folder: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    return folder / f"{digest}.json"
