"""Random programs that make an attention mask, as graphs: the grammar of real models, and things outside it.

A program is built op by op on fake tensors, as Dynamo would, and run for real to learn which mask it makes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

Draw = Callable[[Any], Any]


@dataclass(slots=True)
class Program:
    """A graph under construction; q, k and v come first, then the inputs that the mask is made from."""

    sizes: tuple[int, int, int, int]
    graph: Graph = field(default_factory=Graph)
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(allow_non_fake_inputs=True))
    inputs: list[Tensor] = field(default_factory=list)
    made: list[Node] = field(default_factory=list)

    def input(self, tensor: Tensor) -> Node:
        with self.graph.inserting_before(self.made[0]) if self.made else nullcontext():
            node = self.graph.placeholder(f"input_{len(self.inputs)}")
        node.meta["example_value"] = self.mode.from_tensor(tensor)
        self.inputs.append(tensor)
        return node

    def emit(self, op: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Node:
        """Add a call of a function or, by its name, of a method; its fake value is computed at once."""
        values, named = pytree.tree_map_only(Node, lambda n: n.meta["example_value"], (args, kwargs))
        with self.mode, torch.no_grad():
            value = getattr(values[0], op)(*values[1:], **named) if isinstance(op, str) else op(*values, **named)
        create = self.graph.call_method if isinstance(op, str) else self.graph.call_function
        node = create(op, args, kwargs)
        node.meta["example_value"] = value
        self.made.append(node)
        return node

    def finish(self, mask: Node) -> tuple[GraphModule, Tensor]:
        """The program as a graph that ends in SDPA, and the mask that it makes."""
        B, H, Sq, Sk = self.sizes
        probe = GraphModule(torch.nn.Module(), _ending_in(self.graph, mask))
        real = probe(*[x.clone() for x in self.inputs])
        dtype = real.dtype if real.dtype.is_floating_point else torch.float32
        q, k = (self.input(torch.zeros(B, H, S, 8, dtype=dtype)) for S in (Sq, Sk))
        self.graph.output(self.emit(F.scaled_dot_product_attention, q, k, k, attn_mask=mask))
        return GraphModule(torch.nn.Module(), self.graph), real


def _ending_in(graph: Graph, mask: Node) -> Graph:
    copied, env = Graph(), {}
    for node in graph.nodes:
        env[node] = copied.node_copy(node, env.__getitem__)
    copied.output(env[mask])
    return copied


def shape_of(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["example_value"].shape)


def dtype_of(node: Node) -> torch.dtype:
    dtype: torch.dtype = node.meta["example_value"].dtype
    return dtype


def programs() -> st.SearchStrategy[Program]:
    return st.builds(Program, st.tuples(*[st.integers(1, n) for n in (3, 2, 6, 6)]))


def index(p: Program, draw: Draw, axis: str) -> Node:
    """The positions along q or k as a model makes them, shaped to broadcast."""
    _, _, Sq, Sk = p.sizes
    size = Sq if axis == "q" else Sk
    offset = draw(st.sampled_from((0, 0, 0, Sk - Sq, 1, -2)))
    way = draw(st.sampled_from(("arange", "arange start", "cumsum", "position ids")))
    if way == "arange start" or offset < 0:
        x = p.emit(torch.arange, offset, offset + size)
    elif way == "cumsum":
        ones = p.emit(torch.ones, size, dtype=torch.int64)
        x = p.emit(operator.add, p.emit("cumsum", ones, -1), offset - 1)
    else:
        x = p.emit(operator.add, p.emit(torch.arange, size), offset)
    if way == "position ids":
        x = p.emit("expand", p.emit("unsqueeze", x, 0), p.sizes[0], -1)
        return p.emit(operator.getitem, x, (slice(None), None, *_slots(axis)))
    return p.emit(operator.getitem, x, (None, None, *_slots(axis)))


def _slots(axis: str) -> tuple[Any, Any]:
    return (slice(None), None) if axis == "q" else (None, slice(None))


def rule(p: Program, draw: Draw) -> Node:
    """A bool condition on q and k that reads no input."""
    q, k = index(p, draw, "q"), index(p, draw, "k")
    kind = draw(st.sampled_from(("compare", "compare", "distance", "chunk", "triangle", "prefix", "full", "vmap")))
    n = draw(st.integers(-2, 4))
    if kind == "compare":
        test = draw(st.sampled_from((operator.le, operator.lt, operator.ge, operator.gt, operator.eq, operator.ne)))
        return p.emit(test, p.emit(operator.add, k, n), q)
    if kind == "distance":
        test = draw(st.sampled_from((torch.le, torch.lt, torch.gt)))
        return p.emit(test, p.emit(torch.sub, q, k), n)
    if kind == "chunk":
        size = draw(st.integers(1, 4))
        test = draw(st.sampled_from((operator.eq, operator.ge)))
        return p.emit(test, p.emit(operator.floordiv, q, size), p.emit(operator.floordiv, k, size))
    if kind == "triangle":
        name = draw(st.sampled_from(("tril", "triu")))
        dtype = draw(st.sampled_from((torch.bool, torch.float32, torch.int64)))
        ones = p.emit(torch.ones, p.sizes[2], p.sizes[3], dtype=dtype)
        triangle = p.emit(getattr(torch, name), ones, diagonal=n)
        return triangle if dtype == torch.bool else p.emit("to", triangle, torch.bool)
    if kind == "prefix":
        return p.emit(operator.lt, k, n + 1)
    if kind == "full":
        return p.emit(torch.full, (p.sizes[2], p.sizes[3]), bool(n % 2))
    return _vmapped(p, draw, n)


def _vmapped(p: Program, draw: Draw, n: int) -> Node:
    """What ``torch.vmap`` over q and over k of ``q + n >= k`` leaves in a graph, spelled without the transform."""
    q = p.emit("unsqueeze", p.emit(torch.arange, p.sizes[2]), 1)
    k = p.emit("unsqueeze", p.emit(torch.arange, p.sizes[3]), 0)
    return p.emit(torch.ge, p.emit(operator.add, q, n), k)


def data(p: Program, draw: Draw) -> Node:
    """A bool condition that reads an input."""
    B, H, Sq, Sk = p.sizes
    generator = torch.Generator().manual_seed(draw(st.integers(0, 5)))

    def random(*shape: int, high: int = 2) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    kind = draw(st.sampled_from(("padding", "padding ints", "gathered", "segments", "tensor", "queries", "heads")))
    if kind == "padding":
        return p.emit(operator.getitem, p.input(random(B, Sk).bool()), (slice(None), None, None, slice(None)))
    if kind == "padding ints":
        way = draw(st.sampled_from(("to", "ne", "gt", "eq")))
        x = p.input(random(B, Sk))
        test = p.emit("to", x, torch.bool) if way == "to" else p.emit(getattr(operator, way), x, 0)
        return p.emit(operator.getitem, test, (slice(None), None, None, slice(None)))
    if kind == "gathered":
        b = p.emit(operator.getitem, p.emit(torch.arange, B), (slice(None), None, None, None))
        k = p.emit(operator.getitem, p.emit(torch.arange, Sk), (None, None, None, slice(None)))
        return p.emit(operator.getitem, p.input(random(B, Sk).bool()), (b, k))
    if kind == "segments":
        ids = p.input(random(B, max(Sq, Sk), high=3))
        left = p.emit(operator.getitem, ids, (slice(None), None, slice(None, Sq), None))
        right = p.emit(operator.getitem, ids, (slice(None), None, None, slice(None, Sk)))
        return p.emit(draw(st.sampled_from((operator.eq, operator.le, operator.ne))), left, right)
    if kind == "tensor":
        return p.input(random(B, 1, Sq, Sk).bool())
    if kind == "queries":
        return p.emit("view", p.input(random(B, Sq).bool()), B, 1, Sq, 1)
    return p.emit("reshape", p.input(random(H).bool()), (1, H, 1, 1))


def boolean(p: Program, draw: Draw, depth: int) -> Node:
    """A bool mask."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return (rule if draw(st.booleans()) else data)(p, draw)
    kind = draw(st.sampled_from(("and", "or", "not", "where", "odd", "fill", "view")))
    left = boolean(p, draw, depth - 1)
    if kind in ("and", "or"):
        right = boolean(p, draw, depth - 1)
        op = {"and": (operator.and_, torch.logical_and, torch.mul), "or": (operator.or_, torch.logical_or)}[kind]
        return p.emit(draw(st.sampled_from(op)), left, right)
    if kind == "not":
        return p.emit(draw(st.sampled_from((operator.invert, torch.logical_not))), left)
    if kind == "where":
        return p.emit(torch.where, left, boolean(p, draw, depth - 1), boolean(p, draw, depth - 1))
    if kind == "fill":
        return _filled_in_place(p, draw, left, boolean(p, draw, depth - 1))
    return _viewed(p, draw, left) if kind == "view" else _outside(p, draw, left)


