"""The log-sum-exp of the scores where the program wants it beside the attention: parts that are merged, ring attention.

Kernels have it anyway. What else reads the scores keeps them from being rewritten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from torch.fx import Node

from attnpass.find.handwritten.axes import Atom, Axes, arranged, leaves
from attnpass.find.handwritten.links import Link, RefusedError, Same, Shifted, moved
from attnpass.find.handwritten.softmaxes import Softmax
from attnpass.graph.operand import Operand, Step
from attnpass.graph.ops import argument, name_of
from attnpass.graph.reading import Reading
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

MOVABLE = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "exp", "sigmoid", "to", "view", "expand", "clone"})
MOST = 12  # nodes that are moved behind the attention


@dataclass(frozen=True, slots=True)
class LogSumExp:
    """What somebody beside the chain reads: ``node``, made by ``nodes`` of the scores, over their dimension ``dim``."""

    node: Value
    nodes: tuple[Value, ...]
    dim: int
    keepdim: bool


def read_log_sum_exp(softmax: Softmax, links: Sequence[Link]) -> LogSumExp | None:
    """The one log-sum-exp of what ``softmax`` is the softmax of that others read; ``links`` lead to that."""
    found = [each for scores in _as_they_are(softmax, links) for each in _of(scores, softmax)]
    wanted = [each for each in found if any(user not in softmax.nodes for user in each.node.users)]
    return wanted[0] if len(wanted) == 1 else None


def _as_they_are(softmax: Softmax, links: Sequence[Link]) -> list[Value]:
    """The scores, in this dtype or that; where their maximum is taken away from them, those before it."""
    values = [softmax.scores]
    for link in reversed(links):
        if isinstance(link, Shifted):
            values = [link.x]
        elif isinstance(link, Same):
            values.append(link.x)
        else:
            break
    return values


def _of(scores: Value, softmax: Softmax) -> Iterator[LogSumExp]:
    casts = [user for user in scores.users if isinstance(moved(user, scores), Same)]
    for x, before in ((scores, ()), *((cast, (cast,)) for cast in casts)):
        for user in x.users:
            dims, value = argument(user, 1), tensor(x)
            if name_of(user) != "logsumexp" or user.args[0] is not x or value is None or len(dims) != 1:
                continue
            if isinstance(softmax.dim, int) and dims[0] % value.ndim == softmax.dim % value.ndim:
                yield LogSumExp(user, (*before, user), softmax.dim % value.ndim, bool(argument(user, 2, False)))


def holder(found: LogSumExp, reading: Reading, place: Node, within: Collection[Value]) -> tuple[Node, tuple[Node, ...]]:
    """The node of the program that gives the log-sum-exp and is replaced together with ``place``, the attention.

    And who reads it before that, and has to be moved behind. ``within`` are the values of the chain, which may stay.

    Raises:
        RefusedError: it cannot be.
    """
    node = reading.result_of(found.node)
    if node is None or node.graph is not place.graph or reading.written_behind(node):
        raise RefusedError(found.node, "the log-sum-exp of the scores is not what one node gives, unchanged")
    sunk = _sunk_readers(node, place, reading, within)
    if sunk is None:
        raise RefusedError(found.node, "the log-sum-exp of the scores is read before the product with V")
    return node, sunk


def _sunk_readers(node: Node, place: Node, reading: Reading, within: Collection[Value]) -> tuple[Node, ...] | None:
    """Who reads ``node`` in front of ``place`` and may as well do so behind it, in order; None if somebody may not.

    Granite computes what its sinks take off, ``sigmoid(lse - sink)``, before the softmax. That is arithmetic on a few
    tensors which nobody writes to, in the same state of the program, and ``place`` does not read it.
    """
    chain, found = {value.maker for value in within}, set[Node]()
    waiting = [user for user in node.users if user not in chain]
    while waiting:
        one = waiting.pop()
        if one in found or one.op == "output" or reading.places.get(one, -1) > reading.places[place]:
            continue
        alike = one.graph is place.graph and reading.regions.get(one) == reading.regions.get(place)
        if one is place or one in chain or not alike or not _is_movable(one, reading) or len(found) == MOST:
            return None
        found.add(one)
        waiting += one.users
    return tuple(sorted(found, key=reading.places.__getitem__))


def _is_movable(node: Node, reading: Reading) -> bool:
    """Arithmetic that gives the same later on: nobody writes to what it reads."""
    value = reading.result(node)
    plain = value is not None and name_of(value) in MOVABLE and node in reading.quiet
    return plain and not any(map(reading.written_behind, node.all_input_nodes))


def steps_to(found: LogSumExp, axes: Axes, rows: Sequence[tuple[Atom, ...]]) -> tuple[Step, ...]:
    """From (B, H, Sq), which are ``rows``, to ``axes``, the dimensions of the scores, without that of the keys."""
    over = [()] if found.keepdim else []
    rest = (*axes[: found.dim], *over, *axes[found.dim + 1 :])
    nobody: Value = None  # type: ignore[assignment]
    mine = tuple(map(leaves, rows))
    operand = arranged(Operand(nobody), mine, tuple(leaves(axis) for axis in rest), whole=False)
    return operand.steps
