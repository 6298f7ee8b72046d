"""From nodes of a graph to arrays: what each element of a mask is, read backwards from the call.

A node whose meaning is not known is not an end: its value is read when the program runs (`Load`), and why is kept in
`Tracer.stops`. In-place writes are followed where the tensor that is written is the very one that is read, and are a
reason to stop elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from attnpass.masks.arrays import Array, Index, Like, axis_of
from attnpass.masks.elements import StopError
from attnpass.masks.expr import Expr, Lin, Load, axis
from attnpass.masks.indexing import indexed, sliced
from attnpass.masks.logic import loads_of
from attnpass.masks.meanings.table import MEANINGS
from attnpass.masks.substitute import substituted
from attnpass.patterns.canonical import function_name, spelled
from attnpass.patterns.sdpa import unwrapped, value_of
from attnpass.patterns.wiring import Operand
from attnpass.symbolic import Size
from attnpass.writes import Writes, may_write

Constants = Callable[[Node], "Array | None"]
PARTS = ("chunk", "split", "unbind", "split_with_sizes", "tensor_split")


def is_pure(node: Node) -> bool:
    """Does this node do nothing but give a value? True only for operations whose meaning is known."""
    return node.op in ("call_function", "call_method") and spelled(node) in MEANINGS and not may_write(node)


@dataclass(slots=True)
class Tracer:
    """Reads the masks of one graph.

    Attributes:
        graph: the graph that holds the calls.
        constants: the array of an input whose values may be assumed, or None.
        outside: of a placeholder of a body: the node that is passed for it, the tracer of that node's graph, and the
            node there that runs the body.
        loads_outside: may values be read that the outer graph made?
        stops: why the meaning of a node is not known, by node.
    """

    graph: Graph
    constants: Constants = lambda _: None
    outside: dict[Node, tuple[Node, Tracer, Node]] = field(default_factory=dict)
    loads_outside: bool = False
    stops: dict[Node, str] = field(default_factory=dict)
    _writes: Writes | None = None
    _arrays: dict[tuple[Node, Node | None, int], Array] = field(default_factory=dict)

    @property
    def writes(self) -> Writes:
        if self._writes is None:
            self._writes = Writes.of(self.graph)
        return self._writes

    def operand(self, operand: Operand, place: Node) -> Array:
        """The array that a call at ``place`` reads as ``operand``."""
        array = self.array(operand.node, self.writes.position[place], self.writes.position[place])
        value = value_of(operand.node)
        mode = getattr(unwrapped(value), "fake_mode", None)
        if mode is None:  # a constant beside the graph
            mode = FakeTensorMode()
            value = mode.from_tensor(value)
        for step in operand.steps:
            with mode, torch.no_grad():
                value = step.op(value, *pytree.tree_map_only(Node, value_of, step.args))
            array = MEANINGS[function_name(step.op)](
                _like(value), array, *pytree.tree_map_only(Node, value_of, step.args)
            )
        return array

    def array(self, node: Node, when: int, place: int) -> Array:
        """The array that ``node`` is for who reads it at position ``when``, on behalf of the call at ``place``."""
        later = self.writes.between(node, self.writes.position[node], when)
        # What may be read on behalf of a call depends on what is written before it.
        key = (node, later[-1] if later else None, self.writes.before(place))
        if key not in self._arrays:
            array = self._array(node, later, when, place)
            self._arrays[key] = array
        return self._arrays[key]

    def _array(self, node: Node, later: list[Node], when: int, place: int) -> Array:
        like = _like(value_of(node))

        def element(index: Index) -> Expr:
            try:
                if later:
                    return self._written(node, later[-1], like, place).at(index)
                return self._meaning(node, like, place).at(index)
            except StopError as stop:
                self.stops.setdefault(node, str(stop))
                return self._load(node, index, when, place)

        return like.made_of(element)

    def _meaning(self, node: Node, like: Like, place: int) -> Array:
        if node in self.outside:
            return self._from_outside(node, like)
        known = self.constants(node)
        if known is not None:
            return known
        if node.op in ("placeholder", "get_attr"):
            raise StopError("an input")
        name = spelled(node)
        if name in ("getitem", "unbind") and isinstance(value_of(node.args[0]), (tuple, list)):  # type: ignore[arg-type]
            return self._part(node, like, place)
        return self._call(node, name, like, place)

    def _call(self, node: Node, name: str, like: Like, place: int) -> Array:
        if name in ("_add_batch_dim", "_remove_batch_dim"):
            return self._mapped(node, name, like, place)
        if name not in MEANINGS:
            raise StopError(f"{name} has no meaning here")
        args, kwargs = self._arguments(node, place)
        try:
            result = MEANINGS[name](like, *args, **kwargs)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise StopError(f"{name} is called in a way that is not known here: {error}") from error
        if not isinstance(result, Array):
            raise StopError(f"{name} gives no tensor")
        return result

    def _arguments(self, node: Node, place: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        position = self.writes.position[node]

        def read(operand: Node) -> Any:
            value = value_of(operand)
            return self.array(operand, position, place) if isinstance(value, torch.Tensor) else value

        return map_arg(node.args, read), map_arg(node.kwargs, read)  # which looks into slices too

    def _written(self, node: Node, write: Node, like: Like, place: int) -> Array:
        """``node`` behind the last write into its memory."""
        if not write.args or write.args[0] is not node or write.op == "call_module":
            raise StopError(f"{write.name} writes into memory that it shares")
        return self._call(write, spelled(write), like, place)

    def _from_outside(self, node: Node, like: Like) -> Array:
        outer, tracer, runs = self.outside[node]
        place = tracer.writes.position[runs]
        array = tracer.array(outer, place, place)

        def element(index: Index) -> Expr:
            found = array.at(index)
            if loads_of(found) and not self.loads_outside:
                raise StopError(tracer.stops.get(outer, "made outside of the body"))
            return found

        return like.made_of(element)

    def _part(self, node: Node, like: Like, place: int) -> Array:
        """One output of ``chunk``, ``split`` or ``unbind``."""
        source, which = node.args
        if not isinstance(source, Node) or spelled(source) not in PARTS or not isinstance(which, int):
            raise StopError(f"one of several results of {source}")
        args, kwargs = self._arguments(source, place)
        x, dim = args[0], kwargs.get("dim", args[2] if len(args) > 2 else 0)
        if spelled(source) == "unbind":
            dim = axis_of(x, kwargs.get("dim", args[1] if len(args) > 1 else 0))
            return indexed(x, [slice(None)] * dim + [which], like)
        parts = value_of(source)
        start: Size = sum((part.shape[dim] for part in parts[: which % len(parts)]), start=0)
        return sliced(x, like, dim, start, 1)

    def _mapped(self, node: Node, name: str, like: Like, place: int) -> Array:
        """``vmap``: inside, the mapped dimension is an axis of its own; outside, that axis is the index asked for."""
        args, _ = self._arguments(node, place)
        if name == "_add_batch_dim":
            x, dim, level = args
            there = axis(f"vmap {level}")
            return like.made_of(lambda index: x.at((*index[:dim], there, *index[dim:])))
        x, level, _, dim = args

        def element(index: Index) -> Expr:
            at = index[dim]
            if not isinstance(at, Lin):
                raise StopError(f"a mapped dimension at {at}")
            return substituted(x.at((*index[:dim], *index[dim + 1 :])), f"vmap {level}", at)

        return like.made_of(element)

    def _load(self, node: Node, index: Index, when: int, place: int) -> Expr:
        """Read the element when the program runs: what the call finds there must be what the reader found.

        Raises:
            StopError: the tensor may have changed since, or exists only inside a transform.
        """
        value = value_of(node)
        if unwrapped(value) is not value:
            raise StopError(f"{node.name} exists only inside a transform")
        if self.writes.between(node, when - 1, place):
            raise StopError(f"{node.name} may change before the call")
        return Load(node, index, value.dtype)


def _like(value: Any) -> Like:
    if not isinstance(value, torch.Tensor):
        raise StopError("no tensor")
    return Like(tuple(value.shape), value.dtype)
