"""What this machine has learnt about its kernels, on disk: one small JSON file for each thing that was tried.

A file for each verdict, written aside and moved into place: two processes at once cannot damage each other's. A file
that cannot be read is as good as none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = "verdicts"


@dataclass(frozen=True, slots=True)
class Learnt:
    """The outcome of one trial of a kernel.

    Attributes:
        good: was it right?
        text: what was tried and what came out, in one line.
        error: the worst error.
        allowed: what it may be at most.
        date: when, in ISO form.
    """

    good: bool
    text: str
    error: float
    allowed: float
    date: str


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/attnpass``, or ``~/.cache/attnpass``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "attnpass"


def recall(folder: Path, key: Mapping[str, str]) -> Learnt | None:
    """What was learnt under exactly this key, or None."""
    stored = _read(_path(folder, key))
    return Learnt(**stored["verdict"]) if stored and stored["key"] == dict(key) else None


def remember(folder: Path, key: Mapping[str, str], learnt: Learnt) -> None:
    """Keep it. A folder that cannot be written to costs the next process another trial, and nothing else."""
    path = _path(folder, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump({"key": dict(key), "verdict": asdict(learnt)}, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def everything(folder: Path) -> list[dict[str, Any]]:
    """Every verdict in the folder, for ``attnpass info``."""
    stored = map(_read, sorted((folder / FOLDER).glob("*.json")))
    return [{**one["key"], **one["verdict"]} for one in stored if one]


def _read(path: Path) -> dict[str, Any] | None:
    """What the file holds, if it is whole."""
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Learnt(**stored["verdict"])
        dict(stored["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return stored


def _path(folder: Path, key: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:24]
    return folder / FOLDER / f"{digest}.json"
