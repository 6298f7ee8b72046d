"""docs/add_a_kernel.md: its example is a kernel, holds the suite, and is found in the metadata of a distribution."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from attnpass import testing
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import registry

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "my_attention.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Loaded once: its ops can be defined once in a process."""
    spec = importlib.util.spec_from_file_location("my_attention", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_example_conforms(example: ModuleType) -> None:
    outcomes = testing.conform(example.MyAttention())
    print(f"\nconformance of the example: {dict(outcomes)}, none wrong")
    assert outcomes["right"] > 60
    assert "my_attention" not in registry()  # registered only while it was looked at


def broken(example: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str) -> Kernel:
    """The example with one mistake of those that kernels make."""
    forward, backward = example.library_forward, example.library_backward

    def changed(q: Any, k: Any, v: Any, scale: float, causal: bool) -> Any:
        if name == "drops causal":
            return forward(q, k, v, scale, False)
        if name == "forgets the scale":
            return forward(q, k, v, q.shape[-1] ** -0.5, causal)
        if name == "changes k in place":
            k.sub_(k.mean(1, keepdim=True))
        out, lse = forward(q, k, v, scale, causal)
        return (out.transpose(1, 2).contiguous().transpose(1, 2), lse) if name == "another layout" else (out, lse)

    def wrong_gradient(**given: Any) -> Any:
        dq, dk, dv = backward(**given)
        return (dq, dk * 1.1, dv) if name == "a wrong gradient" else (dq, dk, dv)

    monkeypatch.setattr(example, "library_forward", changed)
    monkeypatch.setattr(example, "library_backward", wrong_gradient)
    kernel: Kernel = example.MyAttention()
    return kernel


MISTAKES = {
    "drops causal": "off by",
    "forgets the scale": "off by",
    "changes k in place": "changes k in place",
    "another layout": "stride",
    "a wrong gradient": "gradient of k off by",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_suite_finds_a_mistake(name: str, example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = broken(example, monkeypatch, name)
    with pytest.raises(Exception, match=MISTAKES[name]):
        testing.conform(kernel, count=40)


def test_the_suite_finds_a_question_that_makes_programs_recompile(example: ModuleType) -> None:
    class Careless(example.MyAttention):  # type: ignore[misc, name-defined]
        def check(self, call: Any, machine: Any) -> Any:
            if call.Sk % 64 == 0:  # adds a guard, where `known_multiple` would not
                yield from ()

    with pytest.raises(AssertionError, match="compiled 2 times, 1 without it; ask about sizes with"):
        testing.conform(Careless(), count=20)


def test_it_is_found_in_the_metadata_of_a_distribution(tmp_path: Path) -> None:
    """A program that has never heard of the package names its kernel."""
    (tmp_path / "my_package").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "my_package" / "attnpass_kernel.py")
    (tmp_path / "my_package" / "__init__.py").touch()
    metadata = tmp_path / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[attnpass.kernels]\nmy_attention = my_package.attnpass_kernel:MyAttention\n"
    )
    command = [sys.executable, "-m", "attnpass", "explain", "--shape", "1,2,16,32", "--kernel", "my_attention"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "my_attention -> my_attention: my_attention was asked for by name" in done.stdout


def test_the_page_names_what_there_is() -> None:
    """Every dotted name of the package in the page's text exists."""
    page = (ROOT / "docs" / "add_a_kernel.md").read_text(encoding="utf-8")
    names = sorted(set(re.findall(r"`(attnpass(?:\.\w+)+)`", page)))
    assert len(names) > 5
    for name in names:
        assert exists(name), name


def exists(name: str) -> bool:
    module, attributes = name, []
    while module not in sys.modules:
        module, _, last = module.rpartition(".")
        attributes.insert(0, last)
    found: Any = sys.modules[module]
    for attribute in attributes:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
