"""The links of a chain: what each node between the two products of attention does to the scores or probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from attnpass.graph.ops import argument, is_copy, is_getitem, name_of, number, permutation, spelled, uniform
from attnpass.graph.symbolic import known_all_equal, known_equal
from attnpass.graph.value import Value, returned
from attnpass.graph.values import tensor

IsScores = Callable[[Value], bool]  # tells the scores from the other operand


class RefusedError(Exception):
    """Why a softmax is not rewritten: the node at fault, and one sentence about it."""

    def __init__(self, node: Value, reason: str) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Link:
    """``node`` changes ``x``, the scores or the probabilities."""

    node: Value
    x: Value

    @property
    def nodes(self) -> tuple[Value, ...]:
        """The values that are dead once nobody reads the chain."""
        return (self.node,)


@dataclass(frozen=True, slots=True)
class Same(Link):
    """A copy, or a cast between floating dtypes."""


@dataclass(frozen=True, slots=True)
class Viewed(Link):
    """Other dimensions."""


@dataclass(frozen=True, slots=True)
class Permuted(Link):
    """Another order of the dimensions, as in `attnpass.graph.ops.permutation`."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scaled(Link):
    """Times ``by``, or divided by it: a number, a tensor of one element, or a float of the model that is symbolic."""

    by: float | Value | torch.SymFloat
    divides: bool = False


@dataclass(frozen=True, slots=True)
class Capped(Link):
    """``tanh`` of the scores."""


@dataclass(frozen=True, slots=True)
class Biased(Link):
    """Plus ``factor * bias``."""

    bias: Value
    factor: float


@dataclass(frozen=True, slots=True)
class Filled(Link):
    """``fill`` stands where ``mask`` is ``where_true``."""

    mask: Value
    fill: float
    where_true: bool


@dataclass(frozen=True, slots=True)
class Shifted(Link):
    """Minus their own maximum, which ``maximum`` makes."""

    maximum: tuple[Value, ...]

    @property
    def nodes(self) -> tuple[Value, ...]:
        return (self.node, *self.maximum)


@dataclass(frozen=True, slots=True)
class Appended(Link):
    """A column more along ``dim``; does it stand in ``first`` place?"""

    column: Value
    dim: int
    first: bool = False


@dataclass(frozen=True, slots=True)
class Cut(Link):
    """The first column along ``dim`` less, or the last."""

    dim: int
    first: bool


@dataclass(frozen=True, slots=True)
class Dropped(Link):
    """Dropout."""

    p: float


def on_probabilities(node: Value, x: Value) -> Link:
    """What ``node`` does to the probabilities ``x``.

    Raises:
        RefusedError: it changes the weights.
    """
    if node.target is returned:
        raise RefusedError(x, "the attention probabilities are returned by the graph, so they have to be materialised")
    if node.args and node.args[0] is x and not any(a is x for a in node.args[1:]):
        if name_of(node) == "native_dropout":
            p = _dropout_probability(node)
            if p is None:
                raise RefusedError(node, "the probability of dropout is not a number in the graph")
            return Dropped(node, x, p) if p else Same(node, x)
        found = _moved(node, x) or _cut(node, x)
        if found is not None:
            return found
    raise RefusedError(
        node, f"`{spelled(node)}` changes the attention probabilities between the softmax and the product with V"
    )


def on_scores(node: Value, is_scores: IsScores) -> Link:
    """What ``node`` does to the scores that it reads.

    Raises:
        RefusedError: it is nothing that attention does to its scores.
    """
    match name_of(node):
        case "mul" | "div":
            return _scaled(node, is_scores)
        case "add" | "sub" | "rsub":
            return _added(node, is_scores)
        case "masked_fill":
            return _filled(node, argument(node, 0), argument(node, 1), argument(node, 2), where_true=True)
        case "where":
            return _chosen(node)
        case "cat":
            return _appended(node, is_scores)
    x = node.args[0] if node.args else None
    if not isinstance(x, Value) or tensor(x) is None or tensor(node) is None:
        raise RefusedError(node, f"`{spelled(node)}` makes the scores, and is no product of q and k")
    if name_of(node) == "tanh":
        return Capped(node, x)
    moved = _moved(node, x)
    if moved is None:
        raise RefusedError(node, f"`{spelled(node)}` changes the scores in a way that attention does not")
    return moved


def _moved(node: Value, x: Value) -> Link | None:
    """A view, a copy or a cast between floating dtypes."""
    name, value, before = name_of(node), tensor(node), tensor(x)
    if value is None or before is None:
        return None
    order = permutation(node)
    if order is not None:
        return Permuted(node, x, tuple(order))
    if is_copy(node) or (name == "to" and value.dtype.is_floating_point and value.device == before.device):
        return Same(node, x)
    return Viewed(node, x) if name == "view" else None


def _dropout_probability(node: Value) -> float | None:
    """The probability in force; None if it is not written in the graph."""
    p, training = number(argument(node, 1)), argument(node, 2)
    return p if training is True or training is None else 0.0 if training is False else None