def _filled_in_place(p: Program, draw: Draw, left: Node, test: Node) -> Node:
    full = p.emit("clone", p.emit("expand", left, *p.sizes))
    if draw(st.booleans()):
        p.emit("masked_fill_", full, test, draw(st.booleans()))
    else:
        Sk = p.sizes[3]
        start, end = draw(st.integers(-Sk, Sk - 1)), draw(st.integers(1, 6))
        part = draw(st.sampled_from((slice(None, min(end, Sk)), slice(start, None), start)))
        p.emit(operator.setitem, full, (Ellipsis, part), draw(st.booleans()))
    return full


def _viewed(p: Program, draw: Draw, x: Node) -> Node:
    full = p.emit("expand", x, *p.sizes)
    B, H, Sq, Sk = p.sizes
    way = draw(st.sampled_from(("fold", "transpose", "cat", "flip", "roll", "repeat", "slice", "pad")))
    if way == "fold":
        return p.emit("view", p.emit("reshape", full, B * H, Sq, Sk), B, H, Sq, Sk)
    if way == "transpose":
        turned = p.emit("contiguous", p.emit("transpose", full, 2, 3))
        return p.emit("transpose", turned, -1, -2)
    if way == "cat":
        at = draw(st.integers(0, Sk))
        left = p.emit(operator.getitem, full, (Ellipsis, slice(None, at)))
        right = p.emit(operator.getitem, full, (Ellipsis, slice(at, None)))
        return p.emit(torch.cat, (left, right) if draw(st.booleans()) else (right, left), dim=-1)
    if way == "flip":
        return p.emit(torch.flip, full, (draw(st.integers(-2, -1)),))
    if way == "roll":
        return p.emit(torch.roll, full, draw(st.integers(-3, 3)), -1)
    if way == "repeat":
        once = p.emit(operator.getitem, full, (slice(None, 1), slice(None, 1)))
        return p.emit("repeat", once, B, H, 1, 1)
    padded = p.emit(F.pad, full, (1, 2), value=draw(st.booleans()))
    start = draw(st.integers(0, 3))
    if way == "slice":
        return p.emit(operator.getitem, padded, (Ellipsis, slice(start, start + Sk)))
    return p.emit("narrow", padded, -1, start, Sk)


