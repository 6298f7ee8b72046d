"""What is done to the probabilities between the softmax and the product with V."""

from __future__ import annotations

import torch

from attnpass.find.handwritten.links import MATERIALISED, Cut, Dropped, Link, RefusedError, Same, Zeroed, moved
from attnpass.graph.ops import argument, name_of, number, spelled, uniform
from attnpass.graph.symbolic import known_all_equal, known_equal
from attnpass.graph.value import Value, returned
from attnpass.graph.values import tensor


def on_weights(node: Value, x: Value) -> Link:
    """What ``node`` does to the probabilities ``x``.

    Raises:
        RefusedError: it changes the weights.
    """
    if node.target is returned:
        raise RefusedError(x, f"the attention probabilities are returned by the graph, {MATERIALISED}")
    if node.args and node.args[0] is x and not any(a is x for a in node.args[1:]):
        if name_of(node) == "native_dropout":
            p = _dropout_probability(node)
            if p is None:
                raise RefusedError(node, "the probability of dropout is not a number in the graph")
            return Dropped(node, x, p) if p else Same(node, x)
        found = moved(node, x) or _cut(node, x)
        if found is not None:
            return found
    zeroed = _zeroed(node, x)
    if zeroed is not None:
        return zeroed
    raise RefusedError(
        node, f"`{spelled(node)}` changes the attention probabilities between the softmax and the product with V"
    )


def is_nan_test(node: Value) -> bool:
    """Does it tell where a tensor is NaN?"""
    return name_of(node) == "isnan" or (name_of(node) == "ne" and argument(node, 0) is argument(node, 1))


def _zeroed(node: Value, x: Value) -> Zeroed | None:
    """Weights of hidden keys, or of rows without keys, made 0."""
    one, other = argument(node, 0), argument(node, 1)
    match name_of(node):
        case "nan_to_num" if one is x and other in (None, 0):
            return Zeroed(node, x)
        case "masked_fill" if one is x and uniform(argument(node, 2)) == 0:
            return _where(node, x, other, True)
        case "where" if argument(node, 2) is x and uniform(other) == 0:
            return _where(node, x, one, True)
        case "where" if other is x and uniform(argument(node, 2)) == 0:
            return _where(node, x, one, False)
        case "mul":
            keep = one if other is x else other
            while isinstance(keep, Value) and name_of(keep) == "to":
                keep = keep.args[0]
            return _where(node, x, keep, False, multiplies=True) if keep is not x else None
    return None


def _where(node: Value, x: Value, mask: object, where_true: bool, multiplies: bool = False) -> Zeroed | None:
    value, made = tensor(mask), tensor(x)
    if not isinstance(mask, Value) or value is None or made is None or value.dtype != torch.bool:
        return None
    if not known_all_equal(tuple(tensor(node).shape), tuple(made.shape)):  # type: ignore[union-attr]
        return None
    if is_nan_test(mask):
        return Zeroed(node, x, test=mask) if where_true and argument(mask, 0) is x and not multiplies else None
    return Zeroed(node, x, mask, where_true, multiplies)


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
