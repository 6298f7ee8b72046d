"""The program state at each place of a graph: autocast, grad mode, functorch transforms, ``sdpa_kernel``.

Dynamo writes these regions as marker nodes without metadata (``_enter_autocast`` ... ``_exit_autocast``), torch.export
as higher-order ops with a body (``wrap_with_autocast``). Both are read here, and only here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import BuiltinFunctionType
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, GraphModule, Node
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils import _pytree as pytree

from attnpass.graph.values import attribute

FUNCTORCH = {
    "_vmap_increment_nesting": "vmap",
    "_grad_increment_nesting": "grad",
    "_jvp_increment_nesting": "jvp",
    "_func_increment_nesting": "functionalize",
}
FUNCTORCH_EXIT = {name.replace("increment", "decrement") for name in FUNCTORCH}
# Higher-order ops that give their last operands to their bodies as they are, once, and give back what these give.
PASSES_ON = frozenset(
    {"wrap", "wrap_activation_checkpoint", "tag_activation_checkpoint", "cond", "invoke_subgraph"}
    | {"wrap_with_autocast", "wrap_with_set_grad_enabled"}
)


@dataclass(frozen=True, slots=True)
class Region:
    """The state at one place.

    Attributes:
        grad: is grad mode on?
        autocast: device type to the dtype that autocast casts to there; a device type without autocast is missing.
        functorch: the transforms around this place, outermost first.
        sdpa_kernel: backends that a ``with sdpa_kernel(...)`` inside the graph allows, or None.
        nested_in: higher-order ops whose body this is, outermost first.
        unreadable: what the metadata of the nodes here only guesses, or "".
    """

    grad: bool
    autocast: dict[str, torch.dtype] = field(default_factory=dict)
    functorch: tuple[str, ...] = ()
    sdpa_kernel: tuple[str, ...] | None = None
    nested_in: tuple[str, ...] = ()
    unreadable: str = ""

    @classmethod
    def around(cls, device_types: set[str]) -> Region:
        """The state in which the whole graph is being compiled."""
        autocast = {
            kind: torch.get_autocast_dtype(kind)
            for kind in device_types
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        }
        return cls(grad=torch.is_grad_enabled(), autocast=autocast)


def walk(gm: GraphModule, region: Region) -> Iterator[tuple[GraphModule, Node, Region]]:
    """Every node of ``gm`` and of the bodies of its higher-order ops, in program order, with the state around it."""
    saved: dict[Node, Region] = {}
    for node in gm.graph.nodes:
        before = region
        region = _after(node, region, saved)
        yield gm, node, region
        for body, inside in _bodies(gm, node, before):
            yield from walk(body, inside)


def _after(node: Node, region: Region, saved: dict[Node, Region]) -> Region:
    """The state behind a marker node; ``saved`` remembers what each enter has to restore."""
    if node.op != "call_function":
        return region
    name = getattr(node.target, "__name__", "")
    if name in FUNCTORCH:
        return replace(region, functorch=(*region.functorch, FUNCTORCH[name]))
    if name in FUNCTORCH_EXIT:
        return replace(region, functorch=region.functorch[:-1])
    if name == "_set_grad_enabled":
        return replace(region, grad=bool(node.args[0]))
    if name in ("_enter_autocast", "_enter_inference_mode"):
        saved[node] = region
        if name == "_enter_inference_mode":
            return replace(region, grad=region.grad and not node.args[0])
        device, dtype, enabled = (*node.args, None, None, True)[:3]
        return replace(region, autocast=_with_autocast(region.autocast, device, dtype, enabled))
    if name in ("_exit_autocast", "_exit_inference_mode"):
        entered = saved.get(node.args[0]) if node.args and isinstance(node.args[0], Node) else None
        if entered is None:
            return region
        return replace(region, autocast=entered.autocast, grad=entered.grad)
    if name == "_sdpa_kernel":
        return replace(region, sdpa_kernel=_chosen_backends(node))
    return region


def _with_autocast(state: dict[str, torch.dtype], device: Any, dtype: Any, enabled: Any) -> dict[str, torch.dtype]:
    changed = {kind: cast for kind, cast in state.items() if kind != device}
    if enabled:
        changed[str(device)] = dtype if isinstance(dtype, torch.dtype) else torch.get_autocast_dtype(str(device))
    return changed


def _chosen_backends(node: Node) -> tuple[str, ...] | None:
    """Names of the backends that this marker switches on; None where it restores what was on around the graph."""
    chosen = set()
    for item in node.args[0] if isinstance(node.args[0], (list, tuple)) else ():
        name = item.args[0] if isinstance(item, Node) and item.args else item
        chosen.add(name.name if isinstance(name, SDPBackend) else str(name))
    if chosen == {backend.name for backend in _cur_sdpa_kernel_backends()}:
        return None
    return tuple(sorted(chosen))


def _bodies(gm: GraphModule, node: Node, region: Region) -> Iterator[tuple[GraphModule, Region]]:
    """The graph modules that a higher-order op runs, each with the state in which it runs them."""
    if node.op != "call_function" or isinstance(node.target, BuiltinFunctionType):
        return  # most nodes: PyTorch's functions and Python's operators run no body
    name = getattr(node.target, "__name__", str(node.target))
    inside = replace(region, nested_in=(*region.nested_in, name))
    if name == "wrap_with_set_grad_enabled":
        inside = replace(inside, grad=bool(node.args[0]))
    elif name == "wrap_with_autocast":
        device, dtype, enabled = node.args[:3]
        inside = replace(inside, autocast=_with_autocast(region.autocast, device, dtype, enabled))
    elif name == "autograd_function_apply":  # the user's forward and backward, neither of which autograd looks into
        inside = replace(inside, grad=False)
    elif name.startswith("flex_attention"):
        return  # score_mod and mask_mod: index arithmetic, no attention inside
    for index, body in enumerate(bodies_of(gm, node)):
        if name == "autograd_function_apply" and index == 1:
            # Dynamo takes a gradient for contiguous; that of a sum has strides of 0 (torch 2.13)
            yield body, replace(inside, unreadable="layout of gradients")
        else:
            yield body, inside


def bodies_of(gm: GraphModule, node: Node) -> list[GraphModule]:
    """The graph modules that a node of ``gm`` is given as arguments."""
    given = (attribute(gm, str(argument.target)) for argument in node.all_input_nodes if argument.op == "get_attr")
    return [body for body in given if isinstance(body, GraphModule)]


def name_of_higher_order(target: Any) -> str | None:
    """The name of a higher-order op of PyTorch's own; None for one of somebody else's, which may bear any name."""
    name = target.name() if isinstance(target, HigherOrderOperator) else ""
    return name if name and type(target).__module__.split(".")[0] == "torch" else None


def given_to(node: Node, body: Graph, given: tuple[Any, Any]) -> list[Any] | None:
    """What a node gives to the inputs of a body that it runs, one for one; None where that is not plain.

    Args:
        node: the node of a higher-order op.
        body: the graph of one of its bodies.
        given: the node's arguments and keywords.
    """
    inputs = body.find_nodes(op="placeholder")
    if name_of_higher_order(node.target) not in PASSES_ON:
        return None
    args, kwargs = given
    leaves = pytree.tree_leaves((args, {key: kwargs[key] for key in ("operands",) if key in kwargs}))
    return leaves[len(leaves) - len(inputs) :] if len(leaves) >= len(inputs) else None
