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
    mode = getattr(value, "fake_mode", None)
    if mode is None:  # a constant beside the graph
        mode = FakeTensorMode()
        value = mode.from_tensor(value)
    with mode, torch.no_grad():
        for step in operand.steps:
            value = step.op(value, *_read(step))
    return value


def _read(step: Step) -> tuple[Any, ...]:
    return tuple(tensor(arg) if isinstance(arg, (Node, Value)) else arg for arg in step.args)


def spec_of(operand: Operand[Any]) -> TensorSpec:
    """The metadata of an operand behind its steps; its node is one of the program, or a value."""
    source = tensor(operand.node)
    assert source is not None
    grad = operand.node.requires_grad if isinstance(operand.node, Value) else source.requires_grad
    return replace(TensorSpec.of(value_behind(operand)), requires_grad=grad)


N = TypeVar("N")

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Step:
    """One op on a tensor: ``op(tensor, *args)``. Sizes that are not numbers are nodes."""

    op: Callable[..., Any]
    args: tuple[Any, ...] = ()


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


def mapped_steps(steps: tuple[Step, ...], mapped: Callable[[Any], Any]) -> tuple[Step, ...]:
    """The same steps with other nodes for the symbolic numbers in them."""
    symbolic = (Node, Value, torch.SymFloat)
    return tuple(Step(s.op, tuple(mapped(a) if isinstance(a, symbolic) else a for a in s.args)) for s in steps)