def _cut(node: Value, x: Value) -> Cut | None:
    """``x[..., :-1]`` or ``x[..., 1:]``: a dimension without one column."""
    value, before = tensor(node), tensor(x)
    if name_of(node) != "slice" or value is None or before is None:
        return None
    dim, start, step = node.args[1], node.args[2], node.args[4]
    if not isinstance(dim, int) or step != 1 or not known_equal(value.shape[dim] + 1, before.shape[dim]):
        return None
    first = start == 1
    return Cut(node, x, dim % value.ndim - value.ndim, first) if first or start in (None, 0) else None


def _two(node: Value) -> tuple[Any, Any]:
    """The operands, in the order of a subtraction."""
    one, other = argument(node, 0), argument(node, 1)
    return (other, one) if name_of(node) == "rsub" else (one, other)


def _scaled(node: Value, is_scores: IsScores) -> Link:
    x, other = _two(node)
    divide = name_of(node) == "div"
    if not divide and (not isinstance(x, Value) or tensor(x) is None or (number(x) is not None)):
        x, other = other, x
    factor = number(other)
    if not isinstance(x, Value) or tensor(x) is None or node.kwargs.get("rounding_mode") is not None:
        raise RefusedError(node, f"`{spelled(node)}` divides by the scores, or rounds them")
    if factor is not None and not (divide and factor == 0):
        return Scaled(node, x, 1.0 / factor if divide else factor)
    if isinstance(other, torch.SymFloat):
        return Scaled(node, x, other, divide)  # dynamic=True reads floats of modules so
    if not divide and isinstance(other, Value) and not is_scores(x) and is_scores(other):
        x, other = other, x
    by = tensor(other)
    single = by is not None and all(known_equal(size, 1) for size in by.shape) and by.dtype.is_floating_point
    if not single or not isinstance(other, Value) or other.requires_grad:
        raise RefusedError(node, f"`{spelled(node)}` scales the scores by a tensor that is no constant factor")
    return Scaled(node, x, other, divide)


def _added(node: Value, is_scores: IsScores) -> Link:
    x, other = _two(node)
    sign = number(argument(node, 2, 1))
    subtracts = name_of(node) in ("sub", "rsub")
    if sign is None or not isinstance(x, Value) or not isinstance(other, Value) or tensor(other) is None:
        raise RefusedError(node, f"`{spelled(node)}` adds something other than a tensor to the scores")
    if subtracts:
        highest = _own_maximum(x, other)
        if highest:
            return Shifted(node, x, highest)
        sign = -sign
    elif not _whole(x, node) or (not is_scores(x) and _whole(other, node) and is_scores(other)):
        x, other = other, x
        if sign != 1:
            raise RefusedError(node, f"`{spelled(node)}` scales the scores with alpha")
    if not _whole(x, node):
        raise RefusedError(node, f"`{spelled(node)}` makes the scores larger by broadcasting")
    added = tensor(other)
    if added is None or not added.dtype.is_floating_point:
        kind = "no tensor" if added is None else str(added.dtype).removeprefix("torch.")
        raise RefusedError(
            node, f"`{spelled(node)}` adds a mask of {kind} to the scores, whose meaning is not -inf or 0"
        )
    return Biased(node, x, other, sign)


def _whole(x: object, node: Value) -> bool:
    """Has ``x`` the shape of the result?"""
    value, result = tensor(x), tensor(node)
    return value is not None and result is not None and known_all_equal(tuple(value.shape), tuple(result.shape))


def _own_maximum(x: Value, other: Value) -> tuple[Value, ...]:
    """The nodes that make ``other`` the maximum of ``x`` over its last dimension: softmax does not see that."""
    nodes, node = [other], other
    while name_of(node) == "detach" or is_getitem(node, 0):
        node = node.args[0]
        nodes.append(node)
    value = tensor(x)
    if name_of(node) not in ("max", "amax") or node.args[0] is not x or value is None:
        return ()
    dim, keep = argument(node, 1), argument(node, 2, False)
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    return tuple(nodes) if keep is True and isinstance(dim, int) and dim % value.ndim == value.ndim - 1 else ()


def _chosen(node: Value) -> Link:
    """``where(keep, scores, number)``, or ``where(hide, number, scores)``."""
    condition, yes, no = argument(node, 0), argument(node, 1), argument(node, 2)
    if uniform(no) is not None:
        return _filled(node, yes, condition, no, where_true=False)
    return _filled(node, no, condition, yes, where_true=True)


def _filled(node: Value, x: object, mask: object, value: object, where_true: bool) -> Link:
    fill, hidden = uniform(value), tensor(mask)
    if fill is None or not isinstance(x, Value) or not isinstance(mask, Value) or hidden is None:
        raise RefusedError(node, f"`{spelled(node)}` writes something other than one number into the scores")
    if hidden.dtype != torch.bool:
        raise RefusedError(node, f"`{spelled(node)}` reads a mask that is not bool")
    if not _whole(x, node):
        raise RefusedError(node, f"`{spelled(node)}` makes the scores larger by broadcasting")
    return Filled(node, x, mask, fill, where_true)


def _appended(node: Value, is_scores: IsScores) -> Link:
    """``cat([scores, column], -1)``: attention sinks."""
    parts, dim = argument(node, 0), argument(node, 1, 0)
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not isinstance(dim, int):
        raise RefusedError(node, f"`{spelled(node)}` appends more than one column to the scores")
    one, other = parts
    if isinstance(one, Value) and is_scores(one):
        return Appended(node, one, other, dim)
    return Appended(node, other, one, dim, first=True)
