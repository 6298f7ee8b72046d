"""Result lines: read them, keep the newest of each kind, say where they come from. Needs neither torch nor plots."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
GPU = "h100"  # the suffix of the result files that the docs show
NO_BREAK = "\u00a0"  # a caption is wrapped between its parts
STEADY = 0.03  # of the median; where the middle 60 % of the runs spread further, another process was at work
TIMED_TOGETHER = ("forms", "end_to_end")  # benchmarks whose lines may stem from a machine that compiled beside them
DISTURBED = "disturbed"
LEFT_OUT = "left out: "  # in the reason of a line that was not measured for want of time
MAX_COMMITS = 3  # a caption names so many, and of more the first, the last and how many

Record = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The result files of one GPU."""

    suffix: str = GPU
    folder: Path = RESULTS

    def name(self, benchmark: str) -> str:
        return f"{benchmark}_{self.suffix}.jsonl"

    def read(self, benchmark: str) -> list[Record]:
        """The lines of one benchmark; none if its file is not there."""
        path = self.folder / self.name(benchmark)
        if not path.exists():
            return []
        lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        return [record for record in lines if str(record["benchmark"]).partition(".")[0] == benchmark]


def is_disturbed(record: Record) -> bool:
    """Was the time spoilt by other processes on the machine?"""
    spread, ms = record.get("spread_ms"), record.get("ms")
    return record.get("benchmark") in TIMED_TOGETHER and bool(spread) and bool(ms) and spread > STEADY * ms


def newest(records: Iterable[Record], *fields: str) -> dict[Key, Record]:
    """The newest line for each combination of ``fields``, in the order of first appearance; of equal dates the later.

    A disturbed line is only an upper bound: it counts where there is no other, or where it is lower beyond the noise.

    >>> lines = [{"kernel": "flex", "ms": 2, "date": "2026-11-25"}, {"kernel": "flex", "ms": 1, "date": "2026-11-22"}]
    >>> newest(lines, "kernel")[("flex",)]["ms"]
    2
    """
    found: dict[Key, Record] = {}
    for record in records:
        key = tuple(_hashable(record.get(field)) for field in fields)
        if key not in found or _replaces(record, found[key]):
            found[key] = record
    return found


def _replaces(record: Record, other: Record) -> bool:
    later = str(record.get("date", "")) >= str(other.get("date", ""))
    timed = record.get("ms") is not None and other.get("ms") is not None
    if not timed or is_disturbed(record) == is_disturbed(other):
        return later
    if is_disturbed(record):
        return later and record["ms"] < other["ms"] * (1 - STEADY)
    return later or other["ms"] > record["ms"] * (1 - STEADY)


def state(record: Record | None) -> str:
    """Why there is no time, in a word to write where the bar would be; "" if there is one."""
    if record is None:
        return "not measured"
    if record.get("oom") or "outofmemory" in record.get("problem", "").lower().replace(" ", ""):
        return "OOM"
    if LEFT_OUT in str(record.get("refused") or ""):
        return "left out"
    if record.get("refused"):
        return "refused"
    if str(record.get("problem", "")).startswith("this build"):
        return "not built"
    if is_disturbed(record):
        return DISTURBED
    return "" if record.get("ok") and record.get("ms") is not None else "failed"


def has_time(record: Record | None) -> bool:
    """Is there a time, if only as an upper bound?"""
    return state(record) in ("", DISTURBED)


def provenance(records: Iterable[Record], libraries: Sequence[str] = ("triton",)) -> str:
    """GPU, versions, date and commit of the lines, as a caption; where lines differ, each value once."""
    records = list(records)
    parts = [" and ".join(_distinct(r.get("hardware", {}).get("gpu", "") for r in records))]
    parts += [_versions("torch", (r.get("torch") for r in records))]
    parts += [_versions("cuDNN", (_cudnn(r.get("hardware", {}).get("cudnn")) for r in records))]
    parts += [_versions(library, (r.get(library) for r in records)) for library in libraries]
    days = sorted(_distinct(str(r.get("date", ""))[:10] for r in records))
    parts += [" to ".join(days[:1] + days[1:][-1:])]
    parts += [_commits(sorted(records, key=lambda r: str(r.get("date", ""))))]
    kept = [part.replace(" ", NO_BREAK) for part in parts if part]
    return f"{NO_BREAK}· ".join(kept)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values if value))


def _versions(name: str, values: Iterable[Any]) -> str:
    versions = _distinct(values)
    return f"{name} {', '.join(versions)}" if versions else ""


def _cudnn(number: int | None) -> str:
    """91900, as PyTorch gives it, is 9.19.0."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}" if number else ""


def _commits(by_date: list[Record]) -> str:
    commits = _distinct(_short(str(r.get("commit", ""))) for r in by_date)
    if len(commits) > MAX_COMMITS:
        return f"{len(commits)} commits, {commits[0]} to {commits[-1]}"
    return f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}" if commits else ""


def _short(commit: str) -> str:
    return commit.rstrip("+")[:7] + "+" * commit.endswith("+")
