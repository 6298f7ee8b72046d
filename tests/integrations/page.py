"""The code of ``docs/integrations.md``, section by section, to run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"


def sections() -> dict[str, list[str]]:
    """The Python blocks under each heading that has some."""
    parts = re.split(r"^#+ (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {
        heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    return {heading: blocks for heading, blocks in found.items() if blocks}


def run(heading: str, block: int = 0, **names: Any) -> dict[str, Any]:
    """Run one block of a section; it sees ``names``, and what comes back has those that it set."""
    exec(compile(sections()[heading][block], f"{PAGE.name}: {heading}", "exec"), names)
    return names
