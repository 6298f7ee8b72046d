"""Which dimensions of a chain are batch, heads, queries, keys and head dim."""

from __future__ import annotations

from dataclasses import dataclass

from attnpass.find.handwritten.axes import Atom, Axes, fresh, leaves
from attnpass.find.handwritten.chain import Chain, softmax_dim
from attnpass.find.handwritten.links import Permuted, RefusedError, Viewed
from attnpass.find.handwritten.products import Product
from attnpass.find.handwritten.scores import Scores, followed
from attnpass.graph.ops import spelled
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

Group = tuple[Atom, ...]


@dataclass(slots=True)
class Roles:
    """The chain with every dimension named.

    Attributes:
        q, k, v: the operands and their dimensions.
        out: the dimensions of the product with V.
        shared: dimensions that k or v have too, outermost first.
        own: dimensions that only q has, beside the queries.
        Q, K, D, Dv: the others.
    """

    q: tuple[Value, Axes]
    k: tuple[Value, Axes]
    v: tuple[Value, Axes]
    out: Axes
    shared: list[Atom]
    own: list[Atom]
    Q: Group
    K: Group
    D: Group
    Dv: Group

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


def label_axes(product: Product) -> tuple[Axes, Axes, dict[str, Group]]:
    """Atoms for the letters of a product: the dimensions of left and right, and each letter's atom."""
    atoms: dict[str, Group] = {}
    sides = []
    for node, labels in zip((product.left, product.right), product.labels[:2], strict=True):
        value = tensor(node)
        assert value is not None
        axes = []
        for label, size in zip(labels, value.shape, strict=True):
            if label is not None and label not in atoms:
                atoms[label] = (Atom(size),)
            axes.append(() if label is None else atoms[label])
        sides.append(tuple(axes))
    return sides[0], sides[1], atoms


def read_roles(chain: Chain, scores: Scores, left: Axes, right: Axes, atoms: dict[str, Group]) -> Roles:
    """Name every dimension; ``scores`` has been replayed up to the softmax.

    Raises:
        RefusedError: the products are not those of attention.
    """
    K = leaves(scores.axes[softmax_dim(chain)])
    for node, axis in scores.shifts:
        if leaves(axis) != K:
            raise RefusedError(node, f"`{spelled(node)}` takes away a maximum that is not over the keys")
    weights = _weights(chain, scores.axes)
    _check_first(chain.first)
    sides = {0: _atoms(left), 1: _atoms(right)}
    key_side = [side for side, there in sides.items() if set(K) <= there]
    if not K or len(key_side) != 1:
        raise RefusedError(chain.softmax, "the softmax does not run over the keys of the product of q and k")
    side = key_side[0]
    q, k = (chain.first.left, left), (chain.first.right, right)
    q, k = (k, q) if side == 0 else (q, k)
    v, out, Dv = _second(chain, weights, K)
    D = _contracted(chain.first, atoms)
    only_q = [a for label in chain.first.labels[2] for a in leaves(atoms[label or ""]) if a not in _atoms(k[1])]
    last = next(
        (label for label in reversed(chain.first.labels[2]) if set(leaves(atoms[label or ""])) <= set(only_q)), None
    )
    if last is None:
        raise RefusedError(chain.first.node, "the product has no dimension of queries")
    Q = leaves(atoms[last])
    theirs = _atoms(k[1]) | _atoms(v[1])
    batch = [a for axis in fresh(scores.axes) for a in axis if a not in (*Q, *K)]
    if set(Q) & _atoms(v[1]):
        reason = f"`{spelled(chain.first.node)}` is no product of queries and keys: V differs along its rows"
        raise RefusedError(chain.first.node, reason)
    shared, own = [a for a in batch if a in theirs], [a for a in batch if a not in theirs]
    return Roles(q, k, v, out, shared, own, Q, K, D, Dv)


def _atoms(axes: Axes) -> set[Atom]:
    return {atom for axis in fresh(axes) for atom in axis}


def _weights(chain: Chain, axes: Axes) -> Axes:
    """The dimensions of the probabilities where they meet V."""
    for link in chain.probabilities:
        match link:
            case Viewed(node):
                axes = followed(axes, node)
            case Permuted(_, _, order):
                axes = tuple(axes[i] for i in order)
    return axes


def _check_first(product: Product) -> None:
    left, right, out = (set(labels) - {None} for labels in product.labels)
    lost = (left ^ right) - out
    contracted = (left & right) - out
    if lost or len(contracted) != 1 or not out <= left | right:
        raise RefusedError(
            product.node, f"`{spelled(product.node)}` is no product of queries and keys over one dimension"
        )


def _contracted(product: Product, atoms: dict[str, Group]) -> Group:
    left, right, out = (set(labels) - {None} for labels in product.labels)
    (label,) = (left & right) - out
    return leaves(atoms[label or ""])


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
        if label is None:
            raise RefusedError(product.node, "V has a batch dimension that the scores have not")
        known[label] = leaves(axis)
    contracted = [label for label in ours if label not in product.labels[2]]
    if len(contracted) != 1 or contracted[0] not in theirs or known[contracted[0] or ""] != K:
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
