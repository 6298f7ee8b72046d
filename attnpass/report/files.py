"""The report as files: what ``ATTNPASS_REPORT=folder`` writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attnpass.report.html import to_html
from attnpass.report.record import Report


def to_json(report: Report) -> str:
    """The report in its stable JSON form, indented."""
    return json.dumps(report.to_dict(), indent=1, default=str)


def write(report: Report, folder: str | Path) -> tuple[Path, Path]:
    """Write ``attnpass-<pid>-graph<N>.json`` and ``.html`` into ``folder``, which is made if need be.

    Returns:
        The two paths, JSON first.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"attnpass-{os.getpid()}-graph{report.graph}"
    paths = folder / f"{stem}.json", folder / f"{stem}.html"
    for path, text in zip(paths, (to_json(report), to_html(report)), strict=True):
        path.write_text(text + "\n", encoding="utf-8")
    return paths
