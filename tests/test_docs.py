"""What the docs name exists: files of the repository, and things of the package."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import attnpass
from attnpass.settings.config import VARIABLES

PACKAGE = Path(attnpass.__file__).resolve().parent
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = ("attnpass", "benchmarks", "docs", "scripts", "tests")
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FILE = re.compile(rf"(?<![\w./@:-])(?:{'|'.join([*TOP, *ROOMS])})/(?:[\w.]+/)*[\w.]*")
NAME = re.compile(r"(?<![\w./:-])attnpass(?:\.[A-Za-z]\w*)+")
OPTIONS = {variable.option for variable in VARIABLES}


def code_of(page: Path) -> Iterator[str]:
    """Blocks of code, and what stands between backticks."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"```.*?```", text, re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_are_there(page: Path) -> None:
    """Named from the root, or from ``attnpass/``."""
    named = {name for code in code_of(page) for name in FILE.findall(code)}
    missing = [name for name in named if not ((ROOT / name).exists() or (PACKAGE / name).exists())]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_lead_to_something(page: Path) -> None:
    named = {name for code in code_of(page) for name in NAME.findall(code)} - OPTIONS
    assert not [name for name in named if not leads_to_something(name)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nobody_is_sent_to_a_release_that_is_not_there(page: Path) -> None:
    """PyPI has no attnpass yet. With the first release this test and the words go."""
    lines = [line for code in code_of(page) for line in code.splitlines()]
    assert not [line for line in lines if installs_from_pypi(line)]


def installs_from_pypi(line: str) -> bool:
    """Is attnpass, or one of its extras, installed by name, without a word about the clone?"""
    by_name = re.search(r"pip install .*attnpass(?![\w-])", line)
    return bool(by_name) and "from a clone until the first release" not in line


def leads_to_something(name: str) -> bool:
    """Is it a module, or an attribute of one?"""
    found: Any = attnpass
    path = "attnpass"
    for part in name.split(".")[1:]:
        path += f".{part}"
        try:
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
        except ImportError:
            return False
    return True


def test_what_is_gone_is_found() -> None:
    assert installs_from_pypi('pip install "attnpass[docs]"') and not installs_from_pypi("pip install flash-attn")
    assert leads_to_something("attnpass.ir.limits.Code") and not leads_to_something("attnpass.limits.Code")
    assert FILE.findall("see attnpass/masks/hidden.py and graph/") == ["attnpass/masks/hidden.py", "graph/"]
    assert NAME.findall("attnpass.plugin.known(x) and torch.ops.attnpass.flash2") == ["attnpass.plugin.known"]
