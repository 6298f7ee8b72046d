"""A tensor of the graph behind views: a node and the steps that turn its value into what somebody reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import Node

from attnpass.graph.tensor import TensorSpec
from attnpass.graph.value import Value
from attnpass.graph.values import tensor


def value_behind(operand: Operand[Any]) -> torch.Tensor:
    """The fake value of an operand behind its steps."""
    value = tensor(operand.node)
    assert value is not None
    mode = getattr(value, "fake_mode", None) or FakeTensorMode()  # none: a constant beside the graph
    with mode, torch.no_grad():
        return _behind(operand, mode)


def _behind(operand: Operand[Any], mode: FakeTensorMode) -> torch.Tensor:
    def read(argument: Any) -> Any:
        if isinstance(argument, Operand):
            return _behind(argument, mode)
        value = tensor(argument) if isinstance(argument, (Node, Value)) else argument
        if isinstance(value, torch.Tensor) and getattr(value, "fake_mode", None) is None:
            return mode.from_tensor(value)
        return value

    value = read(operand.node)
    for step in operand.steps:
        value = step.op(*step.arguments(value, read))
    found: torch.Tensor = value
    return found


def spec_of(operand: Operand[Any]) -> TensorSpec:
    """The metadata of an operand behind its steps; its node is one of the program, or a value."""
    grad = any(_requires_grad(node) for node in operand.nodes())
    return replace(TensorSpec.of(value_behind(operand)), requires_grad=grad)


def _requires_grad(node: Any) -> bool:
    value = tensor(node)
    return node.requires_grad if isinstance(node, Value) else value is not None and value.requires_grad


N = TypeVar("N")

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Step:
    """One op on a tensor: ``op(tensor, *args)``. Sizes that are not numbers are nodes, other tensors are operands."""

    op: Callable[..., Any]
    args: tuple[Any, ...] = ()

    def arguments(self, x: Any, read: Callable[[Any], Any]) -> tuple[Any, ...]:
        """What the op is called with, each of its own arguments as ``read`` gives it; ``cat`` takes a list."""
        rest = tuple(map(read, self.args))
        return ([x, rest[0]], *rest[1:]) if self.op is torch.ops.aten.cat.default else (x, *rest)


@dataclass(frozen=True, slots=True)
class Operand(Generic[N]):
    """A node and the steps that turn its value into what the call reads."""

    node: N
    steps: tuple[Step, ...] = ()

    def map_nodes(self, mapped: Callable[[Any], M]) -> Operand[M]:
        """The same operand of another node; ``mapped`` is also asked for symbolic numbers in the steps."""
        return Operand(mapped(self.node), mapped_steps(self.steps, mapped))

    def then(self, op: Callable[..., Any], *args: Any) -> Operand[N]:
        return replace(self, steps=(*self.steps, Step(op, args)))

    def nodes(self) -> list[N]:
        """Its node, and those of the other tensors that its steps read."""
        read = [arg for step in self.steps for arg in step.args if isinstance(arg, Operand)]
        return [self.node, *(node for operand in read for node in operand.nodes())]


def mapped_steps(steps: tuple[Step, ...], mapped: Callable[[Any], Any]) -> tuple[Step, ...]:
    """The same steps with other nodes for the symbolic numbers in them."""

    def replaced(arg: Any) -> Any:
        if isinstance(arg, Operand):
            return arg.map_nodes(mapped)
        return mapped(arg) if isinstance(arg, (Node, Value, torch.SymFloat)) else arg

    return tuple(Step(step.op, tuple(map(replaced, step.args))) for step in steps)
