"""What is published: extras install the versions that kernels want, and PyPI's page has whole links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import attnpass
from attnpass.kernels.registry import libraries, registry_for
from attnpass.machine.library import PYTORCH, Library

tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
ROOT = Path(attnpass.__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = {"GITHUB_REPOSITORY": "someone/attnpass", "GITHUB_SHA": "0123abc", "GITHUB_SERVER_URL": "https://host"}


def agrees(requirement: Requirement, library: Library) -> bool:
    """The oldest version that pip may install is the oldest that the kernel takes; one pinned version is taken."""
    (oldest,) = [part.version for part in requirement.specifier if part.operator in (">=", "==")] or [""]
    if any(part.operator == "==" for part in requirement.specifier):
        return not library.version_problem(oldest)
    return oldest == library.min_version


def test_extras_install_what_the_kernels_want() -> None:
    """``attnpass info`` takes its minimums from the same data."""
    wanted = {PYTORCH, *libraries(registry_for(("hub:kernels-community/flash-attn2",)))}
    extras = [Requirement(each) for extra in PROJECT["optional-dependencies"].values() for each in extra]
    checked = []
    for requirement in [Requirement(PROJECT["dependencies"][0]), *extras]:
        named = [library for library in wanted if requirement.name in (library.name, *library.also)]
        checked += named[:1]
        assert not named or any(agrees(requirement, library) for library in named), f"{requirement}: {named}"
    assert len(checked) == 10  # PyTorch, and nine extras of a library


def test_what_disagrees_is_found() -> None:
    library = Library("some", "1.2", below="3")
    assert agrees(Requirement("some>=1.2"), library) and agrees(Requirement("some==2.0"), library)
    assert not any(agrees(Requirement(each), library) for each in ("some", "some>=1.3", "some==3.1", "some==1.1"))


def test_the_docs_name_the_same_pytorch() -> None:
    for page in ("README.md", "docs/quickstart.md"):
        assert re.findall(r"PyTorch ([\d.]+) or newer", (ROOT / page).read_text()) == [PYTORCH.min_version], page
        assert re.findall(r"Python ([\d.]+) or newer", (ROOT / page).read_text())[0] in PROJECT["requires-python"]


def test_the_demo_pulls_no_sentence_transformers() -> None:
    """The weights require it, though nothing here does: they are installed apart."""
    assert [Requirement(each).name for each in PROJECT["optional-dependencies"]["demo"]] == ["transformers"]


def metadata() -> Any:
    """As the build backend reads it."""
    pytest.importorskip("hatchling")
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core


def test_pypi_gets_whole_links(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in REPOSITORY.items():
        monkeypatch.setenv(name, value)
    core = metadata()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = r"\]\(([^)\s]+)\)", r'(?:src|srcset)="([^"]+)"'
    before, after = ([link for each in links for link in re.findall(each, page)] for page in (text, core.readme))
    assert len(before) == len(after) > 20
    for short, whole in zip(before, after, strict=True):
        place, relative = ("raw" if short.endswith(".svg") else "blob"), not short.startswith("https:")
        assert whole == (f"https://host/someone/attnpass/{place}/0123abc/{short}" if relative else short)
        assert not relative or (ROOT / short.partition("#")[0]).is_file()
    assert core.urls["Source"] == "https://host/someone/attnpass"


def test_elsewhere_no_address_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REPOSITORY:
        monkeypatch.delenv(name, raising=False)
    core = metadata()
    assert core.urls == {} and core.readme == (ROOT / "README.md").read_text(encoding="utf-8")
