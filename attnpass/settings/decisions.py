"""Decisions that travel: a file that says which kernel computes which call, and holds another process to it.

A trainer and the workers that roll out for it, the ranks of one job, today's program and the one behind an upgrade: all
get the same kernels if they read the same file. `attnpass.lock` and ``attnpass lock`` write it, ``ATTNPASS_DECISIONS``
names it. A call is known by its module, how it is written, what its mask means, its heads, head dims and dtype, and
whether it trains. Lengths need not be the same: of several entries for such calls the nearest in length counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnpass.graph.symbolic import shown
from attnpass.graph.tensor import dtype_name
from attnpass.ir.call import AttentionCall

SCHEMA = 1
FIELDS = ("module", "pattern", "kind", "mask", "dtype", "train", "H", "Hkv", "D", "Dv", "B", "Sq", "Sk", "kernel")
LENGTHS = ("B", "Sq", "Sk")
Entry = Mapping[str, Any]


class DecisionsError(ValueError):
    """The file is none of these; the message says what is wrong with it."""


def entry_of(call: AttentionCall, kernel: str) -> dict[str, Any]:
    """What a file says of one call."""
    sizes = {"H": call.H, "Hkv": call.Hkv, "D": call.D, "Dv": call.Dv, "B": call.B, "Sq": call.Sq, "Sk": call.Sk}
    return {
        "module": call.module,
        "pattern": call.pattern.value,
        "kind": call.kind.value,
        "mask": str(call.mask),
        "dtype": dtype_name(call.dtype),
        "train": call.needs_grad,
        **{name: shown(size) for name, size in sizes.items()},
        "kernel": kernel,
    }


def identity(entry: Entry) -> str:
    """What two entries for the same call have in common, as one line of text."""
    return ", ".join(f"{name} {value}" for name, value in entry.items() if name not in (*LENGTHS, "kernel"))


@dataclass(frozen=True, slots=True)
class Locked:
    """The decisions in a file.

    Attributes:
        path: of the file.
        entries: one for each call, in the order of the program.
    """

    path: str
    entries: tuple[Entry, ...]
    _by_identity: dict[str, list[Entry]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for entry in self.entries:
            self._by_identity.setdefault(identity(entry), []).append(entry)

    @property
    def kernels(self) -> frozenset[str]:
        """All that some entry names."""
        return frozenset(str(entry["kernel"]) for entry in self.entries)

    def kernel_of(self, call: AttentionCall) -> str | None:
        """The kernel that the file names for ``call``; None if it has no such call."""
        wanted = entry_of(call, "")
        alike = self._by_identity.get(identity(wanted))
        if not alike:
            return None
        return str(min(alike, key=lambda entry: _distance(entry, wanted))["kernel"])

    def __str__(self) -> str:
        return self.path


def _distance(one: Entry, other: Entry) -> float:
    """How far two calls are apart in their lengths: halved or doubled is 1; a symbol is near to everything."""
    pairs = ((one[name], other[name]) for name in LENGTHS)
    known = [(a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
    return sum(abs(math.log2((a + 1) / (b + 1))) for a, b in known)


def load(path: str) -> Locked:
    """Read a file.

    Raises:
        DecisionsError: it cannot be read, or is something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DecisionsError(f"{path} cannot be read ({error.strerror}); `attnpass lock` writes one") from None
    try:
        found = json.loads(text)
        entries = tuple(found["calls"])
        complete = all(set(entry) == set(FIELDS) for entry in entries)
    except (ValueError, KeyError, TypeError):
        raise DecisionsError(f"{path} holds no decisions; `attnpass lock` writes them") from None
    if found.get("schema") != SCHEMA or not complete:
        raise DecisionsError(f"{path} was written by another version of attnpass; write it again with `attnpass lock`")
    return Locked(path, entries)


def dump(decided: Iterable[tuple[AttentionCall, str]], facts: Mapping[str, Any]) -> str:
    """The text of a file: equal entries once.

    Args:
        decided: calls and the names of their kernels.
        facts: versions and machine, for people.
    """
    entries = dict.fromkeys(json.dumps(entry_of(call, kernel)) for call, kernel in decided)
    lines = ",\n".join(f"  {entry}" for entry in entries)
    head = ",\n".join(
        f" {json.dumps(name)}: {json.dumps(value)}" for name, value in {"schema": SCHEMA, **facts}.items()
    )
    return f'{{\n{head},\n "calls": [\n{lines}\n ]\n}}\n'


def differences(before: Locked, after: Locked) -> list[tuple[str, str, str]]:
    """What changed: the call in words, and its kernels in both files, "" where one has no such call."""
    files = [_by_call(before), _by_call(after)]
    calls = dict.fromkeys([*files[0], *files[1]])
    rows = [(call, *(file.get(call, "") for file in files)) for call in calls]
    return [(call, one, other) for call, one, other in rows if one != other]


def _by_call(locked: Locked) -> dict[str, str]:
    found = {}
    for entry in locked.entries:
        lengths = " ".join(f"{name}={entry[name]}" for name in LENGTHS)
        call = identity({**entry, "module": entry["module"] or "(top level)"})
        found[f"{call}, {lengths}"] = str(entry["kernel"])
    return found
