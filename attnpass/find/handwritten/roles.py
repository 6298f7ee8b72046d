"""Which dimensions of a chain are batch, heads, queries, keys and head dim."""

from __future__ import annotations

from dataclasses import dataclass, field

from attnpass.find.handwritten.axes import Atom, Axes, fresh, leaves
from attnpass.find.handwritten.chain import Chain, softmax_dim
from attnpass.find.handwritten.joined import Part
from attnpass.find.handwritten.links import RefusedError, axes_behind, followed
from attnpass.find.handwritten.products import Labelled, Product
from attnpass.find.handwritten.scores import Scores
from attnpass.graph.ops import permutation, spelled
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

Group = tuple[Atom, ...]
Side = tuple[Value, Axes]


@dataclass(frozen=True, slots=True)
class PartRoles:
    """A product beside q kᵀ: its queries and keys with their dimensions, D', and what it is multiplied by."""

    q: Side
    k: Side
    D: Group
    ratio: float


@dataclass(slots=True)
class Roles:
    """The chain with every dimension named.

    Attributes:
        q, k, v: the operands and their dimensions.
        out: the dimensions of the product with V.
        shared: dimensions that k or v have too, outermost first.
        own: dimensions that only q has, beside the queries.
        Q, K, D, Dv: the others.
        parts: of each further product, its queries and keys, and the dimension that it sums over.
    """

    q: Side
    k: Side
    v: Side
    out: Axes
    shared: list[Atom]
    own: list[Atom]
    Q: Group
    K: Group
    D: Group
    Dv: Group
    parts: list[PartRoles] = field(default_factory=list)

    def update(self) -> None:
        """Take over what was split meanwhile."""
        self.shared, self.own = list(leaves(self.shared)), list(leaves(self.own))
        self.Q, self.K, self.D, self.Dv = (leaves(group) for group in (self.Q, self.K, self.D, self.Dv))

    @property
    def B(self) -> Group:
        return tuple(self.shared[:-1]) if len(self.shared) > 1 or not self.own else tuple(self.shared)

    @property
    def Hkv(self) -> Group:
        return tuple(self.shared[-1:]) if len(self.shared) > 1 or not self.own else ()

    @property
    def H(self) -> Group:
        return (*self.Hkv, *self.own)


def read_roles(chain: Chain, scores: Scores, first: Labelled) -> Roles:
    """Name every dimension; ``scores`` has been replayed up to the softmax.

    Raises:
        RefusedError: the products are not those of attention.
    """
    K = leaves(scores.axes[softmax_dim(chain)])
    for node, axis in scores.shifts:
        if leaves(axis) != K:
            raise RefusedError(node, f"`{spelled(node)}` takes away a maximum that is not over the keys")
    weights = _weights(chain, scores.axes)
    sides = _queries_and_keys(chain.first, first, K)
    if sides is None:
        raise RefusedError(chain.softmax, "the softmax does not run over the keys of the product of q and k")
    q, k = sides
    v, out, Dv = _second(chain, weights, K)
    only_q = _atoms(q[1]) - _atoms(k[1])
    Q = next((leaves(axis) for axis in reversed(first.out) if set(leaves(axis)) <= only_q), None if only_q else ())
    if Q is None:  # it is part of a dimension that keys have too
        raise RefusedError(chain.first.node, "the product has no dimension of queries")
    parts = [_part(part, Q, K) for part in scores.parts]
    theirs = _atoms(k[1]).union(_atoms(v[1]), *(_atoms(part.k[1]) for part in parts))
    batch = [a for axis in fresh(scores.axes) for a in axis if a not in (*Q, *K)]
    if set(Q) & _atoms(v[1]):
        reason = f"`{spelled(chain.first.node)}` is no product of queries and keys: V differs along its rows"
        raise RefusedError(chain.first.node, reason)
    shared, own = [a for a in batch if a in theirs], [a for a in batch if a not in theirs]
    return Roles(q, k, v, out, shared, own, Q, K, leaves(first.D[0]), Dv, parts)


