"""From an expression back to tensors: computed for all indices at once, or for one element inside a kernel.

`evaluate` is plain PyTorch. Traced on index tensors it becomes the ATen ops that make a block mask; traced on four
scalars it becomes the mask function that FlexAttention compiles into its kernel; run as it is, it is what the tests
compare with the mask that the program made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.graph.values import tensor
from attnpass.masks.bounds import Bounds
from attnpass.masks.expr import (
    And,
    Apply,
    Bool,
    Expr,
    Float,
    Lin,
    Load,
    NonNeg,
    Not,
    Or,
    Where,
    Zero,
    in_order,
    size_key,
)
from attnpass.masks.logic import loads_of, walk
from attnpass.symbolic import Size, known

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": lambda a, b: a == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
}


@dataclass(frozen=True, slots=True)
class Values:
    """What an expression is computed from.

    Attributes:
        axes: the index tensor of each axis; they broadcast.
        tensors: the tensor of each node that is read.
        sizes: of each symbolic size, by its key, a tensor without dimensions.
        outside: loads and the dimensions in which their index may lie outside of the tensor. Such an element is not
            taken (a ``where`` chooses another), but it is read all the same.
    """

    axes: Mapping[str, Tensor]
    tensors: Mapping[Node, Tensor]
    sizes: Mapping[Any, Tensor]
    outside: frozenset[tuple[Load, int]] = frozenset()

    @property
    def device(self) -> torch.device:
        return next(iter(self.axes.values())).device


def evaluate(expr: Expr, values: Values) -> Any:
    """The value of ``expr``: a tensor, or a number where it depends on nothing."""
    done: dict[Expr, Any] = {}

    def go(part: Expr) -> Any:
        if part not in done:
            done[part] = _EVALUATE[type(part)](part, values, go)
        return done[part]

    return go(expr)


def as_tensor(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A value of `evaluate` as a tensor."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def _size(value: Size, values: Values) -> Any:
    return value if isinstance(value, int) else values.sizes[size_key(value)]


def _lin(form: Lin, values: Values, go: Callable[[Expr], Any]) -> Any:
    total: Any = None
    for axis, factor in form.terms:
        part = values.axes[axis] if factor == 1 else values.axes[axis] * factor
        total = part if total is None else total + part
    if total is None:
        return _size(form.const, values)
    return total if isinstance(form.const, int) and form.const == 0 else total + _size(form.const, values)


def _nonneg(expr: NonNeg, values: Values, go: Callable[[Expr], Any]) -> Any:
    return go(expr.form) >= 0


def _zero(expr: Zero, values: Values, go: Callable[[Expr], Any]) -> Any:
    return go(expr.form) == 0


def _load(expr: Load, values: Values, go: Callable[[Expr], Any]) -> Any:
    tensor = values.tensors[expr.node]
    if not expr.index:
        return tensor
    index = []
    for dim, (part, size) in enumerate(zip(expr.index, tensor.shape, strict=True)):
        at = as_tensor(go(part), torch.int64, values.device)
        index.append(at.clamp(min=0, max=size - 1) if (expr, dim) in values.outside else at)
    return torch.ops.aten.index.Tensor(tensor, index)


def _not(expr: Not, values: Values, go: Callable[[Expr], Any]) -> Any:
    value = go(expr.arg)
    return not value if isinstance(value, bool) else torch.logical_not(value)


def _and(expr: And, values: Values, go: Callable[[Expr], Any]) -> Any:
    parts = [as_tensor(go(arg), torch.bool, values.device) for arg in in_order(expr.args)]
    result = parts[0]
    for part in parts[1:]:
        result = result & part
    return result


def _or(expr: Or, values: Values, go: Callable[[Expr], Any]) -> Any:
    parts = [as_tensor(go(arg), torch.bool, values.device) for arg in in_order(expr.args)]
    result = parts[0]
    for part in parts[1:]:
        result = result | part
    return result


def _where(expr: Where, values: Values, go: Callable[[Expr], Any]) -> Any:
    dtype = next((p.dtype for p in walk(expr.yes) if isinstance(p, (Float, Load, Apply))), torch.int64)
    yes, no = (as_tensor(go(part), dtype, values.device) for part in (expr.yes, expr.no))
    return torch.where(as_tensor(go(expr.test), torch.bool, values.device), yes, no)


def _apply(expr: Apply, values: Values, go: Callable[[Expr], Any]) -> Any:
    return COMPARISONS[expr.op](*map(go, expr.args))


_EVALUATE: dict[type[Expr], Callable[[Any, Values, Callable[[Expr], Any]], Any]] = {
    Bool: lambda expr, values, go: expr.value,
    Float: lambda expr, values, go: expr.value,
    Lin: _lin,
    NonNeg: _nonneg,
    Zero: _zero,
    Load: _load,
    Not: _not,
    And: _and,
    Or: _or,
    Where: _where,
    Apply: _apply,
}


def outside_loads(expr: Expr, bounds: Bounds) -> frozenset[tuple[Load, int]]:
    """Loads whose index is not known to lie inside of their tensor, with the dimension."""
    found = set()
    for load in loads_of(expr):
        for dim, (part, size) in enumerate(zip(load.index, _shape(load.node), strict=True)):
            most = bounds.most(part) if isinstance(part, Lin) and bounds.always(part) else None
            if most is None or not known(most < size):
                found.add((load, dim))
    return frozenset(found)


def _shape(holder: Any) -> torch.Size:
    made = tensor(holder)
    assert made is not None
    return made.shape


def symbolic_sizes(expr: Expr) -> dict[Any, Size]:
    """The symbolic sizes that an expression reads, by their key."""
    forms = [part for part in walk(expr) if isinstance(part, Lin)]
    return {size_key(form.const): form.const for form in forms if not isinstance(form.const, int)}
