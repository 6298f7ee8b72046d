"""Repeated key/value heads undone: the kernel reads the small K and V, as it does for ``enable_gqa=True``.

Query head i reads key head i // n, so a repeat is undone only if each head stands n times *in a row*:
``repeat_interleave``, or ``unsqueeze`` behind the heads, ``expand`` and ``reshape``. ``repeat(1, n, 1, 1)`` lays whole
copies behind each other; query head i would read head i % Hkv, and such a call is left as it is (unless Hkv is 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnpass.find.handwritten.axes import merged_dimension
from attnpass.graph.ops import argument, is_copy, name_of, permutation
from attnpass.graph.symbolic import Size, known, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

HEADS, COPIES = "h", "copies"


@dataclass(frozen=True, slots=True)
class Repeated:
    """K or V before its heads were repeated.

    Attributes:
        source: the tensor with Hkv heads.
        labels: what its dimensions are, in its own order.
    """

    source: Value
    labels: tuple[Any, ...]


def undo_repeat(
    node: Value, labels: tuple[Any, ...], held: Callable[[Value], bool], heads: Any = HEADS
) -> Repeated | None:
    """Look behind the repeat of the heads of ``node``, through views of it; None if they are not repeated in a row.

    Args:
        node: K or V.
        labels: a name for each of its dimensions; ``heads`` is one of them.
        held: is a value there where the call reads it?
        heads: the name of the heads.
    """
    names: list[Any] = list(labels)
    while True:
        done = _repeat_interleave(node, names, heads) or _expanded_single_head(node, names, heads)
        if done is not None:
            return _first_held(done, names, held)
        step = _before(node, names, heads)
        if step is None:
            return None
        node, names = step
        if COPIES in names and _is_expand(node):
            return _finish(node, names, held, heads)


def _finish(node: Value, names: list[Any], held: Callable[[Value], bool], heads: Any) -> Repeated | None:
    """``node`` expands (or repeats) a dimension of size 1 beside the heads, and nothing else."""
    source = node.args[0]
    before, after = tensor(source), tensor(node)
    if not isinstance(source, Value) or before is None or after is None or before.ndim != len(names):
        return None
    place = names.index(COPIES)
    others = [i for i in range(len(names)) if i != place]
    if not known_equal(before.shape[place], 1):
        return None
    if not all(known_equal(before.shape[i], after.shape[i]) for i in others):
        return None
    node, names = source, list(names)
    while COPIES in names:
        step = _before(node, names, heads)
        if step is None:
            return None
        node, names = step
    return _first_held(node, names, held)


def _first_held(node: Value, names: list[Any], held: Callable[[Value], bool]) -> Repeated | None:
    """The nearest value that is still there."""
    while not held(node):
        order, source = permutation(node), node.args[0] if node.args else None
        if not isinstance(source, Value) or (order is None and not is_copy(node)):
            return None
        names = names if order is None else [names[order.index(i)] for i in range(len(order))]
        node = source
    return Repeated(node, tuple(names))


def _is_expand(node: Value) -> bool:
    return name_of(node) in ("expand", "repeat")


def _repeat_interleave(node: Value, names: list[Any], heads: Any) -> Value | None:
    if name_of(node) != "repeat_interleave" or tensor(node.args[0] if node.args else None) is None:
        return None
    times, dim = argument(node, 1), argument(node, 2)
    if not isinstance(times, int) or not isinstance(dim, int) or names[dim] != heads:
        return None
    source: Value = node.args[0]
    return source


def _expanded_single_head(node: Value, names: list[Any], heads: Any) -> Value | None:
    """One head for all: expand and repeat mean the same then."""
    source = node.args[0] if _is_expand(node) and node.args else None
    before, after = tensor(source), tensor(node)
    if not isinstance(source, Value) or before is None or after is None or before.ndim != after.ndim:
        return None
    for name, one, other in zip(names, before.shape, after.shape, strict=True):
        if name == heads and (not known_equal(one, 1) or known_equal(other, 1)):
            return None
        if name != heads and not known_equal(one, other):
            return None
    return source


def _before(node: Value, names: list[Any], heads: Any) -> tuple[Value, list[Any]] | None:
    """The tensor that ``node`` is a view (or a copy) of, and the names of its dimensions."""
    source = node.args[0] if node.args else None
    before, after = tensor(source), tensor(node)
    if not isinstance(source, Value) or before is None or after is None or after.ndim != len(names):
        return None
    order = permutation(node)
    if order is not None:
        return source, [names[order.index(i)] for i in range(len(order))]
    name = name_of(node)
    if is_copy(node):
        return source, names
    if name == "view":
        return _before_view(source, tuple(before.shape), tuple(after.shape), names, heads)
    return None


def _before_view(
    source: Value, before: tuple[Size, ...], after: tuple[Size, ...], names: list[Any], heads: Any
) -> tuple[Value, list[Any]] | None:
    merged = merged_dimension(before, after)
    if merged is not None and COPIES not in names:
        place, count = merged
        if names[place] != heads or count != 2 or not known(before[place + 1] > 1):
            return None
        return source, [*names[: place + 1], COPIES, *names[place + 1 :]]
    if COPIES in names and len(before) == len(after) - 1:
        place = names.index(COPIES)
        rest = [size for i, size in enumerate(after) if i != place]
        if known_equal(after[place], 1) and all(known_equal(a, b) for a, b in zip(before, rest, strict=True)):
            return source, [name for i, name in enumerate(names) if i != place]
    return None
