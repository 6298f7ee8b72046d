"""Where the documentation is, for links: the pages load nothing, and a reader may follow one."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from pathlib import Path

REASONS = "why_kept.md"
CLONE = Path(__file__).resolve().parents[3] / "docs"


@cache
def reasons() -> str:
    """The address of the page of rejection codes, or "".

    A release knows where its documentation is. Elsewhere the pages are those of the clone that is installed.
    """
    try:
        urls = dict(each.split(", ", 1) for each in metadata.metadata("attnpass").get_all("Project-URL") or [])
    except metadata.PackageNotFoundError:
        urls = {}
    if "Documentation" in urls:
        return f"{urls['Documentation'].rpartition('/')[0]}/{REASONS}"
    page = CLONE / REASONS
    return page.as_uri() if page.exists() else ""