def _outside(p: Program, draw: Draw, x: Node) -> Node:
    """What the grammar does not know, or must not be fooled by: single bits, transposition, unknown functions."""
    _, _, Sq, Sk = p.sizes
    full = p.emit("clone", p.emit("expand", x, *p.sizes))
    way = draw(st.sampled_from(("bit", "transposed", "unknown", "cummax", "alias", "later write", "sorted")))
    row, column = draw(st.integers(0, Sq - 1)), draw(st.integers(0, Sk - 1))
    if way == "bit":
        inside = (Ellipsis, row, column - Sk)
        if draw(st.booleans()):
            inside = (Ellipsis, slice(row, row + 1), slice(column, column + 1))
        flipped = p.emit(operator.invert, p.emit("clone", p.emit(operator.getitem, full, inside)))
        p.emit(operator.setitem, full, inside, flipped)
        return full
    if way == "transposed" and Sq == Sk:
        return p.emit("transpose", full, 2, 3)
    if way == "unknown":
        return p.emit("to", p.emit(torch.sin, p.emit("float", full)), torch.bool)
    if way == "cummax":
        return p.emit("to", p.emit("cumsum", p.emit("int", full), -1), torch.bool)
    if way == "alias":  # a write through a view
        p.emit("zero_", p.emit(operator.getitem, full, (Ellipsis, slice(column, None))))
        return full
    if way == "later write":  # the mask is made from a value that changes afterwards
        taken = p.emit(operator.and_, full, p.emit(torch.ones, (), dtype=torch.bool))
        p.emit("fill_", full, draw(st.booleans()))
        return taken
    return p.emit(operator.eq, p.emit(torch.argsort, p.emit("int", full), dim=-1), 0)


def additive(p: Program, draw: Draw) -> Node:
    """A bool mask as 0 and a low number, in one of the ways that models write it; perhaps with a bias."""
    test = boolean(p, draw, 2)
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.bfloat16, torch.float16)))
    low = draw(st.sampled_from((float("-inf"), float("-inf"), torch.finfo(dtype).min, -1e4)))
    way = draw(st.sampled_from(("where", "masked_fill", "inverted", "in place", "float")))
    if way == "where":
        mask = p.emit(torch.where, test, p.emit(torch.tensor, 0.0, dtype=dtype), low)
    elif way == "masked_fill":
        zeros = p.emit(torch.zeros, p.sizes, dtype=dtype)
        mask = p.emit("masked_fill", zeros, p.emit(operator.invert, test), low)
    elif way == "inverted":
        ones = p.emit(operator.sub, 1.0, p.emit("to", test, dtype))
        mask = p.emit(operator.mul, ones, torch.finfo(dtype).min if low == float("-inf") else low)
    elif way == "in place":
        mask = p.emit(torch.full, p.sizes, low, dtype=dtype)
        p.emit("masked_fill_", mask, test, 0.0)
    else:
        inverted = p.emit("to", p.emit(operator.invert, test), dtype)
        mask = p.emit("masked_fill", inverted, p.emit("to", inverted, torch.bool), low)
    if draw(st.booleans()):
        shape = draw(st.sampled_from(((1, p.sizes[1], p.sizes[2], p.sizes[3]), (p.sizes[1], 1, p.sizes[3]))))
        bias = p.input(torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype))
        mask = p.emit(operator.add, *((mask, bias) if draw(st.booleans()) else (bias, mask)))
    return mask