def _queries_and_keys(product: Product, axes: Labelled, K: Group) -> tuple[Side, Side] | None:
    """The operand that has no keys, and the one that has them; None if none has, or both."""
    _check_first(product)
    left, right = (product.left, axes.left), (product.right, axes.right)
    ways = [(q, k) for q, k in ((left, right), (right, left)) if set(K) <= _atoms(k[1])]
    return ways[0] if K and len(ways) == 1 else None


def _part(part: Part, Q: Group, K: Group) -> PartRoles:
    """A further product with its dimensions named."""
    sides = _queries_and_keys(part.product, part.axes, K)
    if sides is None or set(K) & _atoms(sides[0][1]) or set(Q) & _atoms(sides[1][1]):
        raise RefusedError(part.product.node, f"`{spelled(part.product.node)}` is no product of queries and keys")
    return PartRoles(*sides, leaves(part.axes.D[0]), part.ratio)


def _atoms(axes: Axes) -> set[Atom]:
    return {atom for axis in fresh(axes) for atom in axis}


def _weights(chain: Chain, axes: Axes) -> Axes:
    """The dimensions of the probabilities where they meet V."""
    for link in chain.probabilities:
        axes = axes_behind(axes, link)
    return axes


def _check_first(product: Product) -> None:
    left, right, out = (set(labels) - {None} for labels in product.labels)
    lost = (left ^ right) - out
    contracted = (left & right) - out
    if lost or len(contracted) != 1 or not out <= left | right:
        raise RefusedError(
            product.node, f"`{spelled(product.node)}` is no product of queries and keys over one dimension"
        )


def _second(chain: Chain, weights: Axes, K: Group) -> tuple[tuple[Value, Axes], Axes, Group]:
    """V with its dimensions, the dimensions of the result, and those that only V has."""
    product = chain.last
    sides = (0, 1) if product.left is chain.weights else (1, 0)
    nodes = (product.left, product.right)
    ours, theirs = product.labels[sides[0]], product.labels[sides[1]]
    v = nodes[sides[1]]
    value = tensor(v)
    assert value is not None
    known: dict[str, Group] = {}
    for label, axis in zip(ours, weights, strict=True):
        if label is None and not axis:
            continue  # broadcast along V's own dimension
        if label is None:
            raise RefusedError(product.node, "V has a batch dimension that the scores have not")
        known[label] = leaves(axis)
    contracted = [label for label in ours if label is not None and label not in product.labels[2]]
    if len(contracted) != 1 or contracted[0] not in theirs or known[contracted[0]] != K:
        raise RefusedError(
            product.node, f"`{spelled(product.node)}` does not sum over the keys that the softmax runs over"
        )
    fresh_labels = [label for label in theirs if label is not None and label not in known]
    if len(fresh_labels) != 1 or fresh_labels[0] not in product.labels[2]:
        raise RefusedError(product.node, f"`{spelled(product.node)}` is no product of probabilities and values")
    Dv = (Atom(value.shape[theirs.index(fresh_labels[0])]),)
    known[fresh_labels[0]] = Dv
    axes = tuple(() if label is None else known[label] for label in theirs)
    return (v, axes), tuple(known[label or ""] for label in product.labels[2]), Dv


def check_total(chain: Chain, axes: Axes, roles: Roles) -> None:
    """Refuse the chain if what the product with V is divided by is not, row by row, the sum of the exponentials."""
    total = chain.normalised.total
    if total is None:
        return
    value, weights, dim = tensor(total), tensor(chain.softmax), softmax_dim(chain)
    assert value is not None and weights is not None
    axes = (*axes[:dim], *([()] if value.ndim == weights.ndim else []), *axes[dim + 1 :])
    for node in chain.divided:
        order = permutation(node)
        axes = followed(axes, node) if order is None else tuple(axes[i] for i in order)
    out = roles.out[len(roles.out) - len(axes) :] if len(axes) <= len(roles.out) else ()
    if [_long(axis) for axis in axes] != [
        _long(axis) if _long(mine) else () for axis, mine in zip(out, axes, strict=False)
    ]:
        raise RefusedError(chain.out, f"`{spelled(chain.out)}` divides by the sums of other rows")


def _long(axis: Group) -> Group:
    return tuple(atom for atom in leaves(axis) if not known_equal(atom.size, 1))
