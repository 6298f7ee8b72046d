"""What an understood mask says at every index, computed from the tensors that its program makes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from attnpass.index.bounds import Bounds
from attnpass.index.evaluate import Values, as_tensor, evaluate, outside_loads
from attnpass.index.expr import AXES, Expr
from attnpass.ir.meaning import Meaning

CPU = torch.device("cpu")


class Recorder(Interpreter):
    """Runs a graph and keeps what each node gave, as it was just before the attention call."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.values: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.values[n] = value
        return value


def computed(meaning: Meaning, gm: GraphModule, inputs: list[Tensor], sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The meaning at every index: who takes part, and the bias."""
    recorder = Recorder(gm)
    recorder.run(*inputs)
    shaped = [torch.arange(n).reshape([-1 if i == j else 1 for j in range(4)]) for i, n in enumerate(sizes)]
    bounds = Bounds.of(dict(zip(AXES, sizes, strict=True)))

    def values(expr: Expr) -> Values:
        return Values(
            dict(zip(AXES, shaped, strict=True)), recorder.values, {}, outside_loads(expr, bounds), device=CPU
        )

    allowed = as_tensor(evaluate(meaning.allowed, values(meaning.allowed)), torch.bool, CPU).expand(sizes)
    bias = torch.zeros(()) if meaning.bias is None else evaluate(meaning.bias, values(meaning.bias))
    return allowed, as_tensor(bias, torch.float32, CPU).expand(sizes)
