"""One page for a folder of reports: every graph of every process and rank, with filters that need no script.

It is made from the JSON files alone, so it tells of ranks on other machines that write to the same folder, and of runs
before this one. Each process writes it anew behind each of its graphs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attnpass.graph.values import Source
from attnpass.ir.call import Pattern
from attnpass.report.groups import TOLD_BY_NOTE, compress, counted, short_source
from attnpass.report.pages.graph_page import rendered
from attnpass.report.record import SCHEMA, calls_of

INDEX = "index.html"
TEMPLATE = "index.html.j2"
NAMED = re.compile(r"attnpass-(?:rank\d+-)?(\d+)-graph(\d+)")
ATTEMPTS = 5
# What a row says; ranks also differ in their devices.
SAID = ("kernel", "rewritten", "reason", "note", "text", "mask_meaning", "policy", "refused", "rejections")
Calls = tuple[Mapping[str, Any], ...]
Said = tuple[str, int, str]  # modules, number of calls, and the rest as text
_read: dict[Path, tuple[tuple[int, int], Graph | None]] = {}  # what is not written again is read once


@dataclass(frozen=True, eq=False)
class Graph:
    """One JSON file of the folder.

    Attributes:
        stem: its name without the ending, which the page of the graph has too.
        told: what is in it.
    """

    stem: str
    told: Mapping[str, Any]

    @property
    def process(self) -> str:
        """``"rank 3"``, or ``"process 4711"`` outside of a job of several."""
        return f"process {self.pid}" if self.told["rank"] is None else f"rank {self.told['rank']}"

    @property
    def pid(self) -> int:
        return int(NAMED.fullmatch(self.stem)[1])  # type: ignore[index]

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        return calls_of(self.told)

    @cached_property
    def rewritten(self) -> int:
        return sum(call["rewritten"] for call in self.calls)

    @cached_property
    def groups(self) -> list[tuple[Said, Calls]]:
        """Equal calls, behind what is said of them: their modules, their number, and the rest as text."""
        groups: dict[int, list[Mapping[str, Any]]] = {}
        for call in self.calls:
            groups.setdefault(call["group"], []).append(call)
        everything, found = [call["module"] for call in self.calls], []
        for calls in groups.values():
            first = calls[0]
            spelled = "" if first["pattern"] == Pattern.SDPA.value else f" ({first['pattern']})"
            modules = compress([call["module"] for call in calls], everything) + spelled
            found.append(((modules, len(calls), json.dumps([first[name] for name in SAID])), tuple(calls)))
        return found

    @property
    def order(self) -> tuple[int, int, int]:
        rank = self.told["rank"]
        return -1 if rank is None else rank, self.pid, self.told["graph"]


@dataclass(frozen=True, eq=False)
class Row:
    """Calls that are told once: equal calls of one graph, and of the same graph of other ranks."""

    calls: Calls
    modules: str
    graphs: tuple[Graph, ...]

    @property
    def first(self) -> Mapping[str, Any]:
        return self.calls[0]

    @property
    def sources(self) -> str:
        places = list(dict.fromkeys(_short(call["source"]) for call in self.calls))
        return places[0] + (f" and {counted(len(places) - 1, 'more place')}" if len(places) > 1 else "")

    @property
    def refused(self) -> dict[str, list[dict[str, str]]]:
        """The kernels that were preferred and refused, with their reasons."""
        if self.first["reason"] in {reason.value for reason in TOLD_BY_NOTE}:
            return {}
        return {kernel: self.first["rejections"].get(kernel, []) for kernel in self.first["refused"]}

    @property
    def codes(self) -> set[str]:
        return {reason["code"] for reasons in self.refused.values() for reason in reasons}


def write_index(folder: str | Path) -> Path:
    """Write ``index.html`` about all reports in ``folder``.

    Several processes may do so at once: none sees a half-written page, and the last one tells of all.

    Raises:
        OSError: it cannot be written.
    """
    folder = Path(folder)
    path, draft = folder / INDEX, folder / f".{INDEX}.{os.getpid()}"
    for _ in range(ATTEMPTS):
        before = _files(folder)
        draft.write_text(index_html(folder) + "\n", encoding="utf-8")
        draft.replace(path)
        if _files(folder) == before:  # else another process has written a report, and perhaps the page before us
            break
    return path


def index_html(folder: Path) -> str:
    """Render the page."""
    read = [_graph(path) for path in _files(folder)]
    graphs = sorted((graph for graph in read if graph is not None), key=lambda graph: graph.order)
    rows = list(_rows(graphs))
    kernels = list(dict.fromkeys(row.first["kernel"] for row in rows))
    codes = sorted({code for row in rows for code in row.codes})
    return rendered(
        TEMPLATE,
        summary=_summary(graphs, rows),
        graphs=graphs,
        rows=rows,
        kernels={name: _count(row for row in rows if row.first["kernel"] == name) for name in kernels},
        codes={code: _count(row for row in rows if code in row.codes) for code in codes},
        refused=_count(row for row in rows if row.refused),
        kept=_count(row for row in rows if not row.first["rewritten"]),
        total=_count(rows),
        misses=_misses(graphs),
        unread=read.count(None),
        schema=SCHEMA,
        short=_short,
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("attnpass-*.json") if NAMED.fullmatch(path.stem))


def _graph(path: Path) -> Graph | None:
    """What a file says; None if it is of another version, or being written."""
    try:
        state = path.stat()
        key = (state.st_mtime_ns, state.st_size)
        if path not in _read or _read[path][0] != key:
            told = json.loads(path.read_text(encoding="utf-8"))
            _read[path] = key, Graph(path.stem, told) if told.get("schema") == SCHEMA else None
        return _read[path][1]
    except (OSError, ValueError):
        return None


def _rows(graphs: Iterable[Graph]) -> Iterator[Row]:
    """Equal calls together; ranks compile the same program, so their graphs of one number are told together."""
    told: dict[tuple[int | None, int, Said], list[tuple[Graph, Calls]]] = {}
    for graph in graphs:
        process = None if graph.told["rank"] is not None else graph.pid
        for said, calls in graph.groups:
            told.setdefault((process, graph.told["graph"], said), []).append((graph, calls))
    for (_, _, (modules, *_)), members in told.items():
        yield Row(members[0][1], modules, tuple(graph for graph, _ in members))


def _summary(graphs: Sequence[Graph], rows: Sequence[Row]) -> str:
    """One or two sentences about the whole folder."""
    calls, rewritten = sum(len(graph.calls) for graph in graphs), sum(graph.rewritten for graph in graphs)
    processes = len({graph.process for graph in graphs})
    where = counted(len(graphs), "graph") + (f" of {processes} processes" if processes > 1 else "")
    places = sum(len(graph.told["near_misses"]) for graph in graphs)
    almost = f"; {counted(places, 'place')} {'is' if places == 1 else 'are'} almost attention" if places else ""
    if not calls:
        return f"No attention call was found in {where}{almost}."
    found = f"{rewritten} of {counted(calls, 'attention call')} in {where} rewritten{almost}."
    ranks = {graph.told["rank"] for graph in graphs} - {None}
    if len(ranks) < 2:
        return found
    apart = sum(len({graph.told["rank"] for graph in row.graphs}) < len(ranks) for row in rows)
    if not apart:
        return f"{found} All {len(ranks)} ranks got the same."
    return f"{found} {counted(apart, 'row')} {'is' if apart == 1 else 'are'} not the same on all {len(ranks)} ranks."


def _count(rows: Iterable[Row]) -> int:
    return sum(len(row.calls) * len(row.graphs) for row in rows)


def _misses(graphs: Iterable[Graph]) -> list[tuple[int, Mapping[str, str], list[Graph]]]:
    """Equal near misses with their number, and where they are."""
    found: dict[tuple[str, str], list[tuple[Mapping[str, str], Graph]]] = {}
    for graph in graphs:
        for miss in graph.told["near_misses"]:
            found.setdefault((miss["reason"], miss["source"]), []).append((miss, graph))
    return [(len(each), each[0][0], list(dict.fromkeys(graph for _, graph in each))) for each in found.values()]


def _short(source: str) -> str:
    file, _, line = source.rpartition(":")
    return short_source(Source(file, int(line))) if line.isdigit() else source
