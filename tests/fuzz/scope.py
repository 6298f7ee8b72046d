"""A random program under construction: lines of Python that run as they are written.

Every line is tried on real tensors at once, so a generator may propose anything: what PyTorch refuses is dropped, and
shapes need no rules of their own. What comes out is source text, to be printed, run and compiled.
"""

from __future__ import annotations

import linecache
import math
import operator
import random
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

import tests.fuzz.ops  # noqa: F401  programs call its operators through torch.ops

T = TypeVar("T")
MODULES = {"torch": torch, "F": F, "math": math, "operator": operator, "INF": float("-inf")}
LARGEST = 20_000  # elements of one tensor
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BUILD_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NameError, OverflowError, UserWarning)


@dataclass(frozen=True)
class Sizes:
    """B, H, Hkv, Sq, Sk and D of one attention."""

    B: int
    H: int
    Hkv: int
    Sq: int
    Sk: int
    D: int = 16

    @classmethod
    def draw(cls, rng: random.Random, grouped: bool = False) -> Sizes:
        B, H, Sq = rng.choice((1, 2, 2)), rng.choice((2, 4)), rng.choice((4, 5, 8, 8, 9, 17))
        Sk = Sq if rng.random() < 0.6 else rng.choice((4, 7, 8, 12, 17))
        return cls(B, H, rng.choice((1, H // 2, H)) if grouped else H, Sq, Sk)


@dataclass(frozen=True)
class Program:
    """A finished program; ``source`` defines ``program``, which takes the inputs by position."""

    seed: int
    source: str
    inputs: Mapping[str, Tensor]
    grad: bool = False
    dynamic: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.inputs["q"].dtype

    def function(self) -> Callable[..., Any]:
        """The program as Python compiled it, with its lines in tracebacks."""
        name = f"<fuzz {self.seed}>"
        linecache.cache[name] = (len(self.source), None, self.source.splitlines(keepends=True), name)
        namespace: dict[str, Any] = dict(MODULES)
        exec(compile(self.source, name, "exec"), namespace)
        made: Callable[..., Any] = namespace["program"]
        return made

    def fresh(self, double: bool = False) -> list[Tensor]:
        """New inputs of the same values, for one run."""
        made = []
        for tensor in self.inputs.values():
            copy = tensor.double() if double and tensor.is_floating_point() else tensor.clone()
            made.append(copy.requires_grad_(self.grad and copy.is_floating_point()))
        return made

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(x.shape)} {x.dtype}" for name, x in self.inputs.items())
        return f"# seed {self.seed}{', gradients' * self.grad}{', dynamic' * self.dynamic}: {shapes}\n{self.source}"


@dataclass
class Scope:
    """The lines so far, and what each name holds after them."""

    rng: random.Random
    sizes: Sizes
    inputs: dict[str, Tensor]
    dtype: torch.dtype = torch.float32
    pure: bool = False
    grad: bool = False
    lines: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    env: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._replay()

    def _replay(self) -> None:
        self.env = dict(MODULES)
        for name, tensor in self.inputs.items():
            self.env[name] = tensor.clone().requires_grad_(self.grad and tensor.is_floating_point())
        for line in self.lines:
            exec(line, self.env)

    def new(self, text: str, name: str = "") -> str:
        """Add ``name = text`` and give the name; "" if it does not work or makes no useful tensor."""
        name = name or f"x{len(self.lines)}"
        before = self.env.get(name)
        try:
            value = eval(text, self.env)
        except BUILD_ERRORS:
            return ""
        if not isinstance(value, Tensor) or not 0 < value.numel() <= LARGEST or value.ndim > 6 or value.is_complex():
            return ""
        self.env[name] = value
        self.lines.append(f"{name} = {text}")
        if before is None and name not in self.inputs:
            self.made.append(name)
        return name

    def must(self, text: str, name: str = "") -> str:
        """The same for what has to work."""
        made = self.new(text, name)
        if not made:
            raise ImpossibleError(text)
        return made

    def do(self, line: str) -> bool:
        """Add a line that writes; a line that fails is undone."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="An output with one or more elements was resized")
                exec(line, self.env)
        except BUILD_ERRORS:
            self._replay()
            return False
        self.lines.append(line)
        return True

    def value(self, name: str) -> Tensor:
        value: Tensor = self.env[name]
        return value

    def some(self, test: Callable[[Tensor], bool] = lambda _: True) -> str:
        """A tensor made so far for which ``test`` holds, rather a late one; "" if there is none."""
        names = [name for name in self.made if test(self.env[name])]
        names = names[-3:] if self.chance(0.6) else names
        return self.rng.choice(names) if names else ""

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def one(self, choices: Sequence[T]) -> T:
        return self.rng.choice(choices)

    def finish(self, seed: int, returned: str, dynamic: bool = False) -> Program:
        """The program that returns ``returned``, with only the inputs that it reads."""
        self._drop_dead(returned)
        words = set(_words("\n".join((*self.lines, returned))))
        inputs = {name: tensor for name, tensor in self.inputs.items() if name in words or name in "qkv"}
        body = "".join(f"    {line}\n" for entry in (*self.lines, f"return {returned}") for line in entry.split("\n"))
        return Program(seed, f"def program({', '.join(inputs)}):\n{body}", inputs, self.grad, dynamic)

    def _drop_dead(self, returned: str) -> None:
        """Drop most values that nobody reads."""
        read = set(_words(returned))
        for at in reversed(range(len(self.lines))):
            name, equals, text = self.lines[at].partition(" = ")
            if equals and name in self.made and name not in read and self.chance(0.9):
                del self.lines[at]
            else:
                read.update(_words(self.lines[at] if not equals else text + " " + name * (name not in self.made)))


class ImpossibleError(Exception):
    """The draws led nowhere; the caller draws again."""


def _words(text: str) -> Iterable[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()


def is_bool(x: Tensor) -> bool:
    return x.dtype == torch.bool


def is_float(x: Tensor) -> bool:
    return x.dtype in FLOATS


def is_int(x: Tensor) -> bool:
    return not is_bool(x) and not is_float(x)
