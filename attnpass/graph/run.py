"""A program run node by node on fake tensors, its bodies in the place of the ops that run them.

What the dispatcher does not see is a node that may have written whatever it was handed: one that fails on fake tensors,
a higher-order op without a body. A body that runs at one place, on operands as they are, is part of the program there.
One that runs at several places, or in a loop, is read by itself behind the program.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.attention import _sdpa_kernel
from torch.utils import _pytree as pytree

from attnpass.graph.dispatch import leave_functorch
from attnpass.graph.memory import Memory
from attnpass.graph.record import ChangesShapesError, Recorder
from attnpass.graph.regions import PASSES_ON, Region, bodies_of, given_to, name_of_higher_order
from attnpass.graph.shortcuts import SYMBOLIC, known_call, known_number, lies_as_captured
from attnpass.graph.value import Value
from attnpass.graph.values import attribute, value_of

logger = logging.getLogger(__name__)
SKIPPED = frozenset(
    {_sdpa_kernel, torch.autograd.grad_mode._enter_inference_mode, torch.autograd.grad_mode._exit_inference_mode}
    | {torch._C._set_grad_enabled}
)
INLINE = PASSES_ON - {"cond"}  # of `cond`, one of two bodies runs
PURE = frozenset({"flex_attention", "flex_attention_backward"})  # their bodies are index arithmetic
NUMBERS = (*SYMBOLIC, bool, int, float)

Opener = Callable[[GraphModule, Node], "GraphModule | None"]
Sites = list["Sequence[Any] | None"]


@dataclass(frozen=True, slots=True)
class Program:
    """What is known of a program before it runs.

    Attributes:
        mode: the fake tensor mode of its values.
        regions: the state around each node, also in bodies.
        uses: how many nodes run each body.
        open_up: the computation inside an opaque node as a graph of its own, or None.
        borrows: may captured values be used as they are? Not where the program changes shapes in place.
    """

    mode: FakeTensorMode
    regions: Mapping[Node, Region]
    uses: Mapping[GraphModule, int]
    open_up: Opener
    borrows: bool = True


class _Missing:
    """The value of a node that did not run and of which the capture says nothing."""


@dataclass(slots=True)
class Runner:
    """Runs a program once.

    Attributes:
        program: what is known of it.
        recorder: is told what runs.
        places: the place in the program of each node that ran.
        outputs: values that are given to somebody outside.
        inputs: tensors that come from outside.
        opened: the graphs of opaque nodes that were opened, and the graphs that they stand in.
        later: bodies that were not run in their place: for each op that runs them, the values that it gives them.
    """

    program: Program
    recorder: Recorder = field(default_factory=lambda: Recorder(Memory()))
    places: dict[Node, int] = field(default_factory=dict)
    outputs: list[Value] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    opened: dict[Graph, Graph] = field(default_factory=dict)
    later: dict[GraphModule, Sites] = field(default_factory=dict)
    _attributes: dict[int, Tensor] = field(default_factory=dict)
    _writing_bodies: dict[GraphModule, bool] = field(default_factory=dict)
    _lost: bool = False
    _again: bool = False

    @property
    def memory(self) -> Memory:
        return self.recorder.memory

    def run(self, gm: GraphModule, values: Sequence[Value | None] | None = None) -> bool:
        """Run a graph on inputs of its own; ``values`` are what some of them hold. Does it write to its inputs?"""
        placeholders = gm.graph.find_nodes(op="placeholder")
        inputs = [self.fresh(value_of(node)) for node in placeholders]
        for tensor, value in zip(inputs, values or (), strict=False):
            if isinstance(tensor, Tensor) and isinstance(value, Value):
                self.memory.hold(tensor, value)
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        self.inputs += tensors
        result = self._graph(gm, inputs)
        self.outputs += [self.memory.value(each) for each in plain_tensors(result)]
        return any(self.memory.held(tensor).storage.writes for tensor in tensors)

    def fresh(self, value: Any) -> Any:
        """A tensor of its own in the memory of a captured one, so that running leaves the capture as it is."""
        if not isinstance(value, Tensor):
            return value
        self.recorder.silent = True
        try:
            if not isinstance(value, FakeTensor) and type(value) in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
                value = self.program.mode.from_tensor(value)
            return value.data  # with a version counter of its own, unlike `detach()`
        finally:
            self.recorder.silent = False

    def _graph(self, gm: GraphModule, inputs: Sequence[Any]) -> Any:
        env: dict[Node, Any] = {}
        given = iter(inputs)
        for node in gm.graph.nodes:
            self._begin(node)
            if node.op == "output":
                return map_arg(node.args[0], lambda n: env[n])
            if node.op == "placeholder":
                env[node] = self._input(next(given))
            elif node.op == "get_attr":
                env[node] = self._attribute(gm, node)
            else:
                env[node] = self._call(gm, node, env)
            if isinstance(env[node], Tensor) and plain_tensors(env[node]) and not self._again:
                self.memory.held(env[node]).nodes.append(node)
        return None

    def _begin(self, node: Node) -> None:
        if not self._again:
            self.memory.place += 1
            self.memory.maker = node
            self.places[node] = self.memory.place

    def _input(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not self.memory.holds(value):
            self.memory.hold(value, self.memory.leaf(value, "an input"))
        return value

    def _attribute(self, gm: GraphModule, node: Node) -> Any:
        found = attribute(gm, str(node.target))
        if not isinstance(found, Tensor):
            return found
        if id(found) not in self._attributes:
            tensor = self.fresh(found)
            self._attributes[id(found)] = tensor
            self.inputs.append(tensor)
            constant = found if "_tensor_constant" in str(node.target) and type(found) is Tensor else None
            self.memory.hold(tensor, self.memory.leaf(tensor, "an attribute of the model", constant))
        return self._attributes[id(found)]

    def _call(self, gm: GraphModule, node: Node, env: dict[Node, Any]) -> Any:
        if node.target in SKIPPED:
            return None
        given = [env[n] for n in node.all_input_nodes]
        args, kwargs = (map_arg(each, lambda n: env[n]) for each in (node.args, node.kwargs))  # into slices too
        handed = plain_tensors(given)
        for each in handed:  # so that it is known what each operand holds here
            self.memory.value(each)
        self._lost = self._lost and bool(self.program.regions[node].functorch)
        if self._lost or any(isinstance(each, _Missing) for each in given):
            return self._unknown(node, handed)
        if isinstance(node.target, HigherOrderOperator):
            return self._higher_order(gm, node, (args, kwargs), handed)
        body = self.program.open_up(gm, node)
        if body is not None:
            self.opened[body.graph] = gm.graph
            return self._graph(body, given)
        return self._run(gm, node, args, kwargs, handed)

    def _run(self, gm: GraphModule, node: Node, args: Any, kwargs: Any, handed: Sequence[Tensor]) -> Any:
        known = value_of(node)
        if known_number(node, known):
            return known
        if self._is_borrowed(node, args, kwargs, known):
            return known
        symbols = self._symbols()
        try:
            result = _function(gm, node, args)(*args, **kwargs)
        except DataDependentOutputException:
            if isinstance(value_of(node), NUMBERS) and not _is_foreign(node):
                return value_of(node)  # `item()`: a read
            return self._unknown(node, handed)
        except ChangesShapesError:
            raise
        except Exception:  # it ran when it was captured, so what does not work here is this run
            logger.debug("`%s` does not run on fake tensors; nothing is known of it", node.name, exc_info=True)
            self._lost = bool(self.program.regions[node].functorch)
            leave_functorch(0)
            return self._unknown(node, handed)
        if self._symbols() != symbols:
            return self._stand_in(node, "its size is decided at run time")
        if isinstance(known, SYMBOLIC):
            return known
        if isinstance(known, Tensor) and known.requires_grad and _is_foreign(node):
            return self._stand_in(node, f"`{node.name}` may have gradients of its own")
        return result

    def _is_borrowed(self, node: Node, args: Any, kwargs: Any, known: Any) -> bool:
        """Does the value of the capture do for a node, so that it need not run?"""
        region = self.program.regions[node]
        if not self.program.borrows or region.autocast or region.functorch:
            return False
        call = known_call(node, args, kwargs)
        if call is None or self.memory.holds(known) or not lies_as_captured(node, args[0]):
            return False
        self.recorder.known(*call, known)
        return True

    def _symbols(self) -> int:
        """Counts up with each size that is decided at run time."""
        env: Any = self.program.mode.shape_env
        return 0 if env is None else int(env.counter["create_unbacked_symbol"])

    def _stand_in(self, node: Node, why: str) -> Any:
        """The result of a node as the capture has it."""

        def made(value: Any) -> Any:
            tensor = self.fresh(value)
            if isinstance(tensor, Tensor):
                self.memory.hold(tensor, self.memory.leaf(tensor, why))
            return tensor

        return _Missing() if value_of(node) is None else pytree.tree_map(made, value_of(node))

    def _unknown(self, node: Node, handed: Sequence[Tensor]) -> Any:
        """A node of which nothing is known: it reads, and may write, everything that it was handed."""
        self._reads(node, handed)
        for each in handed:
            self.memory.overwrite(each, f"`{node.name}` may write to it")
        return self._stand_in(node, f"`{node.name}` is not known")

    def _reads(self, node: Node, handed: Sequence[Tensor]) -> None:
        values = tuple(map(self.memory.value, handed))
        target = node.target if callable(node.target) else str
        self.recorder.effect(self.memory.add(target, values, {}, None))

    def _higher_order(self, gm: GraphModule, node: Node, given: Any, handed: Sequence[Tensor]) -> Any:
        name, bodies = name_of_higher_order(node.target), bodies_of(gm, node)
        if name in PURE:
            bodies = []
        elif not bodies or name is None:
            return self._unknown(node, handed)
        elif name in INLINE:
            operands = _operands(node, bodies[0], given)
            if operands is not None:
                return self._in_place(bodies[0], operands, _around(name, given[0]))
        self._reads(node, handed)
        for body in bodies:
            self._put_off(body, _operands(node, body, given))
        if any(map(self._writes, bodies)):
            for each in handed:
                self.memory.overwrite(each, f"`{node.name}` may write to it")
        return self._stand_in(node, f"made by `{name}`")

    def _in_place(self, body: GraphModule, operands: Sequence[Any], state: AbstractContextManager[Any]) -> Any:
        """Run a body where it stands. Of one that runs at several places, the nodes are named when it is read alone."""
        again, shared = self._again, self.program.uses.get(body, 0) > 1
        if shared:
            self._put_off(body, operands)
        self._again = again or shared
        try:
            with state:
                return self._graph(body, operands)
        finally:
            self._again = again

    def _put_off(self, body: GraphModule, operands: Sequence[Any] | None) -> None:
        values = operands and [self.memory.value(x) if isinstance(x, Tensor) else None for x in operands]
        self.later.setdefault(body, []).append(values)

    def _writes(self, body: GraphModule) -> bool:
        """Does a body write to what it is given? Verdict by running it on tensors that nobody else reads."""
        if body not in self._writing_bodies:
            known = all(value_of(node) is not None for node in body.graph.find_nodes(op="placeholder"))
            scratch = Runner(self.program)
            self._writing_bodies[body] = True
            with self.recorder.told_to(scratch.recorder):
                self._writing_bodies[body] = not known or scratch.run(body)
        return self._writing_bodies[body]


def plain_tensors(value: Any) -> list[Tensor]:
    """The tensors in a value that are not wrapped by functorch."""
    if type(value) is FakeTensor:
        return [value]
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return [each for each in pytree.tree_leaves(value) if isinstance(each, Tensor) and not wrapped(each)]


def _function(gm: GraphModule, node: Node, args: Sequence[Any]) -> Callable[..., Any]:
    if node.op == "call_method":
        return lambda self, *rest, **named: getattr(self, str(node.target))(*rest, **named)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function


def _is_foreign(node: Node) -> bool:
    """Is it a Python function that is not PyTorch's? It may hold a backward of its own."""
    module = str(getattr(node.target, "__module__", None) or "")
    if node.op == "call_module":
        return True
    return node.op == "call_function" and module.split(".")[0] not in ("torch", "_operator", "builtins", "")


def _operands(node: Node, body: GraphModule, given: Any) -> list[Any] | None:
    """What a higher-order op gives to the inputs of ``body``, one for one; None where that is not plain."""
    placeholders = body.graph.find_nodes(op="placeholder")
    found = given_to(node, body.graph, given)
    if found is None:
        return None
    for value, placeholder in zip(found, placeholders, strict=True):
        like = value_of(placeholder)
        if isinstance(value, Tensor) != isinstance(like, Tensor):
            return None
        if isinstance(value, Tensor) and (value.ndim, value.dtype) != (like.ndim, like.dtype):
            return None
    return found


def _around(name: str, args: Any) -> AbstractContextManager[Any]:
    """The state that a higher-order op makes for its body."""
    if name == "wrap_with_autocast":
        device, dtype, enabled, cache = args[:4]
        return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache)
    return nullcontext()
