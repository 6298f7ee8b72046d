"""What a node between the product of q and k and the softmax does: scale, bias, mask, softcap, sinks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from attnpass.find.handwritten.links import ADD, CAT, DIVIDE, FILL, SCALE, SHIFT, TANH, Element, RefusedError, moved
from attnpass.graph.ops import argument, is_getitem, name_of, number, spelled, uniform
from attnpass.graph.symbolic import known_all_equal, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor


def element_of(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    """What ``node`` does to the scores that it reads.

    Args:
        node: any node.
        is_scores: tells the scores from the other operand.

    Raises:
        RefusedError: it is nothing that attention does to its scores.
    """
    name, x = name_of(node), node.args[0] if node.args else None
    readable = {
        "mul": _scaled,
        "div": _scaled,
        "add": _added,
        "sub": _added,
        "rsub": _added,
        "masked_fill": _filled,
        "where": _chosen,
        "cat": _appended,
    }
    if name in readable:
        return readable[name](node, is_scores)
    if not isinstance(x, Value) or tensor(x) is None or tensor(node) is None:
        raise RefusedError(node, f"`{spelled(node)}` makes the scores, and is no product of q and k")
    if name == "tanh":
        return Element(node, TANH, x)
    same = moved(node, x)
    if same is None:
        raise RefusedError(node, f"`{spelled(node)}` changes the scores in a way that attention does not")
    return same


def _two(node: Value) -> tuple[object, object]:
    one, other = argument(node, 0), argument(node, 1)
    return (other, one) if name_of(node) == "rsub" else (one, other)


def _scaled(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    x, other = _two(node)
    divide = name_of(node) == "div"
    if not divide and (not isinstance(x, Value) or tensor(x) is None or (number(x) is not None)):
        x, other = other, x
    factor = number(other)
    if not isinstance(x, Value) or tensor(x) is None or node.kwargs.get("rounding_mode") is not None:
        raise RefusedError(node, f"`{spelled(node)}` divides by the scores, or rounds them")
    if factor is not None and not (divide and factor == 0):
        return Element(node, SCALE, x, factor=1.0 / factor if divide else factor)
    if isinstance(other, torch.SymFloat):
        return Element(node, DIVIDE if divide else SCALE, x, symbol=other)  # dynamic=True reads floats of modules so
    if not divide and isinstance(other, Value) and not is_scores(x) and is_scores(other):
        x, other = other, x
    by = tensor(other)
    single = by is not None and all(known_equal(size, 1) for size in by.shape) and by.dtype.is_floating_point
    if not single or not isinstance(other, Value) or other.requires_grad:
        raise RefusedError(node, f"`{spelled(node)}` scales the scores by a tensor that is no constant factor")
    return Element(node, DIVIDE if divide else SCALE, x, operand=other)


def _added(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    x, other = _two(node)
    sign = number(argument(node, 2, 1))
    subtracts = name_of(node) in ("sub", "rsub")
    if sign is None or not isinstance(x, Value) or not isinstance(other, Value) or tensor(other) is None:
        raise RefusedError(node, f"`{spelled(node)}` adds something other than a tensor to the scores")
    if subtracts:
        highest = _own_maximum(x, other)
        if highest:
            return Element(node, SHIFT, x, members=highest)
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
    return Element(node, ADD, x, factor=sign, operand=other)


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


def _filled(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    x, mask, value = argument(node, 0), argument(node, 1), argument(node, 2)
    return _fill(node, x, mask, value, where_true=True)


def _chosen(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    """``where(keep, scores, number)``, or ``where(hide, number, scores)``."""
    condition, yes, no = argument(node, 0), argument(node, 1), argument(node, 2)
    if uniform(no) is not None:
        return _fill(node, yes, condition, no, where_true=False)
    return _fill(node, no, condition, yes, where_true=True)


def _fill(node: Value, x: object, mask: object, value: object, where_true: bool) -> Element:
    fill, hidden = uniform(value), tensor(mask)
    if fill is None or not isinstance(x, Value) or not isinstance(mask, Value) or hidden is None:
        raise RefusedError(node, f"`{spelled(node)}` writes something other than one number into the scores")
    if hidden.dtype != torch.bool:
        raise RefusedError(node, f"`{spelled(node)}` reads a mask that is not bool")
    if not _whole(x, node):
        raise RefusedError(node, f"`{spelled(node)}` makes the scores larger by broadcasting")
    return Element(node, FILL, x, factor=fill, operand=mask, where_true=where_true)


def _appended(node: Value, is_scores: Callable[[Value], bool]) -> Element:
    """``cat([scores, column], -1)``: attention sinks."""
    parts, dim = argument(node, 0), argument(node, 1, 0)
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not isinstance(dim, int):
        raise RefusedError(node, f"`{spelled(node)}` appends more than one column to the scores")
    one, other = parts
    if isinstance(one, Value) and is_scores(one):
        return Element(node, CAT, one, operand=other, dim=dim)
    return Element(node, CAT, other, operand=one, dim=dim, first=True)
