"""The package that a kernel comes from, as data, and how to find out whether it works here.

``find_spec`` is not availability: a wheel for another CUDA, a namespace package left behind by a sibling, an import
that fails three modules deep are all "found". So a library whose kernels are considered is imported, once in a process,
and what the import said becomes the reason of the refusal.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from packaging.version import InvalidVersion, Version

logger = logging.getLogger(__name__)
Build = Mapping[str, bool]


class UnusableError(Exception):
    """A library imports and still cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Library:
    """A distribution that provides kernels.

    Attributes:
        name: the distribution, as pip knows it; it names the library in every message.
        min_version: oldest version that is known to work.
        below: first version that is a different library; "" for none.
        modules: what the kernel imports, in order.
        also: other distributions that carry the same modules.
        build: reads what was compiled into this build (``{"backward": False}``); called after the imports, and may
            raise `UnusableError`.
        install: the command that installs it; "" for ``pip install 'name>=min_version'``.
        part: what of it is meant, where it brings several things that are looked at each on its own (``hub:org/repo``).
    """

    name: str
    min_version: str = ""
    below: str = ""
    modules: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    build: Callable[[], Build] | None = None
    install: str = ""
    part: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.wanted}".strip()

    @property
    def wanted(self) -> str:
        """The versions that work, in words: ``>= 2.1.1``, ``>= 1.0.5, < 2``; "any version" otherwise."""
        bounds = [f">= {self.min_version}"] if self.min_version else []
        return ", ".join(bounds + ([f"< {self.below}"] if self.below else [])) or "any version"

    @property
    def key(self) -> str:
        """Names this library among others of the same distribution: sageattention 1 and 2 are two."""
        return f"{self.name}<{self.below}" if self.below else f"{self.name} {self.part}".strip()

    def installation(self) -> str:
        """The command for error messages."""
        bounds = self.wanted.replace(" ", "") if self.min_version or self.below else ""
        return self.install or f"pip install '{self.name}{bounds}'"

    def version_problem(self, found: str | None) -> str:
        """Why this version will not do, in words; "" if it will."""
        if found is None:
            return "not installed"
        try:
            here = Version(found)
        except InvalidVersion:
            return found
        old = self.min_version and here.release < Version(self.min_version).release
        new = self.below and here.release >= Version(self.below).release
        return found if old or new else ""


PYTORCH = Library("torch", "2.9")


@dataclass(frozen=True, slots=True)
class Found:
    """What is there of a library.

    Attributes:
        version: its version; None if it is not installed.
        problem: why it cannot be used although it is there; "" if nothing is known against it.
        build: what was compiled into it; empty if it was not imported.
    """

    version: str | None
    problem: str = ""
    build: Build | None = None


@cache
def version(library: Library) -> str | None:
    """The installed version, from the metadata of the distribution (module attributes lie: flash-attn-4 says 0.0.0)."""
    for name in (library.name, *library.also):
        for distribution in importlib.metadata.distributions(name=name):
            return distribution.version
    return None


@cache
def at_least(library: Library, wanted: str) -> bool:
    """Is the installed version ``wanted`` or newer?"""
    found = version(library)
    return found is not None and Version(found).release >= Version(wanted).release


@cache
def try_out(library: Library) -> Found:
    """Import the library and read its build. A failure becomes a value; nothing is printed or raised."""
    found = version(library)
    if library.version_problem(found):
        return Found(found)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            for module in library.modules:
                importlib.import_module(module)
            return Found(found, build=library.build() if library.build else {})
    except UnusableError as error:
        return Found(found, f"{found}, which cannot be used ({error})")
    except BaseException as error:  # a broken binary raises what it likes, SystemExit included
        if isinstance(error, KeyboardInterrupt):
            raise
        logger.debug("importing %s failed", library.name, exc_info=True)
        return Found(found, f"{found}, which cannot be imported ({_one_line(error)})")


def look(libraries: Iterable[Library], imported: Iterable[Library]) -> dict[Library, Found]:
    """What is there of each library; those in ``imported`` are tried out, of the others only the version is read."""
    wanted = set(imported)
    return {library: try_out(library) if library in wanted else Found(version(library)) for library in libraries}


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
