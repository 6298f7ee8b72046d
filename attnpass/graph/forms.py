"""One form for each op of a Reading: what differs only in spelling, or reads no element, is written the same way.

``zeros_like``, ``new_full`` and ``scalar_tensor`` are a ``full`` of their own shape (and read nobody's values);
``squeeze``, ``flatten`` and ``_unsafe_view`` are a ``view``; ``transpose``, ``t`` and ``mT`` a ``permute``; the parts
of ``split``, ``chunk`` and ``unbind`` are slices. Keyed by overload: an op that is not PyTorch's own is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from attnpass.graph.symbolic import Size, known_all_equal

aten = torch.ops.aten
Form = tuple[OpOverload, tuple[Any, ...], dict[str, Any]]
Maker = Callable[[Sequence[Any], dict[str, Any], Tensor], Form]

IDENTITIES = frozenset({aten.alias.default, aten.lift_fresh.default, aten.lift.default, aten.contiguous.default})
UNINITIALISED = frozenset(
    overload
    for packet in (aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided)
    for overload in (getattr(packet, name) for name in packet.overloads())
)


def full(out: Tensor, value: Any) -> Form:
    """A tensor like ``out`` that is ``value`` everywhere."""
    return aten.full.default, (tuple(out.shape), value), {"dtype": out.dtype, "device": out.device}


def _constant(value: float) -> Maker:
    return lambda args, kwargs, out: full(out, value)


def _at(position: int) -> Maker:
    return lambda args, kwargs, out: full(out, args[position])


def _view(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    return aten.view.default, (args[0], tuple(out.shape)), {}


def _permuted(order: Callable[[Sequence[Any], int], list[int]]) -> Maker:
    def made(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
        return aten.permute.default, (args[0], tuple(order(args, out.ndim))), {}

    return made


def _swapped(args: Sequence[Any], rank: int) -> list[int]:
    order = list(range(rank))
    if rank:
        one, other = (args[1], args[2]) if len(args) > 2 else (-2, -1)
        order[one], order[other] = order[other], order[one]
    return order


def _arange(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    start, end, step = (0, args[0], 1) if len(args) == 1 else (*args, 1)[:3]
    return aten.arange.start_step, (start, end, step), {"dtype": out.dtype, "device": out.device}


def _cast(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    return aten._to_copy.default, (args[0],), {"dtype": out.dtype, "device": out.device}


def _expand(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    return aten.expand.default, (args[0], tuple(out.shape)), {}


def _slice(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    defaults = (0, None, None, 1)
    return aten.slice.Tensor, (*args, *defaults[len(args) - 1 :]), {}


FORMS: dict[OpOverload, Maker] = {
    aten.zeros.default: _constant(0),
    aten.zeros_like.default: _constant(0),
    aten.new_zeros.default: _constant(0),
    aten.ones.default: _constant(1),
    aten.ones_like.default: _constant(1),
    aten.new_ones.default: _constant(1),
    aten.full.default: _at(1),
    aten.full_like.default: _at(1),
    aten.new_full.default: _at(2),
    aten.scalar_tensor.default: _at(0),
    aten.fill.Scalar: _at(1),
    aten.zero.default: _constant(0),
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten._reshape_alias.default: _view,
    aten.reshape.default: _view,
    aten.unsqueeze.default: _view,
    aten.squeeze.default: _view,
    aten.squeeze.dim: _view,
    aten.squeeze.dims: _view,
    aten.flatten.using_ints: _view,
    aten.unflatten.int: _view,
    aten.permute.default: _permuted(lambda args, rank: [int(dim) % rank for dim in args[1]]),
    aten.transpose.int: _permuted(_swapped),
    aten.t.default: _permuted(lambda args, rank: list(range(rank))[::-1]),
    aten.expand.default: _expand,
    aten.slice.Tensor: _slice,
    aten._to_copy.default: _cast,
    torch.ops.prims.convert_element_type.default: _cast,
}


def formed(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Form:
    """The op in its one form; ``out`` is its result."""
    maker = FORMS.get(op)
    return (op, tuple(args), kwargs) if maker is None else maker(args, kwargs, out)


def takes_all(op: OpOverload, x: Tensor, out: Tensor, args: Sequence[Any]) -> bool:
    """Is a view the whole tensor, each element in its place?"""
    if op in IDENTITIES:
        return True
    if op is aten.slice.Tensor:
        return args[4] == 1 and known_all_equal(tuple(x.shape), tuple(out.shape))
    return op in (aten.expand.default, aten.view.default) and known_all_equal(tuple(x.shape), tuple(out.shape))


def part(
    op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor], index: int
) -> Form | None:
    """One result of an op that takes a tensor apart, as a slice of its own; None for other ops."""
    x = args[0] if args else None
    if op is aten.unbind.int:
        return aten.select.int, (x, args[1] if len(args) > 1 else 0, index), {}
    if op not in (aten.split.Tensor, aten.split_with_sizes.default):
        return None
    dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    start: Size = sum((each.shape[dim] for each in outs[:index]), start=0)
    return aten.slice.Tensor, (x, dim, start, start + outs[index].shape[dim], 1), {}
