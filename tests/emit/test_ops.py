"""Functions of libraries, without the ops that stand around them there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attnpass.emit.undecorated import undecorated, undecorated_inside

FUNCTION = """
from libraried import kernels
import torch

def attention(q, scale=2.0, *, twice=False):
    out = torch.empty_like(q)
    kernels.write(q, out, scale)
    return out + out if twice else out
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package whose function calls a ``custom_op`` of another module of it, as SageAttention 2.2 does."""
    package, kernels, core = (ModuleType(name) for name in ("libraried", "libraried.kernels", "libraried.core"))
    with torch.library._scoped_library("libraried", "FRAGMENT"):

        @torch.library.custom_op("libraried::write", mutates_args=("out",))
        def write(q: Tensor, out: Tensor, scale: float) -> None:
            out.copy_(q * scale)

        kernels.write = write  # type: ignore[attr-defined]
        package.kernels = kernels  # type: ignore[attr-defined]
        for module in (package, kernels, core):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(FUNCTION, core.__dict__)
        yield core


def _called(function: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
    """What it gives, and how many times an op of the library was called."""
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(op.namespace)
            return op(*args, **(kwargs or {}))

    with Watch():
        out = function(*args, **kwargs)
    return out, seen.count("libraried")


def test_what_stands_behind_a_librarys_ops_is_called(library: ModuleType) -> None:
    q = torch.randn(3)
    bare = undecorated_inside(library.attention)
    assert isinstance(bare, FunctionType) and bare.__name__ == "attention"
    for kwargs in ({}, {"scale": 3.0}, {"twice": True}):
        (wanted, ops_wanted), (got, ops_got) = _called(library.attention, q, **kwargs), _called(bare, q, **kwargs)
        assert torch.equal(got, wanted)
        assert (ops_wanted, ops_got) == (1, 0)


def test_the_library_stays_as_it_is(library: ModuleType) -> None:
    before = dict(vars(library)), dict(vars(library.kernels))
    undecorated_inside(library.attention)(torch.randn(3))
    assert (vars(library), vars(library.kernels)) == before


def test_other_functions_are_given_back(library: ModuleType) -> None:
    from functools import partial

    assert undecorated_inside(_called) is _called
    named = partial(torch.relu)
    named.__module__ = "libraried"  # type: ignore[attr-defined]
    assert undecorated_inside(named) is named
    assert undecorated(torch.relu) is torch.relu
