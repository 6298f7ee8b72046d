"""What a published wheel says about a function: its signature, read from the source without importing anything."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
PATIENCE = 240  # seconds for one download


@dataclass(frozen=True)
class Wheel:
    """One file of one version of a distribution."""

    name: str
    version: str
    file: str
    python: str = "3.12"

    def source(self, folder: Path) -> str:
        """The text of the file; the test is skipped where pip cannot get the wheel."""
        command = [sys.executable, "-m", "pip", "download", f"{self.name}=={self.version}", "--pre", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", self.python, "--dest", str(folder), "--quiet"]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{self.name} {self.version} did not come in {PATIENCE} s")
        found = list(folder.glob("*.whl"))
        if not found:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            pytest.skip(f"pip cannot get {self.name} {self.version}: {last}")
        with zipfile.ZipFile(found[0]) as archive:
            return archive.read(self.file).decode()


def signatures(source: str) -> dict[str, inspect.Signature]:
    """Every function of the source by name; of an op's fake, by the op's name without its namespace."""
    found: dict[str, inspect.Signature] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            found[_op_name(node) or node.name] = inspect.Signature(_parameters(node.args))
    return found


def _op_name(node: ast.FunctionDef) -> str:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("register_fake"):
            return str(ast.literal_eval(decorator.args[0])).partition("::")[2]
    return ""


def _parameters(given: ast.arguments) -> list[inspect.Parameter]:
    kinds = inspect.Parameter
    named = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(named) - len(given.defaults))
    found = [
        _parameter(arg, kinds.POSITIONAL_OR_KEYWORD, default)
        for arg, default in zip(named, [*defaults, *given.defaults], strict=True)
    ]
    if given.vararg:
        found.append(_parameter(given.vararg, kinds.VAR_POSITIONAL, None))
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    found += [_parameter(arg, kinds.KEYWORD_ONLY, default) for arg, default in pairs]
    if given.kwarg:
        found.append(_parameter(given.kwarg, kinds.VAR_KEYWORD, None))
    return found


def _parameter(arg: ast.arg, kind: inspect._ParameterKind, default: ast.expr | None) -> inspect.Parameter:
    return inspect.Parameter(arg.arg, kind, default=inspect.Parameter.empty if default is None else _value(default))


def _value(default: ast.expr) -> object:
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)
