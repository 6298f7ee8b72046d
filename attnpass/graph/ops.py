"""Questions about one value of a Reading: which op made it, with which arguments, and is it a number?

A value's op is an overload of ``aten``, so a name here is PyTorch's own op and never somebody else's of the same name.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.graph.symbolic import as_float, known_all_equal, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import attribute, tensor, value_of
from attnpass.graph.values import spelled as spelled_node

aten = torch.ops.aten
NAMES = {"_softmax": "softmax", "_safe_softmax": "safe_softmax", "_to_copy": "to"}
MOST_COMPARED = 200  # values that make a mask
FOLLOWED = frozenset({"to", "view", "clone", "expand", "detach", "permute"})  # of a number they give the same number
VIEWS = FOLLOWED | {"repeat"}


def name_of(value: Value) -> str:
    """The op that makes a value, without its overload; "" if it is an input or an op that is not PyTorch's."""
    target = value.target
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target is aten.view.dtype:
        return ""
    name = str(target._opname)
    return NAMES.get(name, name)


def argument(value: Value, position: int, default: Any = None) -> Any:
    """An argument by its position in the schema; also of those that are given by keyword only."""
    if position < len(value.args):
        return value.args[position]
    if not isinstance(value.target, OpOverload):
        return default
    schema = value.target._schema.arguments
    if position < len(schema) and schema[position].name in value.kwargs:
        return value.kwargs[schema[position].name]
    return default


def source_of_view(value: Value) -> Value | None:
    """The first operand of an op, if that is a value."""
    return value.args[0] if value.args and isinstance(value.args[0], Value) else None


def spelled(value: Value) -> str:
    """The operation as the user wrote it, for messages."""
    return value.name if value.maker is None else spelled_node(value.maker)


def permutation(value: Value) -> list[int] | None:
    """For a value that reorders dimensions: which dimension of its input stands at each place; else None."""
    return list(value.args[1]) if value.target is aten.permute.default else None


def is_parameter(value: Value) -> bool:
    """Is this an input or an attribute of the program that the user's model declares as a parameter?"""
    maker = value.maker
    if not value.is_leaf or maker is None:
        return False
    held = value_of(maker)
    if maker.op == "get_attr":  # the fake value of an exported graph does not say it
        held = attribute(maker.graph.owning_module, str(maker.target))
    return isinstance(held, torch.nn.Parameter)


def is_weight(value: object) -> bool:
    """Is this a parameter, perhaps viewed or cast?"""
    while isinstance(value, Value):
        if is_parameter(value):
            return True
        if name_of(value) not in VIEWS:
            return False
        value = value.args[0] if value.args else None
    return False


def is_copy(value: Value) -> bool:
    """Has it the very elements of its first operand, and its shape?"""
    if value.target is aten.expand.default:
        before, after = tensor(value.args[0]), tensor(value)
        return before is not None and after is not None and known_all_equal(tuple(before.shape), tuple(after.shape))
    return value.target is aten.clone.default


def is_getitem(value: Value, index: int) -> bool:
    """Is this result number ``index`` of an op with several?"""
    return value.target is operator.getitem and bool(value.args[1] == index)


def alike(one: Any, other: Any) -> bool:
    """Are two values the same: made by the same ops from the same values? What is drawn at random is only itself."""
    waiting, seen = [(one, other)], set[tuple[Any, Any]]()
    while waiting:
        a, b = waiting.pop()
        if a is b or (a, b) in seen:
            continue
        seen.add((a, b))
        if a.target is not b.target or not isinstance(a.target, OpOverload) or not name_of(a):
            return False
        if torch.Tag.nondeterministic_seeded in a.target.tags or len(seen) > MOST_COMPARED:
            return False
        pairs = _paired((a.args, a.kwargs), (b.args, b.kwargs))
        if pairs is None:
            return False
        waiting += pairs
    return True


def same_arguments(one: Any, other: Any) -> bool:
    """Are two lists of arguments the same, with the very same values in them?"""
    pairs = _paired(one, other)
    return pairs is not None and all(a is b for a, b in pairs)


def _paired(one: Any, other: Any) -> list[tuple[Value, Value]] | None:
    """The values in two lists of arguments that are the same otherwise; None if these are not."""
    if isinstance(one, Value) and isinstance(other, Value):
        return [(one, other)]
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = sorted(one.items()), sorted(other.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        parts = [_paired(a, b) for a, b in zip(one, other, strict=True)]
        return None if None in parts else [pair for part in parts if part for pair in part]
    if isinstance(one, torch.SymInt) or isinstance(other, torch.SymInt):
        return [] if known_equal(one, other) else None
    return [] if type(one) is type(other) and one == other else None


def number(value: Any) -> float | None:
    """A number that is written in the program, perhaps as a tensor of one element; None if it is not one."""
    if isinstance(value, bool) or value is None:
        return None
    if not isinstance(value, Value):
        return as_float(value)
    made = tensor(value)
    if made is None or not all(known_equal(size, 1) for size in made.shape):
        return None
    return uniform(value)


def uniform(value: Any) -> float | None:
    """The number that stands everywhere in a tensor, if the program says so; or a number itself."""
    if not isinstance(value, Value):
        return number(value)
    made = tensor(value)
    if made is None:
        return None
    if value.is_leaf:
        return _constant(value.constant)
    name = name_of(value)
    if name == "full":
        return rounded(number(value.args[1]), made)
    source = source_of_view(value)
    inner = uniform(source) if source is not None and name in FOLLOWED | {"neg", "sqrt"} else None
    if inner is not None and name == "neg":
        inner = -inner
    elif inner is not None and name == "sqrt":
        inner = math.sqrt(inner) if inner >= 0 else None
    return rounded(inner, made)


def _constant(held: Any) -> float | None:
    """A tensor of one element that the program keeps beside the graph (``torch.tensor(-1e9)``)."""
    if isinstance(held, FakeTensor):
        held = held.constant
    if not isinstance(held, Tensor) or held.requires_grad or held.device.type != "cpu" or held.numel() != 1:
        return None
    with unset_fake_temporarily():
        return None if held.dtype == torch.bool else float(held.item())


def rounded(value: float | None, made: Tensor) -> float | None:
    """A number as it is in the dtype of ``made``, infinite beyond its range; None if it is no number there."""
    if value is None or made.dtype == torch.bool or made.dtype.is_complex:
        return None
    if not made.dtype.is_floating_point:
        return value if float(value).is_integer() and abs(value) < 1 << 31 else None
    with unset_fake_temporarily():
        return float(torch.tensor(value, dtype=torch.float64).to(made.dtype).item())
