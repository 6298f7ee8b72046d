"""Masks for FlexAttention: its block mask, and the functions of single scores that it compiles into its kernel.

A rule that depends on keys or on queries alone is computed once, as a small tensor; what else a mask reads is captured
as it is. Everything is emitted once for all calls of a graph that mean the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from attnpass.emit.emitter import EmitRefusedError, Emitter, aten
from attnpass.emit.fixed_layout import fixed
from attnpass.emit.mask_values import Outside, bounds_of, computed, number_of, sizes_of, symbols_of
from attnpass.index.evaluate import Values, as_tensor, evaluate, outside_loads, symbolic_sizes
from attnpass.index.expr import AXES, B, Expr, H, K, Load, Q, axis
from attnpass.index.logic import all_of, any_of, axes_of, is_boolean, loads_of, walk, with_nodes
from attnpass.index.simplify import conjuncts
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import EmptyRows
from attnpass.ir.meaning import Meaning


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
    """Prepare what a mask reads. Shared by all calls with the same mask whose rows without keys give the same."""
    rows = (meaning.spec.rows_may_be_empty, meaning.spec.empty, call.needs_grad, call.bias_learns)
    key = ("flex captured", meaning.allowed, meaning.bias, *rows, *map(str, sizes_of(call)), emitter.epoch)
    return emitter.once(key, lambda: _capture(emitter, call, q, k, meaning))


def _capture(emitter: Emitter, call: AttentionCall, q: Node, k: Node, meaning: Meaning) -> Captured:
    parts = [_hoisted(emitter, call, q, k, part) for part in conjuncts(meaning.allowed)]
    allowed = all_of(parts)
    bias = None if meaning.bias is None else _bias(emitter, meaning.bias, call.bias_learns)
    if not meaning.spec.shows_empty_rows:
        return Captured(allowed, bias)
    rows = (B, H, Q)
    none = computed(emitter, call, q, k, allowed, rows, lambda seen: seen.any(-1).logical_not())
    empty = _loaded(emitter, none, allowed, rows)
    shown = any_of((allowed, empty))
    return Captured(shown, bias, None if meaning.spec.empty is EmptyRows.RAW else empty)


def _bias(emitter: Emitter, bias: Expr, learned: bool) -> Expr:
    """What is added, reading tensors of fixed layout; tables that learn in fp32, in which their gradients are summed.

    Raises:
        EmitRefusedError: FlexAttention cannot give the gradients.
    """
    loads = [load for load in loads_of(bias) if load.dtype.is_floating_point] if learned else []
    nodes = [load.node for load in loads]
    if len(nodes) > len(set(nodes)):
        raise _no_gradient("a tensor that is read in several places")
    tests = [part for part in walk(bias) if is_boolean(part)] if learned else []
    if any(load in loads for test in tests for load in loads_of(test)):
        raise _no_gradient("a comparison of what is learned")

    def prepared(node: Node) -> Node:
        learned = node in nodes
        return fixed(emitter, emitter.cast(node, torch.float32) if learned else node, learned)

    return with_nodes(bias, prepared)


def _no_gradient(what: str) -> EmitRefusedError:
    return EmitRefusedError(Rejection(Code.MASK_GRAD, "bias in training", what, "tensors read once, and added"))


def _hoisted(emitter: Emitter, call: AttentionCall, q: Node, k: Node, part: Expr) -> Expr:
    """A part that depends on keys or queries alone as one load of a bool tensor; others with loads of fixed layout."""
    axes = axes_of(part)
    if loads_of(part) and not {Q, K} <= axes and axes:
        return _loaded(emitter, computed(emitter, call, q, k, part, AXES), part, AXES)
    return with_nodes(part, lambda node: fixed(emitter, node))


def _loaded(emitter: Emitter, node: Node, expr: Expr, kept: tuple[str, ...]) -> Expr:
    """The load of a bool tensor that was computed over those of the axes ``kept`` that ``expr`` has."""
    return Load(fixed(emitter, node), tuple(axis(a) for a in kept if a in axes_of(expr)), torch.bool)


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
    outside: Outside = frozenset().union(*(outside_loads(expr, bounds_of(call)) for expr in exprs))

    def function(*given: Tensor) -> Any:
        first = int(score)
        places = dict(zip(AXES, given[first : first + 4], strict=True))
        tensors, numbers = given[first + 4 : first + 4 + len(nodes)], given[first + 4 + len(nodes) :]
        read, sized = dict(zip(nodes, tensors, strict=True)), dict(zip(needed, numbers, strict=True))
        device = given[0].device
        values = Values(places, read, sized, outside, device=device)
        return make(lambda expr, dtype: as_tensor(evaluate(expr, values), dtype, device), *given[:first])

    def traced() -> GraphModule:
        value = emitter.value(q)
        scalars = [torch.empty((), dtype=torch.int32, device=value.device) for _ in AXES]
        head = [torch.empty((), dtype=torch.float32, device=value.device)] if score else []
        module = make_fx(function)(*head, *scalars, *emitter.examples((*nodes, *sizes)))
        return _with_brackets(module) if score and call.bias_learns else module

    return emitter.submodule(name, emitter.within(traced), call.bias_learns, *exprs), (*nodes, *sizes)


def _with_brackets(module: GraphModule) -> GraphModule:
    """The same with each read of an element as ``tensor[b, h]``: of such a one FlexAttention sums the gradients."""
    for node in module.graph.find_nodes(op="call_function", target=aten.index.Tensor):
        node.target, node.args = operator.getitem, (node.args[0], tuple(node.args[1]))
    module.recompile()
    return module


def _size_node(emitter: Emitter, q: Node, k: Node, key: Any) -> Node:
    """A symbolic size as a tensor without dimensions."""

    def compute(q: Tensor, k: Tensor) -> Tensor:
        return torch.full((), number_of(key, symbols_of(q, k)), dtype=torch.int64, device=q.device)

    node: Node = emitter.inline(compute, q, k)
    return fixed(emitter, node)
