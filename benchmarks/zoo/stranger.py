"""A stranger: a model of a package from PyPI, made small by its own constructor, and what it is called with."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TOKENS = 100  # how many words the small language models know


@dataclass(frozen=True, slots=True)
class Ready:
    """A model and the arguments of one call of it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return self.model(*self.args, **self.kwargs)


@dataclass(frozen=True, slots=True)
class Stranger:
    """What is tried of a package.

    Attributes:
        package: its name on PyPI; ``requirements/zoo.txt`` has the version.
        what: the model in it, in a word or two.
        make: builds the model and its inputs. Seeded by whoever calls it.
        note: what a reader of the table should know, such as a part that was replaced.
    """

    package: str
    what: str
    make: Callable[[], Ready]
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.package}/{self.what}"


def get(path: str) -> Any:
    """The object at a dotted path, such as ``vit_pytorch.cait.CaiT``: imported only where a model is built."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def ready(model: nn.Module, *args: Any, **kwargs: Any) -> Ready:
    return Ready(model, args, kwargs)


def method(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> Ready:
    """A call of another method than ``forward``."""
    return Ready(Method(model, name), args, kwargs)


class Method(nn.Module):
    """A method of a module as a module of its own."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functools.reduce(getattr, self.name.split("."), self.model)(*args, **kwargs)  # type: ignore[operator]


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, TOKENS, shape or (2, 32))


def floats(*shape: int) -> Tensor:
    return torch.randn(shape)


def padding(batch: int = 2, length: int = 32, short: int = 7) -> Tensor:
    """True where a sequence has something: the second one is shorter."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[-1, length - short :] = False
    return mask
