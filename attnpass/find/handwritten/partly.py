"""Parts of the scores that are changed in place, as where windows are shifted: ``scores[:, -2:] += bias``.

In the Reading that is the part put back, ``slice_scatter(s, slice(s) + bias)``: a bias that is 0 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnpass.find.handwritten.axes import Atom, Axes
from attnpass.find.handwritten.links import Biased, Filled, Link, Partly, RefusedError, Restored, Same
from attnpass.graph.operand import Step
from attnpass.graph.ops import alike, same_arguments, spelled
from attnpass.graph.symbolic import as_int, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor

aten = torch.ops.aten


def read_partly(node: Value, read: Callable[[Value], Link]) -> Link:
    """What a ``slice_scatter`` does to the scores that it writes to; ``read`` tells what was done to the part.

    Raises:
        RefusedError: it puts something else there than the changed part.
    """
    base, source, *where = node.args
    restored = _once_more(base, source, where)
    if restored is not None:
        return Restored(node, base, restored)  # as ``s[a] += b`` writes it
    steps, link = list[Value](), read(source)
    while isinstance(link, Same):
        steps.append(link.node)
        link = read(link.x)
    part = link.x
    taken = part.target is aten.slice.Tensor and alike(part.args[0], base) and same_arguments(part.args[1:], where)
    if not taken or not isinstance(link, (Biased, Filled, Partly)):
        raise RefusedError(node, f"`{spelled(node)}` writes over a part of the scores")
    views = [part]
    while views[-1].args[0] is not base and views[-1].args[0].target is aten.slice.Tensor:
        views.append(views[-1].args[0])
    return Partly(node, base, link, tuple(where), (*steps, *views))


def _once_more(there: Value, source: Value, where: Sequence[Any]) -> tuple[Value, ...] | None:
    """The values that are read to write over a part of ``there`` what it holds already; None if it holds another."""
    if there.target is not aten.slice_scatter.default or not same_arguments(there.args[2:], where):
        return None
    inner = there.args[1]
    if inner is source:
        return ()
    if source.target is not aten.slice_scatter.default:
        return None
    part, new, *inside = source.args
    read = part.target is aten.slice.Tensor and part.args[0] is there and same_arguments(part.args[1:], where)
    rest = _once_more(inner, new, inside) if read else None
    return None if rest is None else (source, part, *rest)


def changed_part(link: Partly, scores: Axes) -> tuple[Biased | Filled, Axes, list[tuple[Sequence[Any], Value]]]:
    """The change of the innermost part, that part's dimensions, and the slices that lead to it, outermost first."""
    axes, spans, inner = list(scores), list[tuple[Sequence[Any], Value]](), link
    while True:
        part = tensor(inner.inner.x)
        assert part is not None
        dim = inner.where[0] % len(axes)
        axes[dim] = (Atom(part.shape[dim]),)
        spans.append((inner.where, inner.x))
        change = inner.inner
        if isinstance(change, (Biased, Filled)):
            return change, tuple(axes), spans
        assert isinstance(change, Partly), "nothing else is read as a part"
        inner = change


def padding_steps(at: Value, operand: Value, spans: Sequence[tuple[Sequence[Any], Value]]) -> tuple[Step, ...]:
    """From a tensor that broadcasts to the innermost part to one that is 0, or False, outside of it.

    Raises:
        RefusedError: a size would have to be written down that is a symbol.
    """
    value, whole = tensor(operand), tensor(spans[0][1])
    assert value is not None and whole is not None
    sizes = [1] * (whole.ndim - value.ndim) + [as_int(size) for size in value.shape]
    steps = [Step(aten.unsqueeze.default, (0,))] * (whole.ndim - value.ndim)
    for where, x in reversed(spans):
        before, made, dim = tensor(x), _size(where, x), where[0] % whole.ndim
        assert before is not None
        if known_equal(sizes[dim] or 0, 1) and not known_equal(made or 0, 1):
            steps.append(Step(aten.expand.default, (tuple(made if i == dim else -1 for i in range(whole.ndim)),)))
        sizes[dim] = as_int(before.shape[dim])
        if made is None or None in sizes or not all(each is None or isinstance(each, int) for each in where):
            raise RefusedError(at, f"`{spelled(at)}` changes a part of scores whose size is a symbol")
        start, end, step = where[1:]
        arguments = (tuple(sizes), dim, 0 if start is None else start, sizes[dim] if end is None else end, step)
        steps.append(Step(aten.slice_backward.default, arguments))
    return tuple(steps)


def _size(where: Sequence[Any], x: Value) -> int | None:
    """How many of its dimension a slice takes."""
    before = tensor(x)
    size = None if before is None else as_int(before.shape[where[0]])
    return None if size is None else len(range(size)[slice(*where[1:])])
