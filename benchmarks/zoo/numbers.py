"""Is what a stranger computes with attnpass as right as what it computes without? Every tensor that it returns.

The yardstick is eager's own error against the same model in fp64. Where a model does not run in fp64, it is what eager
changes by when every weight and input is rounded another way.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.zoo.stranger import Ready

MULTIPLE = 4.0  # of eager's own error
STEPS = 64.0  # rounding steps of the largest value: below that errors are chance
SEED = 1
HIDDEN = 1e30
LOWER = {torch.float32, torch.float16, torch.bfloat16}
CASTS = ("float", "half", "bfloat16")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far off, in eager's own errors."""

    ratio: float
    yardstick: str
    problem: str = ""


def seeded(run: Callable[[], Any]) -> list[Tensor]:
    """What a run gives, with the same random numbers each time."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        return [x.detach().clone() for x in tensors_of(run())]


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in what a model returns, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_of(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_of(each)
    elif is_dataclass(value) and not isinstance(value, type):
        for each in fields(value):
            yield from tensors_of(getattr(value, each.name))


class InDouble(TorchFunctionMode):
    """Casts that a model writes out keep fp64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in CASTS and len(args) == 1 and isinstance(args[0], Tensor):
            return args[0].double() if args[0].dtype != torch.float64 else args[0]
        args, kwargs = pytree.tree_map(lambda x: _widened(x), (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


def _widened(x: Any) -> Any:
    return torch.float64 if isinstance(x, torch.dtype) and x in LOWER else x


def exactly(subject: Ready) -> list[Tensor] | None:
    """The same model in fp64; None if it does not run so."""
    before = torch.get_default_dtype()
    try:
        model, args, kwargs = copy.deepcopy((subject.model, subject.args, subject.kwargs))
        args, kwargs = pytree.tree_map_only(Tensor, _double, (args, kwargs))
        torch.set_default_dtype(torch.float64)
        with InDouble():
            return seeded(Ready(model.double(), args, kwargs))
    except Exception:  # a dtype that is written into the model: eager has to do
        return None
    finally:
        torch.set_default_dtype(before)


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def rounded_otherwise(subject: Ready, eager: list[Tensor]) -> list[Tensor]:
    """What the model gives if each of its weights is off by a rounding step."""
    model = copy.deepcopy(subject.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                step = torch.randint(-1, 2, weight.shape, generator=generator) * torch.finfo(weight.dtype).eps
                weight.mul_(1 + step.to(weight.dtype))
    return seeded(Ready(model, subject.args, subject.kwargs))


def judge(subject: Ready, eager: list[Tensor], got: list[Tensor]) -> Verdict:
    """Compare ``got`` with ``eager``."""
    floats = [x for x in eager if x.is_floating_point()]
    if not any(bool(((x.abs() < HIDDEN) & (x != 0)).any()) for x in floats):
        return Verdict(0.0, "", "eager gives nothing but NaN or zeros, so nothing was compared")
    shapes = [(x.shape, x.dtype) for x in eager]
    if shapes != [(x.shape, x.dtype) for x in got]:
        return Verdict(math.inf, "", f"gives {[tuple(x.shape) for x in got]}, eager {[tuple(x.shape) for x in eager]}")
    exact = exactly(subject)
    yardstick = "fp64"
    if exact is None or [x.shape for x in exact] != [x.shape for x in eager] or _far(eager, exact):
        exact, yardstick = rounded_otherwise(subject, eager), "rounding"
    ratios = [_ratio(*each, yardstick) for each in zip(got, eager, exact, strict=True)]
    worst = max(ratios, default=0.0)
    return Verdict(worst, yardstick, "" if worst <= 1 else f"off by {worst:.1f} times what is allowed")


def _far(eager: list[Tensor], exact: list[Tensor]) -> bool:
    """Another answer rather than a more exact one: a model that draws numbers draws others in fp64."""
    pairs = [(x.double(), y.double()) for x, y in zip(eager, exact, strict=True) if x.is_floating_point()]
    return any(float((x - y).nan_to_num().norm()) > 1e-2 * float(y.nan_to_num().norm()) + 1e-6 for x, y in pairs)


def _ratio(got: Tensor, eager: Tensor, exact: Tensor, yardstick: str) -> float:
    """The error in units of the allowed one."""
    if not eager.is_floating_point():
        same = torch.equal(got, eager)
        return 0.0 if same or not torch.equal(eager, exact.to(eager.dtype)) else math.inf
    a, b, c = got.double(), eager.double(), exact.double()
    if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a.isinf(), b.isinf()):
        return math.inf
    usual = b.isfinite() & c.isfinite() & (b.abs() < HIDDEN)  # not a logit that is hidden with the lowest number
    if not torch.equal(torch.where(usual, 0.0, a.nan_to_num()), torch.where(usual, 0.0, b.nan_to_num())):
        return math.inf
    a, b, c = a[usual], b[usual], c[usual]
    if not a.numel():
        return 0.0
    own = float((b - c).abs().max())
    allowed = MULTIPLE * own + STEPS * torch.finfo(eager.dtype).eps * float(b.abs().max())
    error = float((a - (c if yardstick == "fp64" else b)).abs().max())
    return error / allowed if allowed else (0.0 if error == 0 else math.inf)
