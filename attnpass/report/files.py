"""The report as files: what ``ATTNPASS_REPORT=folder`` writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from attnpass.errors import AttnpassError
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
        AttnpassError: the folder cannot be made or written to.
    """
    stem = Path(folder) / f"attnpass-{os.getpid()}-graph{report.graph}"
    paths = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".html")
    texts = to_json(report), to_html(report)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise AttnpassError(
            f"writing the report of graph {report.graph}: {error.filename or folder}: {error.strerror or error}, "
            "needs a folder that this program may write to; set ATTNPASS_REPORT to one, or unset it"
        ) from error
    return paths
