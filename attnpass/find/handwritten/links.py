"""The links of a chain: what each node between the two products of attention does to the scores or probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from attnpass.find.handwritten.axes import Axes, LostTrackError, reshaped
from attnpass.find.handwritten.products import Product
from attnpass.graph.ops import is_copy, name_of, permutation, spelled
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

MATERIALISED = (
    "so they have to be materialised; "
    "where the model has a switch (output_attentions=False, need_weights=False) they need not be"
)


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
class Restored(Same):
    """A part of ``x`` written to where it was read; ``read`` are the values in between."""

    read: tuple[Value, ...] = ()

    @property
    def nodes(self) -> tuple[Value, ...]:
        return (self.node, *self.read)


@dataclass(frozen=True, slots=True)
class Viewed(Link):
    """Other dimensions."""


@dataclass(frozen=True, slots=True)
class Permuted(Link):
    """Another order of the dimensions, as in `attnpass.graph.ops.permutation`."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scaled(Link):
    """Times ``by``, or divided by it: a number, a tensor, or a float of the model that is symbolic."""

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
class Joined(Link):
    """Plus ``factor`` times another product of queries and keys, behind ``links``: as one of longer heads."""

    product: Product
    links: tuple[Link, ...]
    factor: float

    @property
    def nodes(self) -> tuple[Value, ...]:
        return (self.node, *self.product.nodes, *(link.node for link in self.links))


@dataclass(frozen=True, slots=True)
class Filled(Link):
    """``fill`` stands where ``mask`` is ``where_true``."""

    mask: Value
    fill: float
    where_true: bool


@dataclass(frozen=True, slots=True)
class Raised(Link):
    """At least ``low``: so low that it stands in the place of -inf alone."""

    low: float


@dataclass(frozen=True, slots=True)
class Partly(Link):
    """A part of the scores, ``x[where]``, changed as ``inner`` says; ``read`` are the values in between."""

    inner: Link
    where: tuple[Any, ...]
    read: tuple[Value, ...]

    @property
    def nodes(self) -> tuple[Value, ...]:
        return (self.node, *self.inner.nodes, *self.read)


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
class Zeroed(Link):
    """0 where ``mask`` is ``where_true``, by a product or in the place of anything; no mask: in the place of NaN."""

    mask: Value | None = None
    where_true: bool = True
    multiplies: bool = False
    test: Value | None = None

    @property
    def nodes(self) -> tuple[Value, ...]:
        return (self.node,) if self.test is None else (self.node, self.test)


@dataclass(frozen=True, slots=True)
class Dropped(Link):
    """Dropout."""

    p: float


def moved(node: Value, x: Value) -> Link | None:
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


def followed(axes: Axes, node: Value) -> Axes:
    """The dimensions behind a view."""
    value = tensor(node)
    assert value is not None
    try:
        return reshaped(axes, tuple(value.shape))
    except LostTrackError as error:
        raise RefusedError(node, f"`{spelled(node)}` mixes the dimensions of the scores: {error}") from None


def axes_behind(axes: Axes, link: Link) -> Axes:
    """The dimensions behind a step, which only views and permutations change."""
    match link:
        case Viewed(node):
            return followed(axes, node)
        case Permuted(_, _, order):
            return tuple(axes[i] for i in order)
    return axes
