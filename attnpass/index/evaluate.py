"""From an expression back to tensors: computed for all indices at once, or for one element inside a kernel.

`evaluate` is plain PyTorch. Traced on index tensors it becomes the ATen ops that make a block mask; traced on four
scalars it becomes the mask function that FlexAttention compiles into its kernel; run as it is, it is what the tests
compare with the mask that the program made.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.graph.symbolic import Size, known
from attnpass.graph.values import tensor
from attnpass.index.bounds import Bounds
from attnpass.index.expr import And, Apply, Bool, Expr, Float, Lin, Load, NonNeg, Not, Or, Where, Zero, size_key
from attnpass.index.interned import bottom_up, in_order
from attnpass.index.logic import children, dtype_of, loads_of, walk

COMPARISONS = ("eq", "lt", "le")
IN_DTYPE = ("add", "sub", "mul", "abs", "sigmoid", "cast")  # computed in a dtype that is said
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": operator.eq,
    "lt": operator.lt,
    "le": operator.le,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "cast": lambda value: value,  # brought into the dtype like every operand
}
# FlexAttention counts in int32: up to 2 ** 28 positions, few enough times, stay in its range.
SMALL_FACTORS, SMALL = 4, 1 << 29


@dataclass(frozen=True, slots=True)
class Values:
    """What an expression is computed from.

    Attributes:
        axes: the index tensor of each axis; they broadcast.
        tensors: the tensor of each node that is read.
        sizes: of each symbolic size, by its key, a tensor without dimensions.
        outside: loads and the dimensions in which their index may lie outside of the tensor. Such an element is not
            taken (a ``where`` chooses another), but it is read all the same.
        device: where they all are; an expression may have no axes.
    """

    axes: Mapping[str, Tensor]
    tensors: Mapping[Node, Tensor]
    sizes: Mapping[Any, Tensor]
    outside: frozenset[tuple[Load, int]] = frozenset()
    device: torch.device = field(kw_only=True)


def evaluate(expr: Expr, values: Values) -> Any:
    """The value of ``expr``: a tensor, or a number where it depends on nothing."""
    done: dict[Expr, Any] = {}
    for part in bottom_up(expr, done.__contains__, children):
        done[part] = _EVALUATE[type(part)](part, values, done.__getitem__)
    return done[expr]


def as_tensor(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A value of `evaluate` as a tensor."""
    return value if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)


def _size(value: Size, values: Values) -> Any:
    return value if isinstance(value, int) else values.sizes[size_key(value)]


def _lin(form: Lin, values: Values, go: Callable[[Expr], Any]) -> Any:
    small = isinstance(form.const, int) and abs(form.const) < SMALL
    small = small and sum(abs(factor) for _, factor in form.terms) <= SMALL_FACTORS
    total: Any = None
    for axis, factor in form.terms:
        index = values.axes[axis] if small else values.axes[axis].to(torch.int64)
        part = index if factor == 1 else index * factor
        total = part if total is None else total + part
    if total is None:
        return _size(form.const, values)
    return total if isinstance(form.const, int) and form.const == 0 else total + _size(form.const, values)


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


def _join(expr: And | Or, values: Values, go: Callable[[Expr], Any]) -> Any:
    parts = (as_tensor(go(arg), torch.bool, values.device) for arg in in_order(expr.args))
    return reduce(operator.and_ if isinstance(expr, And) else operator.or_, parts)


def _where(expr: Where, values: Values, go: Callable[[Expr], Any]) -> Any:
    dtype = dtype_of(expr) or torch.int64
    yes, no = (as_tensor(go(part), dtype, values.device).to(dtype) for part in (expr.yes, expr.no))
    return torch.where(as_tensor(go(expr.test), torch.bool, values.device), yes, no)


def _apply(expr: Apply, values: Values, go: Callable[[Expr], Any]) -> Any:
    args = [go(arg) for arg in expr.args]
    if not any(isinstance(arg, Tensor) for arg in args):  # 100 + 100 is -56 in int8
        dtypes = [dtype_of(arg) or torch.int64 for arg in expr.args]
        wide = torch.promote_types(*dtypes) if expr.op in COMPARISONS else expr.dtype
        args = [as_tensor(arg, wide, values.device) for arg in args]
    elif expr.op in IN_DTYPE:
        args = [arg.to(expr.dtype) if isinstance(arg, Tensor) else arg for arg in args]
    else:
        args = _alike(args)
    return FUNCTIONS[expr.op](*args)


def _alike(args: list[Any]) -> list[Any]:
    """Integers in a dtype that holds both: PyTorch would take a number, or a tensor without dimensions, as it fits."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if any(t.is_floating_point() or t.dtype == torch.bool for t in tensors):
        return args
    numbers = [arg for arg in args if isinstance(arg, int)]
    limits = [torch.iinfo(tensor.dtype) for tensor in tensors]
    fits = all(each.min <= number <= each.max for each in limits for number in numbers)
    if fits and len({tensor.dtype for tensor in tensors}) == 1:
        return args
    return [arg.to(torch.int64) if isinstance(arg, Tensor) else arg for arg in args]


_EVALUATE: dict[type[Expr], Callable[[Any, Values, Callable[[Expr], Any]], Any]] = {
    Bool: lambda expr, values, go: expr.value,
    Float: lambda expr, values, go: expr.value,
    Lin: _lin,
    NonNeg: lambda expr, values, go: go(expr.form) >= 0,
    Zero: lambda expr, values, go: go(expr.form) == 0,
    Load: _load,
    Not: _not,
    And: _join,
    Or: _join,
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
