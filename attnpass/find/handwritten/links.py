"""One change of the scores or of the probabilities: what a node between the two products of attention does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnpass.graph.ops import argument, is_copy, name_of, number, permutation, spelled
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value, returned
from attnpass.graph.values import tensor

# The kinds of elements.
SAME, VIEW, PERMUTE = "same", "view", "permute"  # casts and copies; other dimensions; their order
SCALE, DIVIDE, TANH = "scale", "divide", "tanh"
ADD, FILL, SHIFT, CAT = "add", "fill", "shift", "cat"  # bias; mask; minus the own maximum; a column appended
DROPOUT, SLICE = "dropout", "slice"


class RefusedError(Exception):
    """Why a softmax is not rewritten: the node at fault, and one sentence about it."""

    def __init__(self, node: Value, reason: str) -> None:
        super().__init__(reason)
        self.node = node
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Element:
    """What one node does to the scores or probabilities.

    Attributes:
        node: the node.
        kind: one of the names above.
        x: the scores or probabilities that it changes.
        factor: SCALE: the factor; ADD: the factor on the operand; FILL: the number; DROPOUT: the probability.
        operand: ADD, FILL, CAT: the other tensor; SCALE and DIVIDE: a tensor of one element.
        where_true: FILL: is the number put where the operand is True?
        order: PERMUTE: as in `attnpass.graph.ops.permutation`.
        dim: CAT, SLICE: the dimension.
        first: CAT, SLICE: does the column stand in front of the scores?
        members: more nodes that belong to it.
        symbol: SCALE and DIVIDE: a factor that is a float of the model under dynamic shapes.
    """

    node: Value
    kind: str
    x: Value
    factor: float = 1.0
    operand: Value | None = None
    where_true: bool = True
    order: tuple[int, ...] = ()
    dim: int = -1
    first: bool = False
    members: tuple[Value, ...] = ()
    symbol: torch.SymFloat | None = None


def on_probabilities(node: Value, x: Value) -> Element:
    """What ``node`` does to the probabilities ``x``.

    Raises:
        RefusedError: it changes the weights.
    """
    name = name_of(node)
    if node.target is returned:
        raise RefusedError(x, "the attention probabilities are returned by the graph, so they have to be materialised")
    if node.args and node.args[0] is x and not any(a is x for a in node.args[1:]):
        if name == "native_dropout":
            p = dropout_probability(node)
            if p is None:
                raise RefusedError(node, "the probability of dropout is not a number in the graph")
            return Element(node, DROPOUT if p else SAME, x, factor=p)
        found = moved(node, x) or _sliced(node, x)
        if found is not None:
            return found
    raise RefusedError(
        node, f"`{spelled(node)}` changes the attention probabilities between the softmax and the product with V"
    )


def moved(node: Value, x: Value) -> Element | None:
    """A view, a copy or a cast between floating dtypes."""
    name, value, before = name_of(node), tensor(node), tensor(x)
    if value is None or before is None:
        return None
    order = permutation(node)
    if order is not None:
        return Element(node, PERMUTE, x, order=tuple(order))
    if is_copy(node):
        return Element(node, SAME, x)
    if name == "to" and value.dtype.is_floating_point and value.device == before.device:
        return Element(node, SAME, x)
    return Element(node, VIEW, x) if name == "view" else None


def dropout_probability(node: Value) -> float | None:
    """The probability in force; None if it is not written in the graph."""
    p, training = number(argument(node, 1)), argument(node, 2)
    return p if training is True or training is None else 0.0 if training is False else None


def _sliced(node: Value, x: Value) -> Element | None:
    """``x[..., :-1]`` or ``x[..., 1:]``: a dimension without one column."""
    value, before = tensor(node), tensor(x)
    if name_of(node) != "slice" or value is None or before is None:
        return None
    dim, start, step = node.args[1], node.args[2], node.args[4]
    if not isinstance(dim, int) or step != 1 or not known_equal(value.shape[dim] + 1, before.shape[dim]):
        return None
    first = start == 1
    dim = dim % value.ndim - value.ndim
    return Element(node, SLICE, x, dim=dim, first=first) if first or start in (None, 0) else None
