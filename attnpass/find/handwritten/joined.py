"""A sum of two products of queries and keys is one product of longer heads, as in latent attention."""

from __future__ import annotations

from dataclasses import dataclass

from attnpass.find.handwritten.axes import Atom, Axes, leaves, size_of
from attnpass.find.handwritten.links import (
    Biased,
    Joined,
    Link,
    Permuted,
    RefusedError,
    Same,
    Scaled,
    Viewed,
    axes_behind,
)
from attnpass.find.handwritten.on_scores import on_scores
from attnpass.find.handwritten.products import Labelled, Product, is_product, label_axes, read_product
from attnpass.graph.ops import spelled
from attnpass.graph.symbolic import known_equal

REACH = 6  # ops between the second product and the sum


@dataclass(frozen=True, slots=True)
class Part:
    """A product that is added to the scores.

    Attributes:
        product: the product.
        axes: its dimensions, in the atoms of the scores.
        ratio: what it is multiplied by before it is added to the product of q and k.
    """

    product: Product
    axes: Labelled
    ratio: float


def as_joined(link: Biased) -> Joined | None:
    """The tensor that is added, if it is a product that nobody else reads; what others read too stays a bias."""
    node, links = link.bias, list[Link]()
    while len(node.users) == 1 and len(links) < REACH:
        if is_product(node):
            product = read_product(node)
            if isinstance(product, str) or product.added is not None:
                return None
            return Joined(link.node, link.x, product, tuple(links[::-1]), link.factor)
        try:
            found = on_scores(node, is_product)
        except RefusedError:
            return None
        moves = isinstance(found, (Same, Viewed, Permuted))
        if not moves and not (isinstance(found, Scaled) and isinstance(found.by, float)):
            return None
        links.append(found)
        node = found.x
    return None


def read_part(link: Joined, scores: Axes, scale: float) -> Part:
    """The product of ``link``, added to scores whose dimensions are ``scores`` and that are ``scale`` * q kT so far.

    Raises:
        RefusedError: its dimensions are not those of the scores.
    """
    labelled, factor = label_axes(link.product), link.factor * link.product.alpha
    axes = labelled.out
    for step in link.links:
        axes = axes_behind(axes, step)
        if isinstance(step, Scaled) and isinstance(step.by, float):
            factor *= step.by
    if scale == 0 or len(axes) > len(scores) or not all(map(_unified, scores[len(scores) - len(axes) :], axes)):
        raise RefusedError(link.node, f"`{spelled(link.node)}` adds a product of other dimensions")
    return Part(link.product, labelled, factor / scale)


def _unified(mine: tuple[Atom, ...], theirs: tuple[Atom, ...]) -> bool:
    """Make both the same atoms, if they are the same dimension; one of size 1 broadcasts, and is nobody's."""
    mine, theirs = (tuple(a for a in leaves(axis) if not known_equal(a.size, 1)) for axis in (mine, theirs))
    if not theirs:
        return True
    if not known_equal(size_of(mine), size_of(theirs)):
        return False
    if len(theirs) == 1:
        theirs[0].parts = list(mine)
    elif len(mine) == 1:
        mine[0].parts = list(theirs)
    elif len(mine) == len(theirs) and all(known_equal(a.size, b.size) for a, b in zip(mine, theirs, strict=True)):
        for one, other in zip(mine, theirs, strict=True):
            other.parts = [one]
    else:
        return False
    return True
