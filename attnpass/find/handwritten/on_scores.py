"""What is done to the scores between the product of q and k and the softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attnpass.find.handwritten.links import (
    Appended,
    Biased,
    Capped,
    Filled,
    Link,
    Raised,
    RefusedError,
    Scaled,
    Shifted,
    moved,
)
from attnpass.find.handwritten.partly import read_partly
from attnpass.graph.ops import argument, is_getitem, name_of, number, rounded, spelled, uniform
from attnpass.graph.symbolic import known_all_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

IsScores = Callable[[Value], bool]  # tells the scores from the other operand


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
        case "maximum" | "clamp" | "clamp_min":
            return _raised(node)
        case "slice_scatter":
            return read_partly(node, lambda part: on_scores(part, is_scores))
    x = node.args[0] if node.args else None
    if not isinstance(x, Value) or tensor(x) is None or tensor(node) is None:
        raise RefusedError(node, f"`{spelled(node)}` makes the scores, and is no product of q and k")
    if name_of(node) == "tanh":
        return Capped(node, x)
    found = moved(node, x)
    if found is None:
        raise RefusedError(node, f"`{spelled(node)}` changes the scores in a way that attention does not")
    return found


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
    turned = divide and isinstance(other, Value) and is_scores(other)
    if turned or not isinstance(x, Value) or tensor(x) is None or node.kwargs.get("rounding_mode") is not None:
        raise RefusedError(node, f"`{spelled(node)}` divides by the scores, or rounds them")
    if factor is not None and not (divide and factor == 0):
        return Scaled(node, x, 1.0 / factor if divide else factor)
    if isinstance(other, torch.SymFloat):
        return Scaled(node, x, other, divide)  # dynamic=True reads floats of modules so
    if not divide and isinstance(other, Value) and not is_scores(x) and is_scores(other):
        x, other = other, x
    by = tensor(other)
    if by is None or not by.dtype.is_floating_point or not isinstance(other, Value):
        kind = "no tensor" if by is None else str(by.dtype).removeprefix("torch.")
        raise RefusedError(node, f"`{spelled(node)}` scales the scores by {kind}, which is no factor of q or k")
    if not _whole(x, node):
        raise RefusedError(node, f"`{spelled(node)}` makes the scores larger by broadcasting")
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
    if added is None or not (added.dtype.is_floating_point or added.dtype == torch.bool):
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


def _raised(node: Value) -> Link:
    """``clamp(min=...)``, or the maximum with one number."""
    x, low = argument(node, 0), argument(node, 1)
    if name_of(node) == "maximum" and uniform(low) is None:
        x, low = low, x
    made, lowest = tensor(node), uniform(low)
    lowest = None if made is None else rounded(lowest, made)
    if lowest is None or argument(node, 2) is not None or not isinstance(x, Value) or not _whole(x, node):
        raise RefusedError(node, f"`{spelled(node)}` changes the scores in a way that attention does not")
    return Raised(node, x, lowest)


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
        raise RefusedError(node, f"`{spelled(node)}` puts scores together of several parts")
    one, other = parts
    if isinstance(one, Value) and is_scores(one):
        return Appended(node, one, other, dim)
    return Appended(node, other, one, dim, first=True)
