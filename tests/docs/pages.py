"""The blocks of code of README and docs, by page and language, in the order in which they stand."""

from __future__ import annotations

import re

from tests.test_docs import ROOT

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def blocks(language: str) -> dict[tuple[str, int], str]:
    """Each block by its page and its number there, from 0."""
    found = {}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)):
            found[page, number] = block
    return found
