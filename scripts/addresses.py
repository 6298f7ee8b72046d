"""What PyPI shows of the package: its README with whole addresses, and where its pages are. Hatchling runs it.

The addresses are those of the repository in which the release is built, by GitHub's own variables. Built elsewhere the
README stays as it is: whose copy that is, nothing says.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(\]\()(?!https?:|#)")
FIGURE = re.compile(r'((?:src|srcset)=")(?!https?:)')


class Addresses(MetadataHookInterface):
    """Sets ``readme`` and ``urls``, which ``pyproject.toml`` calls dynamic."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in both."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        name, commit = os.environ.get("GITHUB_REPOSITORY"), os.environ.get("GITHUB_SHA")
        if name and commit:
            home = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{name}"
            text = whole(text, home, commit)
            metadata["urls"] = urls(home)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def whole(readme: str, home: str, commit: str) -> str:
    """The README with its links and figures as addresses under ``home``, as of ``commit``."""
    return FIGURE.sub(rf"\g<1>{home}/raw/{commit}/", LINK.sub(rf"\g<1>{home}/blob/{commit}/", readme))


def urls(home: str) -> dict[str, str]:
    """The links beside the package's page."""
    return {
        "Source": home,
        "Documentation": f"{home}/blob/main/docs/index.md",
        "Changelog": f"{home}/blob/main/CHANGELOG.md",
        "Issues": f"{home}/issues",
    }
