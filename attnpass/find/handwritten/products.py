"""Matrix products in every spelling, read as which dimension of one operand meets which of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnpass.find.handwritten.axes import Atom, Axes
from attnpass.graph.ops import argument, is_weight, name_of, number
from attnpass.graph.symbolic import Size, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum")

Labels = tuple[str | None, ...]  # a letter for each dimension; None for size 1 where the other operand has more


@dataclass(frozen=True, slots=True)
class Product:
    """``beta * added + alpha * left @ right``.

    Attributes:
        node: the product.
        left, right: its operands.
        labels: the letters of left, right and the result.
        alpha: factor on the product.
        added: the tensor of ``baddbmm``, or None.
        beta: factor on it.
        multiplied: what is summed up, where the product is written so.
    """

    node: Value
    left: Value
    right: Value
    labels: tuple[Labels, Labels, Labels]
    alpha: float = 1.0
    added: Value | None = None
    beta: float = 1.0
    multiplied: Value | None = None

    @property
    def nodes(self) -> tuple[Value, ...]:
        """The values that it is made of."""
        return (self.node,) if self.multiplied is None else (self.node, self.multiplied)


def is_product(node: Value) -> bool:
    """Is this a product of two tensors? A layer's is one of a tensor and weights."""
    name = name_of(node)
    if name == "mm" or (name == "linear" and argument(node, 2) is None):
        return not any(map(is_weight, node.args[:2]))
    return name in PRODUCTS or _summed(node) is not None


def product_of(reader: Value) -> Value | None:
    """The product that reads a value by ``reader``; None if there is none."""
    if is_product(reader):
        return reader
    users = list(reader.users)
    return users[0] if len(users) == 1 and name_of(reader) == "mul" and _summed(users[0]) is not None else None


def _summed(node: Value) -> tuple[Value, int] | None:
    """``(q[..., :, None, :] * k[..., None, :, :]).sum(-1)``: each has a dimension that the other broadcasts along."""
    inner, dims = argument(node, 0), argument(node, 1)
    if name_of(node) != "sum" or not isinstance(inner, Value) or name_of(inner) != "mul" or node.kwargs:
        return None
    one, other = (tensor(each) for each in inner.args[:2])
    if not isinstance(dims, (list, tuple)) or len(dims) != 1 or argument(node, 2) or len(inner.users) != 1:
        return None
    if one is None or other is None or one.ndim != other.ndim:
        return None
    alone = [(known_equal(a, 1), known_equal(b, 1)) for a, b in zip(one.shape, other.shape, strict=True)]
    outer = (True, False) in alone and (False, True) in alone
    return (inner, dims[0] % one.ndim) if outer else None


def _of_sum(node: Value, inner: Value, dim: int) -> Product | str:
    left, right = inner.args[:2]
    labels: tuple[list[str | None], list[str | None]] = ([], [])
    for place, (one, other) in enumerate(zip(tensor(left).shape, tensor(right).shape, strict=True)):  # type: ignore[union-attr]
        if not (known_equal(one, other) or known_equal(one, 1) or known_equal(other, 1)):
            return f"sizes {one} and {other} of the product are not known to be the same"
        letter, same = chr(ord("a") + place), known_equal(one, other)
        labels[0].append(letter if same or not known_equal(one, 1) else None)
        labels[1].append(letter if same or not known_equal(other, 1) else None)
    out = [one or other for place, (one, other) in enumerate(zip(*labels, strict=True)) if place != dim]
    return Product(node, left, right, (tuple(labels[0]), tuple(labels[1]), tuple(out)), multiplied=inner)


def read_product(node: Value) -> Product | str:
    """The product that a node computes, or one sentence why it is none that can be followed."""
    name = name_of(node)
    if name == "einsum":
        return _einsum(node)
    if name == "baddbmm":
        return _baddbmm(node)
    summed = _summed(node)
    if summed is not None:
        return _of_sum(node, *summed)
    left, right = argument(node, 0), argument(node, 1)
    if tensor(left) is None or tensor(right) is None:
        return "an operand of the product is no tensor"
    sizes = [tuple(each.shape) for each in map(tensor, (left, right)) if each is not None]
    if name == "linear" and len(sizes[1]) == 2:
        a, b, out = (*"abcdefgh"[: len(sizes[0]) - 1], "J"), ("K", "J"), (*"abcdefgh"[: len(sizes[0]) - 1], "K")
        return Product(node, left, right, (a, b, out))
    labels = _matmul_labels(*sizes)
    return labels if isinstance(labels, str) else Product(node, left, right, labels)


