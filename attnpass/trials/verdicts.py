"""What trials of kernels came to on this machine, kept in the cache folder (`attnpass.trials.cache`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from attnpass.trials import cache

FOLDER = "verdicts"
SHOWN = {"kernel", "library", "gpu"}  # of a key, by ``attnpass info``


@dataclass(frozen=True, slots=True)
class Verdict:
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


def recall(folder: Path, key: Mapping[str, str]) -> Verdict | None:
    """What was learnt under exactly this key, or None."""
    return cache.recall(folder / FOLDER, key, _learnt)


def remember(folder: Path, key: Mapping[str, str], learnt: Verdict) -> None:
    """Keep it in the cache folder ``folder``."""
    cache.remember(folder / FOLDER, key, asdict(learnt))


def everything(folder: Path) -> list[dict[str, Any]]:
    """Every verdict in the cache folder, for ``attnpass info``."""
    stored = cache.everything(folder / FOLDER, _learnt)
    return [{**key, **asdict(learnt)} for key, learnt in stored if key.keys() >= SHOWN]


def _learnt(value: dict[str, Any]) -> Verdict | None:
    """None for what another version of attnpass kept in another form.

    Raises:
        TypeError: it has this form, and what is in it cannot be: "false" would pass for good.
    """
    if value.keys() != {field.name for field in fields(Verdict)}:
        return None
    kinds: dict[str, type | tuple[type, ...]] = {
        "good": bool,
        "text": str,
        "error": (int, float),
        "allowed": (int, float),
        "date": str,
    }
    for name, kind in kinds.items():
        cache.check(isinstance(value[name], kind), name, value[name])
    return Verdict(**value)
