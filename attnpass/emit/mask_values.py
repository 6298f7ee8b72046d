"""A proved mask, or a part of it, computed in the graph: from expressions to nodes.

`attnpass.index.evaluate` computes an expression from tensors; here are the tensors of a call's graph that it is
computed from, and the sizes that only the running program knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit.emitter import EmitRefusedError, Emitter
from attnpass.graph.symbolic import Size
from attnpass.index.bounds import Bounds
from attnpass.index.evaluate import Values, as_tensor, evaluate, outside_loads, symbolic_sizes
from attnpass.index.expr import AXES, Expr, Load, size_key
from attnpass.index.logic import axes_of, loads_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection

Outside = frozenset[tuple[Load, int]]


def computed(
    emitter: Emitter,
    call: AttentionCall,
    q: Node,
    k: Node,
    expr: Expr,
    kept: tuple[str, ...],
    finish: Callable[[Tensor], Tensor] = lambda value: value,
) -> Node:
    """``finish(expr)`` computed in the graph: a bool tensor over those axes of ``kept`` that the expression has.

    Raises:
        EmitRefusedError: a size of the expression is one that no operand has.
    """
    present = axes_of(expr)

    def compute(q: Tensor, k: Tensor, *tensors: Tensor) -> Tensor:
        sizes = dict(zip(AXES, (*q.shape[:3], k.shape[2]), strict=True))
        places = {a: along(a, torch.arange(sizes[a], device=q.device)) for a in AXES if a in present}
        value = evaluate(expr, values_of(expr, places, q, k, nodes, tensors, outside))
        whole = as_tensor(value, torch.bool, q.device).expand([sizes[a] if a in present else 1 for a in AXES])
        return finish(whole).reshape([sizes[a] for a in kept if a in present])

    nodes = [load.node for load in loads_of(expr)]
    outside = outside_loads(expr, bounds_of(call))  # asked here: arithmetic on sizes would be traced in there
    node: Node = emitter.inline(compute, q, k, *nodes)
    return node


def along(axis: str, index: Tensor) -> Tensor:
    """Places along one axis, so that they broadcast over (B, H, Sq, Sk)."""
    return index.reshape([-1 if axis == other else 1 for other in AXES])


def values_of(
    expr: Expr, places: dict[str, Tensor], q: Tensor, k: Tensor, nodes: list[Node], tensors: Any, outside: Outside
) -> Values:
    """What ``expr`` is computed from at ``places``; ``nodes`` have the values ``tensors``."""
    symbols = symbols_of(q, k, *tensors)
    sizes = {
        key: torch.full((), number_of(key, symbols), dtype=torch.int64, device=q.device) for key in symbolic_sizes(expr)
    }
    return Values(places, dict(zip(nodes, tensors, strict=True)), sizes, outside, device=q.device)


def sizes_of(call: AttentionCall) -> tuple[Size, ...]:
    """B, H, Sq, Sk: the sizes of `AXES`."""
    return call.B, call.H, call.Sq, call.Sk


def bounds_of(call: AttentionCall) -> Bounds:
    """Where the indices of a call's scores lie."""
    return Bounds.of(dict(zip(AXES, sizes_of(call), strict=True)))


def symbols_of(*tensors: Tensor) -> dict[Any, Any]:
    """The symbolic sizes of tensors by their symbol."""
    sizes: list[Size] = [size for tensor in tensors for size in tensor.shape]
    return {size_key(size): size for size in sizes if not isinstance(size, int)}


def number_of(expr: Any, symbols: dict[Any, Any]) -> Any:
    """A symbolic expression computed from sizes at hand.

    Raises:
        EmitRefusedError: it needs a size that no operand has.
    """
    import sympy  # type: ignore[import-untyped]  # only where sizes are symbols, see `attnpass.graph.symbolic.known`

    if expr in symbols:
        return symbols[expr]
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, (sympy.Add, sympy.Mul)):
        numbers = [number_of(arg, symbols) for arg in expr.args]
        total = numbers[0]
        for number in numbers[1:]:
            total = total + number if isinstance(expr, sympy.Add) else total * number
        return total
    raise EmitRefusedError(Rejection(Code.DYNAMIC, "a size in the mask", expr, "a sum of sizes of q, k and the mask"))
