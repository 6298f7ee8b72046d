"""What PyTorch is told of our ops where it decides what a backward computes again: that they are attention.

Three who decide, and none of them knows an op that is not PyTorch's own:

- selective checkpoints save the ops of a list (`ops_to_save`);
- the partitioner, within a memory budget below 1, computes again for free whatever its list of compute-intensive ops
  does not have (``get_default_op_list`` in ``torch/_functorch/partitioners.py``, 2.9 to 2.14). PyTorch's setting
  ``is_non_builtin_to_include``, since 2.10, would add the ops of everybody else too; so the list is lengthened, and
  only while attnpass compiles;
- what it then costs to compute an op again is its FLOP formula's answer, and 1 without one.

The partitioner runs an op of random numbers again with other numbers, PyTorch's own too (2.13: the gradients of SDPA
with dropout are wrong within a budget). So outside of checkpoints, which replay them, attention with dropout is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from attnpass.emit import ops
from attnpass.graph.values import attribute, value_of
from attnpass.kernels.registry import registry

SMALLEST = 1e-9  # of memory budgets, that is not 0
logger = logging.getLogger(__name__)
_expensive: ContextVar[tuple[Any, ...]] = ContextVar("attnpass_expensive", default=())


def ops_to_save() -> list[Any]:
    """The ops that compute attention, for the list of a selective checkpoint: saved, not computed a second time.

    Those of every registered kernel: attnpass' own, and PyTorch's, which calls that are kept become too.

    >>> from functools import partial
    >>> from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
    >>> saving = partial(create_selective_checkpoint_contexts, ops_to_save())
    >>> x = torch.randn(1, 4, 16, 64, requires_grad=True)
    >>> attention = torch.nn.functional.scaled_dot_product_attention
    >>> checkpoint(attention, x, x, x, use_reentrant=False, context_fn=saving).sum().backward()
    """
    register_flop_formulas()
    ours = [op for op in ops.attention_ops() if not _is_backward(op)]
    others = [op for kernel in registry().values() for op in kernel.expensive]
    return list(dict.fromkeys([*ours, *others]))


def register_flop_formulas() -> None:
    """Let ``torch.utils.flop_counter`` count our ops as it counts PyTorch's attention: masks save nothing."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for op, layout in ops.attention_ops().items():
        if op.overloadpacket not in flop_registry:
            register_flop_formula(op.overloadpacket)(_formula(op, layout))


@contextmanager
def attention_is_expensive(gm: GraphModule) -> Iterator[None]:
    """While ``gm`` is compiled, attention counts as compute-intensive, and is not run again with other random numbers.

    A PyTorch whose partitioner has no such list compiles as it would anyway.
    """
    from torch._functorch import partitioners

    known = ops_to_save()
    original = getattr(partitioners, "get_default_op_list", None)
    if original is not None and not hasattr(original, "lengthened_by_attnpass"):
        partitioners.get_default_op_list = _lengthened(original)
    token = _expensive.set(tuple(op.overloadpacket for op in known if isinstance(op, OpOverload)))
    try:
        with _keep_what_was_drawn(gm, known), _without_backward(gm):
            yield
    finally:
        _expensive.reset(token)


def _lengthened(original: Callable[[], Any]) -> Callable[[], Any]:
    """PyTorch's lists of ops, with attention among the compute-intensive ones."""

    def get_default_op_list() -> Any:
        types, more = original(), _expensive.get()
        try:
            return replace(types, compute_intensive_ops=types.compute_intensive_ops | set(more)) if more else types
        except (AttributeError, TypeError) as error:
            logger.debug("attnpass: this PyTorch's partitioner cannot be told of attention: %s", error)
            return types

    get_default_op_list.lengthened_by_attnpass = True  # type: ignore[attr-defined]
    return get_default_op_list


def _keep_what_was_drawn(gm: GraphModule, known: Collection[Any]) -> AbstractContextManager[Any]:
    """Mark attention with dropout as to be saved. Checkpoints mark what is in their bodies anew.

    Returns:
        The budget to compile with: at 0 the partitioner would not look at marks.
    """
    from torch._functorch import config
    from torch.utils.checkpoint import CheckpointPolicy

    graphs = [module.graph for module in gm.modules() if isinstance(module, GraphModule)]
    nodes = [node for graph in graphs for node in graph.nodes]
    drawing = [node for node in nodes if _draws(node, known)]
    for node in drawing:
        node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if not drawing:
        return nullcontext()
    _raise_annotated_budgets(nodes)
    budget = max(config.activation_memory_budget, SMALLEST)
    return config.patch(activation_memory_budget=budget)  # type: ignore[no-any-return]


def _without_backward(gm: GraphModule) -> AbstractContextManager[Any]:
    """Of a graph in which nothing requires a gradient, nothing is recomputed: a frozen tower in ``train()``.

    PyTorch looks for a backward in it all the same, since the checkpoints say so, and refuses every op that may draw
    random numbers: its own SDPA too, which without dropout draws none (2.13).
    """
    from torch._functorch import config

    flag = "remat_using_tags_for_fwd_loss_bwd_graph"
    inputs = [value_of(node) for node in gm.graph.find_nodes(op="placeholder")]
    inputs += [attribute(gm, str(node.target)) for node in gm.graph.find_nodes(op="get_attr")]
    trained = any(isinstance(each, torch.Tensor) and each.requires_grad for each in inputs)
    if trained or not hasattr(config, flag) or any("autograd_backward" in node.meta for node in gm.graph.nodes):
        return nullcontext()
    return config.patch({flag: False})  # type: ignore[no-any-return]


def _raise_annotated_budgets(nodes: Iterable[Node]) -> None:
    """The same for ``region_activation_memory_budget(0)``, which annotates each node that it covers."""
    from torch.fx import traceback

    key = getattr(traceback, "MEMORY_BUDGET_ANNOTATION_KEY", None)  # not before 2.13
    for node in nodes:
        said = node.meta.get("custom") or {}
        if key in said:
            node.meta["custom"] = {**said, key: max(said[key], SMALLEST)}


def _draws(node: Node, known: Collection[Any]) -> bool:
    """Does the op, ours or PyTorch's, draw random numbers in this call? Without dropout it does not."""
    op = node.target
    if not isinstance(op, OpOverload) or not (op in known or op.namespace == "aten"):
        return False
    says_so = op in known and torch.Tag.nondeterministic_seeded in op.tags
    return bool(_given(op, node.args, node.kwargs).get("dropout_p", says_so))


def _given(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with the schema's defaults."""
    arguments = op._schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments}
    return {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}


def _is_backward(op: OpOverload) -> bool:
    return op._schema.arguments[0].name == "grad"


def _formula(op: OpOverload, layout: str) -> Callable[..., int]:
    """Of two products of matrices in a forward, of five in a backward, which computes the scores again."""
    backward = _is_backward(op)

    def flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        given = _given(op, args, kwargs)
        S, H = (2, 1) if given.get("layout", layout) in ("BHSD", "HND") else (1, 2)
        q, k, v = given["q"], given["k"], given["v"]
        D, Dv = q[3], v[3]
        sizes = 3 * D + 2 * Dv if backward else D + Dv
        total: int = 2 * q[0] * q[H] * q[S] * k[S] * sizes  # may be a symbol
        return total

    return flops