def _baddbmm(node: Value) -> Product | str:
    added, left, right = (
        argument(node, 0),
        argument(node, 1),
        argument(node, 2),
    )
    alpha, beta = number(argument(node, 4, 1)), number(argument(node, 3, 1))
    if alpha is None or beta is None or any(tensor(each) is None for each in (added, left, right)):
        return "alpha or beta of baddbmm is no number"
    labels = _matmul_labels(tuple(tensor(left).shape), tuple(tensor(right).shape))  # type: ignore[union-attr]
    if isinstance(labels, str):
        return labels
    return Product(node, left, right, labels, alpha, None if beta == 0 else added, beta)


def _matmul_labels(left: Sequence[Size], right: Sequence[Size]) -> tuple[Labels, Labels, Labels] | str:
    """Letters as in ``...ij,...jk->...ik``, the batch dimensions aligned to the right."""
    if len(left) < 2 or len(right) < 2:
        return "a vector takes part in the product"
    batch = [chr(ord("a") + i) for i in range(max(len(left), len(right)) - 2)]
    a: list[str | None] = list(batch[len(batch) - len(left) + 2 :])
    b: list[str | None] = list(batch[len(batch) - len(right) + 2 :])
    for place in range(-1, -min(len(a), len(b)) - 1, -1):
        one, other = left[place - 2], right[place - 2]
        if known_equal(one, other):
            continue
        if known_equal(one, 1):
            a[place] = None
        elif known_equal(other, 1):
            b[place] = None
        else:
            return f"batch sizes {one} and {other} of the product are not known to be the same"
    return (*a, "I", "J"), (*b, "J", "K"), (*batch, "I", "K")


def _einsum(node: Value) -> Product | str:
    equation, operands = argument(node, 0), list(argument(node, 1))
    if not isinstance(equation, str) or len(operands) != 2 or any(tensor(each) is None for each in operands):
        return "einsum of other than two tensors"
    inputs, arrow, result = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2:
        return f"einsum {equation!r} has other than two operands"
    shapes = [tuple(tensor(each).shape) for each in operands]  # type: ignore[union-attr]
    dots = [
        len(shape) - len(term.replace("...", "")) if "..." in term else 0
        for term, shape in zip(terms, shapes, strict=True)
    ]
    if len(set(dots)) > 1 and "..." in terms[0] and "..." in terms[1]:
        return f"einsum {equation!r} broadcasts dimensions"
    hidden = "".join(chr(ord("0") + i) for i in range(max(dots)))
    left, right = (term.replace("...", hidden) for term in terms)
    if not arrow:
        letters = left.replace(hidden, "") + right.replace(hidden, "") if hidden else left + right
        result = hidden + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    result = result.replace("...", hidden)
    if any(len(set(term)) != len(term) for term in (left, right)):
        return f"einsum {equation!r} takes a diagonal"
    return _with_broadcasts(node, operands, shapes, (left, right, result))


def _with_broadcasts(
    node: Value, operands: list[Value], shapes: list[tuple[Size, ...]], terms: tuple[str, str, str]
) -> Product | str:
    """Letters with None where an operand has size 1 and the other has more."""
    sizes = [dict(zip(term, shape, strict=True)) for term, shape in zip(terms, shapes, strict=False)]
    labels: list[list[str | None]] = [list(term) for term in terms]
    for letter in set(terms[0]) & set(terms[1]):
        one, other = sizes[0][letter], sizes[1][letter]
        if known_equal(one, other):
            continue
        if not (known_equal(one, 1) or known_equal(other, 1)):
            return f"sizes {one} and {other} of einsum's {letter!r} are not known to be the same"
        small = 0 if known_equal(one, 1) else 1
        labels[small][terms[small].index(letter)] = None
    return Product(node, operands[0], operands[1], (tuple(labels[0]), tuple(labels[1]), tuple(labels[2])))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A product with its dimensions: those of the operands, of the result, and the one that is summed over, if any."""

    left: Axes
    right: Axes
    out: Axes
    D: Axes


def label_axes(product: Product) -> Labelled:
    """Atoms for the letters of a product."""
    atoms: dict[str, tuple[Atom, ...]] = {}
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
    out = tuple(atoms[label or ""] for label in product.labels[2])
    there = [set(labels) - {None} for labels in product.labels]
    return Labelled(sides[0], sides[1], out, tuple(atoms[label or ""] for label in (there[0] & there[1]) - there[2]))
