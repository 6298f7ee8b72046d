"""apply: put the decided kernels into a copy of the graph. The only file that changes a graph that holds calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from attnpass.call import AttentionCall
from attnpass.emit import COPIED_META, EmitRefusedError, Emitter, aten
from attnpass.graph_copy import GraphCopy
from attnpass.kernel import Kernel, Operands
from attnpass.layout import restore_layout
from attnpass.limits import Rejection
from attnpass.patterns import FoundCall
from attnpass.patterns.multihead import Opened
from attnpass.patterns.sdpa import arguments
from attnpass.select import NATIVE, Decision, Reason, Trial
from attnpass.verify import Verifier


def apply(
    copied: GraphCopy,
    calls: Sequence[FoundCall],
    decisions: Sequence[Decision],
    kernels: Mapping[str, Kernel],
    verifier: Verifier | None = None,
) -> list[Decision]:
    """Change the copy as decided. A kernel that turns out not to fit leaves its call alone and says why."""
    done: list[Decision] = []
    shared: dict[Any, Any] = {}
    inlined: dict[Node, dict[Node, Node]] = {}
    for index, (found, decision) in enumerate(zip(calls, decisions, strict=True)):
        if not decision.rewritten:
            done.append(decision)
            continue
        owner, node = _place(copied, found, inlined)
        emitter = Emitter(owner, node, shared)
        try:
            out = emit_call(emitter, node, decision.call, kernels[decision.kernel])
        except EmitRefusedError as refused:
            emitter.undo()
            done.append(_put_back(decision, refused.rejection))
            continue
        if verifier:
            out = verifier.watch(emitter, node, out, decision, index)
        out.meta.update(value_meta(node))
        out.meta["attnpass"] = {"kernel": decision.kernel, "source": str(decision.call.source)}
        node.replace_all_uses_with(out)
        owner.graph.erase_node(node)
        done.append(decision)
    return done


def _place(copied: GraphCopy, found: FoundCall, inlined: dict[Node, dict[Node, Node]]) -> tuple[GraphModule, Node]:
    """The module and the SDPA node in the copy; an opaque layer is opened there on its first call."""
    opened = found.opened
    if opened is None:
        return copied.modules[found.owner], copied.nodes[found.node]
    owner = copied.modules[opened.owner]
    if opened.node not in inlined:
        inputs = tuple(copied.nodes[node] for node in opened.inputs)
        inlined[opened.node] = _inline(Opened(owner, copied.nodes[opened.node], opened.body, inputs))
    return owner, inlined[opened.node][found.node]


def emit_call(emitter: Emitter, node: Node, call: AttentionCall, kernel: Kernel, sinks: Node | None = None) -> Node:
    """Emit ``kernel`` for the SDPA ``node``: views and casts in, the kernel, views and the wanted layout out."""
    args = arguments(node)
    wanted = emitter.spec(node)
    missing = 4 - wanted.ndim
    operands: list[Any] = []
    for name in ("query", "key", "value", "attn_mask"):
        operand = args[name]
        if operand is not None:
            for _ in range(4 - emitter.spec(operand).ndim):
                operand = emitter(aten.unsqueeze.default, operand, 0)
            if emitter.spec(operand).dtype != torch.bool and call.context.autocast is not None:
                operand = emitter.cast(operand, call.dtype)
        operands.append(operand)
    q, k, v, mask = operands
    out = kernel.emit(emitter, call, Operands(q, k, v, mask, call.scale_or_default(), sinks))
    for _ in range(missing):
        out = emitter(aten.squeeze.dim, out, 0)
    return restore_layout(emitter, out, wanted)


def value_meta(node: Node) -> dict[str, Any]:
    """The metadata that the replacement of ``node`` takes over: its value and where it came from."""
    keys = (*COPIED_META, "example_value", "val", "tensor_meta")
    return {key: node.meta[key] for key in keys if key in node.meta}


def _inline(opened: Opened) -> dict[Node, Node]:
    """Put an opened body in its node's place. Returns the body's nodes -> the nodes of the user's graph."""
    owner, node, graph = opened.owner, opened.node, opened.owner.graph
    value_key = "example_value" if "example_value" in node.meta else "val"
    env: dict[Node, Node] = dict(zip(opened.body.graph.find_nodes(op="placeholder"), opened.inputs, strict=True))
    with graph.inserting_before(node):
        for inner in opened.body.graph.nodes:
            if inner.op == "get_attr":
                free = f"attnpass_{node.name}_{inner.target}"
                setattr(owner, free, getattr(opened.body, inner.target))
                env[inner] = graph.get_attr(free)
            elif inner.op == "call_function":
                env[inner] = graph.node_copy(inner, env.__getitem__)
                env[inner].meta = {k: node.meta[k] for k in COPIED_META if k in node.meta}
                if "val" in inner.meta:
                    env[inner].meta[value_key] = inner.meta["val"]
    result: Any = opened.body.graph.output_node().args[0]
    if isinstance(result, (list, tuple)):  # (output, weights): each user picks one
        for user in list(node.users):
            index: Any = user.args[1]
            user.replace_all_uses_with(env[result[index]])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(env[result])
    graph.erase_node(node)
    return env


def _put_back(decision: Decision, rejection: Rejection) -> Decision:
    trials = tuple(
        Trial(t.kernel, (*t.rejections, rejection)) if t.kernel == decision.kernel else t for t in decision.trials
    )
    return replace(decision, kernel=NATIVE, reason=Reason.NONE_ACCEPTED, trials=trials)
