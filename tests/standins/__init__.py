"""Stand-ins for kernel libraries that cannot run on a CPU: the documented contract, its traps included, in PyTorch.

They prove that our calls are right (names of arguments, layouts, which diagonal, what is changed in place), never that
a library is. Each file here stands for one library and has ``install(monkeypatch)``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from attnpass.machine import library
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.library import Build, Found, Library
from attnpass.machine.machine import Machine


def module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    """Put a module into ``sys.modules`` for one test, its parent packages too."""
    parent, _, leaf = name.rpartition(".")
    made = ModuleType(name)
    made.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, made)
    if parent:
        holder = sys.modules.get(parent) or module(monkeypatch, parent)
        holder.__path__ = []
        monkeypatch.setattr(holder, leaf, made, raising=False)
    return made


def pretend(
    monkeypatch: pytest.MonkeyPatch, machine: str, installed: Library, version: str, build: Build | None = None
) -> Machine:
    """Let every device be ``machine`` (a name of `KNOWN_MACHINES`) with ``installed`` in ``version``."""
    return _be(monkeypatch, machine, {installed: Found(version, build=build)})


def pretend_all(
    monkeypatch: pytest.MonkeyPatch, machine: str, versions: Mapping[Library, str], **facts: Any
) -> Machine:
    """Let every device be ``machine`` with several libraries, each tried out: what its import says counts."""
    return _be(
        monkeypatch, machine, {each: tried(monkeypatch, each, version) for each, version in versions.items()}, **facts
    )


def tried(monkeypatch: pytest.MonkeyPatch, installed: Library, version: str) -> Found:
    """What `attnpass.machine.library` finds when it imports ``installed``, whose metadata says ``version``."""
    with monkeypatch.context() as patch:
        patch.setattr(library, "version", lambda _: version)
        return inspect.unwrap(library.try_out)(installed)


def _be(monkeypatch: pytest.MonkeyPatch, machine: str, found: Mapping[Library, Found], **facts: Any) -> Machine:
    versions = {each.key: there.version for each, there in found.items() if there.version}
    here = replace(
        KNOWN_MACHINES[machine],
        versions={**KNOWN_MACHINES[machine].versions, **versions},
        unusable={each.key: there.problem for each, there in found.items() if there.problem},
        builds={each.key: there.build for each, there in found.items() if there.build},
        **facts,
    )
    monkeypatch.setenv("ATTNPASS_TUNE", "0")  # a clock would time this CPU
    monkeypatch.setattr(Machine, "look", classmethod(lambda *_, **__: here))
    monkeypatch.setattr(library, "version", lambda one: versions.get(one.key))
    monkeypatch.setattr(library, "at_least", inspect.unwrap(library.at_least))
    if here.capability.startswith("sm_"):
        number = here.capability.removeprefix("sm_")
        pair = (int(number[:-1]), int(number[-1]))
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: pair)
    return here
