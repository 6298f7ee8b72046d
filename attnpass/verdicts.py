"""What trials of kernels came to on this machine, kept in the cache folder (`attnpass.memory`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attnpass import memory

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


def recall(folder: Path, key: Mapping[str, str]) -> Learnt | None:
    """What was learnt under exactly this key, or None."""
    return _learnt(memory.recall(folder / FOLDER, key))


def remember(folder: Path, key: Mapping[str, str], learnt: Learnt) -> None:
    """Keep it in the cache folder ``folder``."""
    memory.remember(folder / FOLDER, key, asdict(learnt))


def everything(folder: Path) -> list[dict[str, Any]]:
    """Every verdict in the cache folder, for ``attnpass info``."""
    return [{**key, **value} for key, value in memory.everything(folder / FOLDER) if _learnt(value)]


def _learnt(value: Mapping[str, Any] | None) -> Learnt | None:
    """None for what another version of attnpass kept in another form."""
    try:
        return None if value is None else Learnt(**value)
    except TypeError:
        return None
