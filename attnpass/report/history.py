"""The reports of this process: kept, logged and written to the folder that ``ATTNPASS_REPORT`` names."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import distributed
from torch._guards import CompileContext

from attnpass.report import log
from attnpass.report.log import say_once
from attnpass.report.pages.graph_page import to_html
from attnpass.report.pages.index_page import write_index
from attnpass.report.record import Report, Reports
from attnpass.settings.config import Config
from attnpass.settings.decisions import dump
from attnpass.version import __version__

REPORTS_KEPT = 1000

_reports: deque[Report] = deque(maxlen=REPORTS_KEPT)

_numbers = itertools.count()


def new_report(config: Config) -> Report:
    """An empty report with the next running number."""
    compile_id = CompileContext.current_compile_id()
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else None
    return Report(graph=next(_numbers), compile_id=str(compile_id or ""), config=config, rank=rank)


def reports() -> Reports:
    """The reports of this process, oldest first (the last `REPORTS_KEPT`)."""
    return Reports(_reports)


def clear_reports() -> None:
    """Forget the reports of this process."""
    _reports.clear()


def publish(report: Report, config: Config) -> None:
    """Say what was decided: in `reports`, in the log and, where that is asked for, in a file."""
    context = CompileContext.try_get()
    if context and context.attempt and _reports and _reports[-1].compile_id == report.compile_id:
        _reports.pop()  # Dynamo started this very graph over
    _reports.append(report)
    torch._dynamo.utils.counters["attnpass"]["calls"] += len(report.decisions)
    torch._dynamo.utils.counters["attnpass"]["rewritten"] += report.rewritten
    log.emit_report(report)
    if config.report:
        try:
            write(report, config.report)
        except Exception as error:
            say_once(
                f"attnpass: writing the report to {config.report} failed with {error}; choose another ATTNPASS_REPORT"
            )


def write(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``attnpass-<pid>-graph<N>.json`` and ``.html`` into ``folder``, which is made if need be.

    Of several ranks the names have the rank as well. ``index.html`` beside them tells of all reports in the folder.

    Returns:
        The two paths, JSON first.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank = "" if report.rank is None else f"rank{report.rank}-"
    stem = f"attnpass-{rank}{os.getpid()}-graph{report.graph}"
    paths = folder / f"{stem}.json", folder / f"{stem}.html"
    for path, text in zip(paths, (report.to_json(), to_html(report)), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    write_index(folder)
    return paths


def lock(path: str | Path, of: Iterable[Report] | None = None) -> Path:
    """Write what was chosen for each attention call, for ``ATTNPASS_DECISIONS``. Equal entries stand there once.

    Args:
        path: of the file.
        of: the reports; by default those of this process so far (`clear_reports` forgets them).

    Raises:
        OSError: the file cannot be written.
    """
    told = list(_reports if of is None else of)
    decided = [(decision.call, decision.kernel) for report in told for decision in report.decisions]
    machines = {machine.name: None for report in told for machine in report.machines.values()}
    facts = {"attnpass": __version__, "torch": str(torch.__version__), "machines": list(machines)}
    path = Path(path)
    path.write_text(dump(decided, facts), encoding="utf-8")
    return path


def last_report() -> Report | None:
    """The report of the graph compiled last, None before the first."""
    return _reports[-1] if _reports else None
