"""Repeated key/value heads undone: the kernel reads the small K and V, as it does for ``enable_gqa=True``.

Query head h reads key head h // n, so a repeat is undone only if K[b, h, s, d] is source[b, h // n, s, d]: where each
head stands n times *in a row*, by ``repeat_interleave``, or by ``unsqueeze`` behind the heads, ``expand`` and
``reshape``. ``repeat(1, n, 1, 1)`` lays whole copies behind each other; query head h would read head h % Hkv, and such
a call is left as it is (unless Hkv is 1). How K is spelled does not matter: the index engine says which element it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch

from attnpass.find.present import Present
from attnpass.graph.operand import Operand
from attnpass.graph.ops import is_copy, name_of, source_of_view
from attnpass.graph.symbolic import Size, is_hashable, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.index.arrays import Array, Like
from attnpass.index.bounds import Bounds
from attnpass.index.expr import Apply, Expr, Load, as_number, axis
from attnpass.index.rules import MEANINGS
from attnpass.index.scalars import StopError
from attnpass.index.simplify import simplified
from attnpass.ir.call import AttentionCall
from attnpass.ir.wiring import Wiring

REPEATS = frozenset({"expand", "repeat", "repeat_interleave"})
VIEWS = frozenset({"view", "permute", "clone"})
HEADS = 1  # of BHSD
DTYPE = torch.float32  # of any: where an element is read does not depend on it
Shape: TypeAlias = "tuple[Size, ...]"
_Step: TypeAlias = "tuple[str, tuple[Any, ...], Shape]"  # a view: its name, its arguments, the shape of its result


@dataclass(frozen=True, slots=True)
class Repeated:
    """K or V before its heads were repeated.

    Attributes:
        source: the tensor with Hkv heads.
        order: which dimension of K or V each of its dimensions is.
        heads: Hkv.
    """

    source: Value
    order: tuple[int, ...]
    heads: Size


def repeated_operands(
    call: AttentionCall, values: Wiring[Value], present: Present
) -> tuple[Operand[Value], Operand[Value]] | None:
    """K and V before their heads were repeated, as (B, Hkv, S, D); None if they were not, or not alike."""
    if call.k.ndim != 4 or call.v.ndim != 4 or call.enable_gqa or call.context.functorch:
        return None
    if not known_equal(call.H, call.Hkv):
        return None
    k, v = (undo_repeat(operand.node, HEADS, present) for operand in (values.k, values.v))
    if k is None or v is None or not known_equal(k.heads, v.heads):
        return None
    return _placed(k), _placed(v)


def _placed(repeated: Repeated) -> Operand[Value]:
    operand, order = Operand(repeated.source), repeated.order
    places = tuple(order.index(dim) for dim in range(len(order)))
    return operand if places == (0, 1, 2, 3) else operand.then(torch.ops.aten.permute.default, places)


def undo_repeat(x: Value, heads: int, present: Present) -> Repeated | None:
    """Look behind the repeat of the heads of ``x``, through views of it; None if they are not repeated in a row.

    Args:
        x: K or V.
        heads: the dimension of its heads.
        present: which values are there where the call reads them.
    """
    steps: list[_Step] = []
    source: Value | None = x
    repeats = False
    while source is not None and not present.cuts_gradient(source, x):
        if repeats and present(source):
            given = _shape(source), tuple(reversed(steps)), heads
            order = _order(*given) if is_hashable(given) else _order.__wrapped__(*given)
            if order is not None:
                return Repeated(source, order, _shape(source)[order.index(heads)])
        name = name_of(source)
        if name not in REPEATS | VIEWS or any(isinstance(each, Value) for each in source.args[1:]):
            return None
        repeats = repeats or (name in REPEATS and not is_copy(source))
        steps.append((name, source.args[1:], _shape(source)))
        source = source_of_view(source)
    return None


@lru_cache(maxsize=64)  # every layer of a model has the same
def _order(before: Shape, steps: tuple[_Step, ...], heads: int) -> tuple[int, ...] | None:
    """Which dimension behind ``steps`` each dimension before them is, if the heads stand in a row there, else None."""
    after = steps[-1][-1]
    if len(before) != len(after) or known_equal(after[heads], 1):
        return None
    index = tuple(axis(str(dim)) for dim in range(len(after)))
    array = Array(before, DTYPE, lambda there: Load(None, there, DTYPE))
    try:
        for name, args, shape in steps:
            array = MEANINGS[name](Like(shape, DTYPE), array, *args)
        element = simplified(array.at(index), Bounds.of({str(dim): size for dim, size in enumerate(after)}))
        if not isinstance(element, Load):
            return None
        order = [_dim(part, size, after, heads) for part, size in zip(element.index, before, strict=True)]
    except StopError:
        return None
    # of what is read at 0 alone, one dimension of size 1 is as good as another; only the heads may have been repeated
    left = [dim for dim in range(len(after)) if dim not in order]
    if order.count(None) != len(left) or not all(dim == heads or known_equal(after[dim], 1) for dim in left):
        return None
    return tuple(left.pop(0) if dim is None else dim for dim in order)


def _dim(part: Expr, size: Size, shape: Shape, heads: int) -> int | None:
    """The dimension of K, of sizes ``shape``, by which a dimension of its source is read: the heads at h // n.

    None for a dimension of size 1, which is read at 0 alone.

    Raises:
        StopError: it is read in another way.
    """
    if known_equal(size, 1):
        return None
    if isinstance(part, Apply) and part.op == "floordiv" and part.args[0] == axis(str(heads)):
        n = as_number(part.args[1])
        if n is not None and known_equal(size * n, shape[heads]):
            return heads
    for dim, whole in enumerate(shape):
        if dim != heads and part == axis(str(dim)) and known_equal(size, whole):
            return dim
    raise StopError(f"a tensor that is read at {part}")


def _shape(value: Value) -> Shape:
    made = tensor(value)
    assert made is not None
    return tuple(made.shape)
