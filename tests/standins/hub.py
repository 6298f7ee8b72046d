"""The package `kernels` 0.17: ``get_kernel`` and ``get_local_kernel``, without a network.

Traps kept: a revision or a version, one of the two; publishers that are not trusted; folders need a build variant with
metadata; every module has a name of its own.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.standins import module

VARIANT = "torch-universal"
repositories: dict[str, Path] = {}
calls: list[dict[str, Any]] = []


def get_kernel(
    repo_id: str,
    *,
    revision: str | None = None,
    version: int | None = None,
    backend: str | None = None,
    user_agent: str | None = None,
    trust_remote_code: bool | list[str] = False,
    check_arch: bool = True,
) -> ModuleType:
    calls.append({"repo_id": repo_id, "revision": revision, "version": version, "trusted": trust_remote_code})
    if (revision is None) == (version is None):
        raise ValueError("Only one of `revision` or `version` must be specified.")
    if not trust_remote_code and not repo_id.startswith("trusted/"):
        raise ValueError(f"Kernel repository '{repo_id}' is not from a trusted publisher. Set trust_remote_code=True.")
    if repo_id not in repositories:
        raise FileNotFoundError(f"Cannot find a local snapshot for {repo_id} (revision: {revision}).")
    return get_local_kernel(repositories[repo_id])


def get_local_kernel(
    repo_path: Path,
    *,
    backend: str | None = None,
    trust_remote_code: bool | list[str] = False,
    user_agent: str | None = None,
) -> ModuleType:
    variant = repo_path / "build" / VARIANT
    if not (variant / "metadata.json").exists():
        raise FileNotFoundError(f"Cannot find a build variant for this system in {repo_path}:\n\n")
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def write_kernel(folder: Path, code: str) -> Path:
    """A kernel in the layout that the package builds and loads."""
    variant = folder / "build" / VARIANT
    variant.mkdir(parents=True)
    (variant / "__init__.py").write_text(code)
    metadata = {"id": f"_{folder.name}_1", "name": folder.name, "version": 1, "license": "MIT"}
    (variant / "metadata.json").write_text(json.dumps({**metadata, "python-depends": [], "backend": {"type": "cpu"}}))
    return folder


def install(monkeypatch: pytest.MonkeyPatch, there: Mapping[str, Path] | None = None) -> None:
    """Let ``import kernels`` find this, with the repositories that are ``there``."""
    calls.clear()
    monkeypatch.setattr(f"{__name__}.repositories", dict(there or {}))
    module(monkeypatch, "kernels", get_kernel=get_kernel, get_local_kernel=get_local_kernel)
