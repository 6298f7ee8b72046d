"""Is a Reading what the program computes? Both are run on real tensors, and values are compared where they are held."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx import GraphModule, Interpreter, Node

from attnpass.graph.reading import Reading, read
from attnpass.graph.regions import Region, walk
from attnpass.graph.run import plain_tensors
from attnpass.graph.value import Value, mapped


def captured(fn: Callable[..., Any], *args: Any, **options: Any) -> tuple[GraphModule, list[Any]]:
    """The first graph that Dynamo makes of ``fn``, and what it is called with."""
    found: list[tuple[GraphModule, list[Any]]] = []

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        found.append((gm, list(example_inputs)))
        return gm.forward

    torch._dynamo.reset()
    fresh = [x.detach().clone().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in args]
    torch.compile(fn, backend=backend, **options)(*fresh)
    gm, given = found[0]
    return gm, [x if not torch.is_tensor(x) else x.detach().clone() for x in given]


def reading_of(gm: GraphModule) -> Reading:
    regions = {node: region for _, node, region in walk(gm, Region.around({"cpu"}))}
    return read(gm, regions)


class Snapshots(Interpreter):
    """Runs a graph and keeps what every tensor held behind each node."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.behind: dict[Node, dict[Node, Tensor]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        tensors = {node: x for node, x in {**self.env, n: result}.items() if plain_tensors(x) and torch.is_tensor(x)}
        self.behind[n] = {node: x.detach().clone() for node, x in tensors.items()}
        return result


def check(gm: GraphModule, inputs: Sequence[Any]) -> int:
    """Compare; gives how many values were."""
    reading = reading_of(gm)
    snapshots = Snapshots(gm)
    with torch.no_grad(), enable_python_dispatcher():  # as compiled: there, dropout of nothing makes a copy
        snapshots.run(*inputs)
        computed = _evaluated(reading, snapshots)
    compared = 0
    for before, place in pairwise(gm.graph.nodes):
        for node, held in snapshots.behind.get(before, {}).items():
            value = reading.value_at(node, place)
            if value is None or value not in computed:
                continue
            torch.testing.assert_close(
                computed[value],
                held,
                equal_nan=True,
                msg=lambda text, n=node, p=place, v=value: f"{n} at {p} was read as {v}\n{text}\n{gm.code}",
            )
            holder = reading.holder(value, place)
            assert holder is not None
            torch.testing.assert_close(snapshots.behind[before][holder], held, equal_nan=True)
            compared += 1
    return compared


def _has_effects(op: Any) -> bool:
    return op._schema.is_mutable or torch.Tag.nondeterministic_seeded in op.tags


def _evaluated(reading: Reading, snapshots: Snapshots) -> dict[Value, Any]:
    """Every value that its ops give; what is a leaf is taken from the run."""
    computed: dict[Value, Any] = {}
    for value in reading.values:
        if value.is_leaf:
            behind = snapshots.behind.get(value.maker, {}) if value.maker is not None else {}
            nodes = [node for held in reading._memory.holders(value) for node in held.nodes if node in behind]
            if nodes:
                computed[value] = behind[nodes[0]]
            continue
        known = isinstance(value.target, OpOverload) or value.target is operator.getitem
        skipped = known and value.target is not operator.getitem and _has_effects(value.target)
        if not known or skipped or not all(each in computed for each in value.inputs):
            continue
        args, kwargs = mapped(Value, computed.__getitem__, (value.args, value.kwargs))
        # A value has no strides: the view of one that lies in another layout is a copy.
        target = torch.ops.aten.reshape.default if value.target is torch.ops.aten.view.default else value.target
        computed[value] = target(*args, **kwargs)  # type: ignore[misc]
    return computed
