"""Writes as values: what an op in place, or one with ``out=``, leaves in the memory that it writes to.

``x.add_(y)`` leaves ``x + y``; ``x[2:4] = 0`` leaves ``slice_scatter(x, 0, 2:4)``. Found by schema: the overload
without the write whose arguments are the same. Where there is none, nothing is known of what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

# Their schemas do not say that running means and variances are written in training.
UNSAID: dict[OpOverload, tuple[int, ...]] = {
    aten.native_batch_norm.default: (3, 4),
    aten.cudnn_batch_norm.default: (3, 4),
    aten.miopen_batch_norm.default: (3, 4),
    aten._batch_norm_impl_index.default: (3, 4),
    aten.batch_norm.default: (3, 4),
}


def written(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """The operands that an op writes to."""
    found: list[Tensor] = [args[i] for i in UNSAID.get(op, ()) if len(args) > i and isinstance(args[i], Tensor)]
    if op._schema.is_mutable:
        for place, argument in enumerate(op._schema.arguments):
            if _writes(argument):
                value = args[place] if place < len(args) and not argument.kwarg_only else kwargs.get(argument.name)
                several = value if isinstance(value, (list, tuple)) else [value]
                found += [each for each in several if isinstance(each, Tensor)]
    return found


@cache
def without_write(op: OpOverload) -> OpOverload | None:
    """The overload of PyTorch's own that gives what ``op`` writes; None if there is none."""
    if op.namespace != "aten":
        return None
    name = op._schema.name.removeprefix("aten::")
    in_place = any(_writes(argument) and not argument.is_out for argument in op._schema.arguments)
    packet = getattr(aten, _plain(name) if in_place else name, None)
    wanted = [_kind(argument) for argument in op._schema.arguments if not argument.is_out]
    for overload in (getattr(packet, each) for each in packet.overloads()) if packet is not None else ():
        schema = overload._schema
        if not schema.is_mutable and [_kind(argument) for argument in schema.arguments] == wanted:
            return overload if isinstance(overload, OpOverload) else None
    return None


def _plain(name: str) -> str:
    """``add_`` -> ``add``, ``__ior__`` -> ``__or__``."""
    if name.startswith("__i") and name.endswith("__"):
        return "__" + name[3:]
    return name.removesuffix("_")


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _kind(argument: Any) -> tuple[str, str]:
    return argument.name, str(argument.type)


def without_out(op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without those that are only written to."""
    outs = {argument.name for argument in op._schema.arguments if argument.is_out}
    positional = [argument for argument in op._schema.arguments if not argument.kwarg_only]
    kept = tuple(value for value, argument in zip(args, positional, strict=False) if argument.name not in outs)
    return kept, {name: value for name, value in kwargs.items() if name not in outs}


Inverse = Callable[[Any, Any, Sequence[Any], Tensor], tuple[OpOverload, tuple[Any, ...]]]


def _scattered(op: OpOverload) -> Inverse:
    return lambda base, new, args, like: (op, (base, new, *args[1:]))


def _unpermuted(base: Any, new: Any, args: Sequence[Any], like: Tensor) -> tuple[OpOverload, tuple[Any, ...]]:
    order = list(args[1])
    return aten.permute.default, (new, tuple(order.index(i) for i in range(len(order))))


# How the tensor behind a view looks when the view was written: (base, new view, the view's arguments, base's fake).
INVERSES: dict[OpOverload, Inverse] = {
    aten.slice.Tensor: _scattered(aten.slice_scatter.default),
    aten.select.int: _scattered(aten.select_scatter.default),
    aten.diagonal.default: _scattered(aten.diagonal_scatter.default),
    aten.view.default: lambda base, new, args, like: (aten.view.default, (new, tuple(like.shape))),
    aten.permute.default: _unpermuted,
}
