"""Emit nodes: insert an ATen op, and at once compute the fake value that it has in the user's program.

Every kernel builds its replacement through an `Emitter`. So each new node has a shape, dtype and strides that were
computed, not assumed, and `attnpass.emit.layout.restore_layout` can hold the output to what the replaced node had.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._subclasses import FakeTensorMode
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from attnpass.graph.operand import Operand
from attnpass.graph.symbolic import is_hashable
from attnpass.graph.tensor import TensorSpec
from attnpass.graph.values import unwrapped, value_of
from attnpass.ir.limits import Rejection
from attnpass.ir.meaning import Meaning

aten = torch.ops.aten
T = TypeVar("T")
Emitted = Node | tuple[Node, Node]  # the output of a kernel, or that and its log-sum-exp
COPIED_META = ("stack_trace", "nn_module_stack", "source_fn_stack", "custom")  # the last: torch.fx.traceback.annotate


class EmitRefusedError(Exception):
    """A kernel turned out not to fit while it was being emitted; the call is kept and the reason reported."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(str(rejection))
        self.rejection = rejection


class Emitter:
    """Inserts nodes before ``anchor`` in the graph of ``owner``.

    Attributes:
        owner: the module whose graph is being rewritten.
        made: the nodes inserted so far, in order.
        shared: values that later calls of the same graph may reuse, such as block masks, by key.
        mode: the fake tensor mode of the values.
        epoch: how many writes the program makes before this place: at two places of one epoch, tensors are the same.
    """

    def __init__(self, owner: GraphModule, anchor: Node, shared: dict[Any, Any] | None = None, epoch: int = 0) -> None:
        self.owner = owner
        self.epoch = epoch
        self.made: list[Node] = []
        self.shared: dict[Any, Any] = {} if shared is None else shared
        self._anchor = anchor
        self._value_key = "example_value" if "example_value" in anchor.meta else "val"
        self.mode: FakeTensorMode = unwrapped(value_of(anchor)).fake_mode

    def __call__(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """Insert ``op(*args, **kwargs)`` and compute its value, once for equal operands of static size.

        A composite op runs some 25 ops on fake tensors; for the same call in each of 32 layers that is 3 ms a call.
        """
        key = self._key(op, args, kwargs)
        if key not in self.shared:
            with self.mode, torch.no_grad():
                read_args, read_kwargs = pytree.tree_map_only(Node, self.value, (args, kwargs))
                self.shared[key] = op(*read_args, **read_kwargs)
        return self._insert("call_function", op, args, kwargs, self.shared[key])

    def _key(self, op: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What decides the value of a call: the op and its operands' metadata; unique where a size is symbolic."""

        def facts(node: Node) -> Any:
            value = self.value(node)
            return TensorSpec.of(value) if isinstance(value, torch.Tensor) else value

        leaves, tree = pytree.tree_flatten((args, kwargs))
        key = (op, tree, *(facts(leaf) if isinstance(leaf, Node) else (type(leaf), leaf) for leaf in leaves))
        return key if is_hashable(key) else object()

    def apply(self, operand: Operand[Node]) -> Node:
        """The node of an operand behind its steps; Inductor merges what is equal."""

        def read(argument: Any) -> Any:
            return self.apply(argument) if isinstance(argument, Operand) else argument

        node = operand.node
        for step in operand.steps:
            node = self(step.op, *step.arguments(node, read))
        return node

    def item(self, node: Node, index: int) -> Node:
        """``node[index]`` of a node with several outputs."""
        return self._insert("call_function", operator.getitem, (node, index), {}, self.value(node)[index])

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make()`` inserts and gives; later calls of this graph with an equal ``key`` get the same.

        What is shared is not one call's to undo.
        """
        place = (id(self.owner), key)
        if place not in self.shared:
            first = len(self.made)
            self.shared[place] = make()
            del self.made[first:]
        made: T = self.shared[place]
        return made

    def submodule(self, name: str, make: Callable[[], GraphModule], *key: Any) -> Node:
        """Insert a node that reads the graph module ``make()``; calls of one graph with an equal ``key`` share it."""

        def added() -> str:
            free = next(n for n in (f"{name}_{i}" for i in itertools.count()) if not hasattr(self.owner, n))
            self.owner.add_submodule(free, make())
            return free

        free = self.once((name, *key), added)
        return self._insert("get_attr", free, (), {}, getattr(self.owner, free))

    def examples(self, nodes: Iterable[Node]) -> list[Any]:
        """Values of nodes to trace on, each its own: equal values are shared, and tracers tell inputs by identity."""
        with self.mode:
            return [torch.empty_like(value) if torch.is_tensor(value) else value for value in map(self.value, nodes)]

    def within(self, make: Callable[[], GraphModule]) -> Callable[[], GraphModule]:
        """``make``, run on the fake tensors of this graph."""

        def run() -> GraphModule:
            with self.mode, torch.no_grad():
                return make()

        return run

    def value(self, node: Node) -> Any:
        """The fake value of a node (inside vmap, of one example); of a node that reads a graph module, the module."""
        if node.op == "get_attr":
            return getattr(self.owner, str(node.target))
        value = value_of(node)
        if unwrapped(value) is value:
            return value
        with self.mode:  # what vmap left behind cannot be computed with once its level is gone
            shape, stride = tuple(value.shape), tuple(value.stride())
            return torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)

    def spec(self, node: Node) -> TensorSpec:
        return TensorSpec.of(self.value(node))

    def size(self, node: Node, dim: int) -> int | Node:
        """A size as an argument for an op: the number if it is one, else the node that reads it."""
        size = self.value(node).shape[dim]
        return size if isinstance(size, int) else self(aten.sym_size.int, node, dim % self.value(node).ndim)

    def cast(self, node: Node, dtype: torch.dtype) -> Node:
        """``node`` in ``dtype``; nothing is emitted if it is."""
        return node if self.value(node).dtype == dtype else self(aten._to_copy.default, node, dtype=dtype)

    def inline(self, function: Callable[..., Any], *inputs: Node) -> Any:
        """Trace ``function`` on the values of ``inputs`` and insert its ATen ops. Returns its outputs as nodes."""
        with self.mode, torch.no_grad():
            body = make_fx(function)(*self.examples(inputs))
        env: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), inputs, strict=True))
        for node in body.graph.nodes:
            if node.op == "output":
                return pytree.tree_map_only(Node, env.__getitem__, node.args[0])
            if node.op == "call_function":
                args, kwargs = pytree.tree_map_only(Node, env.__getitem__, (node.args, node.kwargs))
                env[node] = self._insert("call_function", node.target, args, kwargs, node.meta.get("val"))
        raise AssertionError("a traced graph has an output")

    def behind(self, node: Node, op: Callable[..., Any], *args: Any) -> Node:
        """Insert ``op(*args)`` behind ``node``, which it reads."""
        made = self(op, *args)
        node.append(made)
        return made

    @contextmanager
    def without_autocast(self, device_type: str, active: bool) -> Iterator[None]:
        """Switch autocast off around the nodes emitted inside, if it is ``active`` at this place."""
        if not active:
            yield
            return
        enter = self._insert("call_function", _enter_autocast, (device_type, None, False, None), {}, None)
        yield
        self._insert("call_function", _exit_autocast, (enter,), {}, None)

    def undo(self) -> None:
        """Take back everything that was inserted and is not shared."""
        for node in reversed(self.made):
            if not node.users:
                self.owner.graph.erase_node(node)
        self.made.clear()

    def _insert(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> Node:
        with self.owner.graph.inserting_before(self._anchor):
            node = self.owner.graph.create_node(op, target, tuple(args), dict(kwargs))
        if value is not None and op != "get_attr":
            node.meta[self._value_key] = value
        for key in COPIED_META:
            if key in self._anchor.meta:
                node.meta[key] = self._anchor.meta[key]
        self.made.append(node)
        return node


def additive_mask(emitter: Emitter, mask: Node, dtype: torch.dtype) -> Node:
    """A bool mask (True = take part) as 0 and -inf, or an additive one, in ``dtype``."""
    value = emitter.value(mask)
    if value.dtype != torch.bool:
        return emitter.cast(mask, dtype)
    zero = emitter(aten.full.default, [], 0.0, dtype=dtype, device=value.device)
    hidden = emitter(aten.full.default, [], float("-inf"), dtype=dtype, device=value.device)
    return emitter(aten.where.self, mask, zero, hidden)


@dataclass(frozen=True, slots=True)
class Operands:
    """The nodes that a kernel is emitted from: 4-D, BHSD, in the dtype that it computes in, autocast already applied.

    Attributes:
        q: (B, H, Sq, D).
        k: (B, Hkv, Sk, D).
        v: (B, Hkv, Sk, Dv).
        mask: bool (True = take part) or additive, 4-D with each size 1 or full; None if the mask is only a rule.
        scale: factor on the scores; None (1/sqrt(D)) only where the head dim is symbolic.
        sinks: (H,), or None.
        meaning: what a proved mask means, for kernels that compute masks by functions; None without such a mask.
        heads_first: the program expects the output stored as (B, H, Sq, Dv), and a kernel that stores it so spares it a
            copy. Told only to kernels with `Kernel.stores_as_asked`.
    """

    q: Node
    k: Node
    v: Node
    mask: Node | None
    scale: float | None
    sinks: Node | None = None
    meaning: Meaning | None = None
    heads_first: bool = False
