"""Masks for FlexAttention: its block mask, and the functions of single scores that it compiles into its kernel.

A rule that depends on keys or on queries alone is computed once, as a small tensor; what else a mask reads is captured
as it is. Everything is emitted once for all calls of a graph that mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass.call import AttentionCall
from attnpass.emit import EmitRefusedError, Emitter
from attnpass.kernels.flex_layout import all_fixed, fixed
from attnpass.limits import Code, Rejection
from attnpass.masks.blocks import band_blocks, blocks
from attnpass.masks.bounds import Bounds
from attnpass.masks.expr import AXES, B, Expr, H, K, Load, NonNeg, Q, axis, size_key
from attnpass.masks.logic import all_of, any_of, axes_of, loads_of
from attnpass.masks.lower import Values, as_tensor, evaluate, outside_loads, symbolic_sizes
from attnpass.masks.meaning import Meaning
from attnpass.masks.simplify import conjuncts
from attnpass.masks.spec import EmptyRows
from attnpass.masks.substitute import with_nodes
from attnpass.symbolic import Size

Outside = frozenset[tuple[Load, int]]


@dataclass(frozen=True, slots=True)
class Captured:
    """A mask ready for the kernel.

    Attributes:
        allowed: who takes part, reading only tensors that a kernel can index.
        bias: what is added, likewise, or None.
        empty: tensor that says which rows see no key and give an average, as an expression, or None.
    """

    allowed: Expr
    bias: Expr | None = None
    empty: Expr | None = None


def captured(emitter: Emitter, call: AttentionCall, q: Node, k: Node, meaning: Meaning) -> Captured:
    """Prepare what a mask reads. Shared by all calls with the same mask."""
    key = ("flex captured", meaning.allowed, meaning.bias, *map(str, _sizes(call)), emitter.writes_before())
    if key not in emitter.shared:
        first = len(emitter.made)
        emitter.shared[key] = _capture(emitter, call, q, k, meaning)
        del emitter.made[first:]  # shared with later calls, so not this call's to undo
    made: Captured = emitter.shared[key]
    return made


def _capture(emitter: Emitter, call: AttentionCall, q: Node, k: Node, meaning: Meaning) -> Captured:
    parts = [_hoisted(emitter, call, q, k, part) for part in conjuncts(meaning.allowed)]
    allowed = all_of(parts)
    bias = None if meaning.bias is None else with_nodes(meaning.bias, lambda node: fixed(emitter, node))
    if not (meaning.spec.rows_may_be_empty and meaning.spec.empty is EmptyRows.AVERAGE):
        return Captured(allowed, bias)
    empty = _computed(emitter, call, q, k, allowed, (B, H, Q), lambda seen: seen.any(-1).logical_not())
    return Captured(any_of((allowed, empty)), bias, empty)


def _hoisted(emitter: Emitter, call: AttentionCall, q: Node, k: Node, part: Expr) -> Expr:
    """A part that depends on keys or queries alone as one load of a bool tensor; others with loads of fixed layout."""
    axes = axes_of(part)
    if loads_of(part) and not {Q, K} <= axes and axes:
        return _computed(emitter, call, q, k, part, tuple(a for a in AXES if a in axes), lambda value: value)
    return with_nodes(part, lambda node: fixed(emitter, node))


def _computed(
    emitter: Emitter,
    call: AttentionCall,
    q: Node,
    k: Node,
    expr: Expr,
    kept: tuple[str, ...],
    finish: Callable[[Tensor], Tensor],
) -> Expr:
    """``finish(expr)`` computed in the graph, as the load of a bool tensor over the axes ``kept``."""
    present = axes_of(expr)
    kept = tuple(a for a in kept if a in present)

    def compute(q: Tensor, k: Tensor, *tensors: Tensor) -> Tensor:
        sizes = dict(zip(AXES, (*q.shape[:3], k.shape[2]), strict=True))
        places = {
            a: torch.arange(sizes[a], device=q.device).reshape([-1 if a == other else 1 for other in AXES])
            for a in AXES
            if a in present
        }
        value = evaluate(expr, _values(expr, places, q, k, nodes, tensors, outside))
        whole = as_tensor(value, torch.bool, q.device).expand([sizes[a] if a in present else 1 for a in AXES])
        return finish(whole).reshape([sizes[a] for a in kept])

    nodes = [load.node for load in loads_of(expr)]
    outside = outside_loads(expr, _bounds(call))  # asked here: arithmetic on sizes would be traced in there
    node = emitter.inline(compute, q, k, *nodes)
    return Load(fixed(emitter, node), tuple(map(axis, kept)), torch.bool)


def _values(
    expr: Expr, places: dict[str, Tensor], q: Tensor, k: Tensor, nodes: list[Node], tensors: Any, outside: Outside
) -> Values:
    symbols = _symbols(q, k, *tensors)
    sizes = {
        key: torch.full((), _number(key, symbols), dtype=torch.int64, device=q.device) for key in symbolic_sizes(expr)
    }
    return Values(places, dict(zip(nodes, tensors, strict=True)), sizes, outside)


def _sizes(call: AttentionCall) -> tuple[Any, ...]:
    return call.B, call.H, call.Sq, call.Sk


def _bounds(call: AttentionCall) -> Bounds:
    return Bounds.of(dict(zip(AXES, _sizes(call), strict=True)))


def _symbols(*tensors: Tensor) -> dict[Any, Any]:
    """The symbolic sizes of tensors by their symbol."""
    sizes: list[Size] = [size for tensor in tensors for size in tensor.shape]
    return {size_key(size): size for size in sizes if not isinstance(size, int)}


def _number(expr: Any, symbols: dict[Any, Any]) -> Any:
    """A symbolic expression computed from sizes at hand.

    Raises:
        EmitRefusedError: it needs a size that no operand has.
    """
    if expr in symbols:
        return symbols[expr]
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, (sympy.Add, sympy.Mul)):
        numbers = [_number(arg, symbols) for arg in expr.args]
        total = numbers[0]
        for number in numbers[1:]:
            total = total + number if isinstance(expr, sympy.Add) else total * number
        return total
    raise EmitRefusedError(Rejection(Code.DYNAMIC, "a size in the mask", expr, "a sum of sizes of q, k and the mask"))


def block_lists(emitter: Emitter, call: AttentionCall, q: Node, k: Node, mask: Captured) -> list[Node]:
    """The block lists of a mask, computed in the graph, in the order of `BlockMask`'s constructor.

    They are given a fixed layout: Inductor may give what it computes any strides, and FlexAttention's kernel takes the
    lists as contiguous (an illegal memory access on an H100, PyTorch 2.11).
    """
    nodes = [load.node for load in loads_of(mask.allowed)]
    outside, band = outside_loads(mask.allowed, _bounds(call)), _band(mask.allowed)

    def compute(q: Tensor, k: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        sizes = (*q.shape[:3], k.shape[2])
        if band is not None:
            left, right = (None if side is None else _side(side, _symbols(q, k)) for side in band)
            return band_blocks(sizes[2], sizes[3], left, right, q.device)

        def values(places: dict[str, Tensor]) -> Values:
            return _values(mask.allowed, places, q, k, nodes, tensors, outside)

        return blocks(mask.allowed, sizes, values, q.device)

    return all_fixed(emitter, list(emitter.inline(compute, q, k, *nodes)))


def _band(allowed: Expr) -> tuple[Size | None, Size | None] | None:
    """``(left, right)`` of a mask that is one band around the diagonal; None for any other mask."""
    sides: dict[int, Size] = {}
    for part in conjuncts(allowed):
        if not isinstance(part, NonNeg) or axes_of(part) != {Q, K}:
            return None
        sign = part.form.factor(K)
        if abs(sign) != 1 or part.form.factor(Q) != -sign or sign in sides:
            return None
        sides[sign] = part.form.const
    return (sides.get(1), sides.get(-1)) if sides else None


def _side(size: Size, symbols: dict[Any, Any]) -> Any:
    return size if isinstance(size, int) else _number(size_key(size), symbols)


def element_function(
    emitter: Emitter,
    call: AttentionCall,
    q: Node,
    k: Node,
    name: str,
    score: bool,
    make: Callable[..., Any],
    *exprs: Expr,
) -> tuple[Node, tuple[Node, ...]]:
    """A graph module of one score's indices (behind the score itself, if ``score``), and the nodes that it captures.

    ``make(evaluate, *score)`` gives the result, where ``evaluate`` computes an expression.
    """
    nodes = list(dict.fromkeys(load.node for expr in exprs for load in loads_of(expr)))
    needed = {key: None for expr in exprs for key in symbolic_sizes(expr)}
    sizes = [_size_node(emitter, q, k, key) for key in needed]
    outside: Outside = frozenset().union(*(outside_loads(expr, _bounds(call)) for expr in exprs))

    def function(*given: Tensor) -> Any:
        first = int(score)
        places = dict(zip(AXES, given[first : first + 4], strict=True))
        tensors, numbers = given[first + 4 : first + 4 + len(nodes)], given[first + 4 + len(nodes) :]
        read, sized = dict(zip(nodes, tensors, strict=True)), dict(zip(needed, numbers, strict=True))
        values = Values(places, read, sized, outside)
        device = given[0].device
        return make(lambda expr, dtype: as_tensor(evaluate(expr, values), dtype, device), *given[:first])

    def traced() -> GraphModule:
        value = emitter.value(q)
        scalars = [torch.empty((), dtype=torch.int32, device=value.device) for _ in AXES]
        head = [torch.empty((), dtype=torch.float32, device=value.device)] if score else []
        return make_fx(function)(*head, *scalars, *emitter.examples((*nodes, *sizes)))

    return emitter.submodule(name, emitter.within(traced), *exprs), (*nodes, *sizes)


def _size_node(emitter: Emitter, q: Node, k: Node, key: Any) -> Node:
    """A symbolic size as a tensor without dimensions."""

    def compute(q: Tensor, k: Tensor) -> Tensor:
        return torch.full((), _number(key, _symbols(q, k)), dtype=torch.int64, device=q.device)

    node: Node = emitter.inline(compute, q, k)
    return fixed(emitter, node)
