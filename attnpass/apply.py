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
from attnpass.masks.meaning import Meaning
from attnpass.patterns import FoundCall
from attnpass.patterns.multihead import Opened
from attnpass.patterns.wiring import Addition, Operand, Wiring
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
        owner, node, wiring, meaning = _place(copied, found, inlined)
        emitter = Emitter(owner, node, shared)
        try:
            out = emit_call(emitter, node, decision.asked, kernels[decision.kernel], wiring, meaning)
        except EmitRefusedError as refused:
            emitter.undo()
            done.append(_put_back(decision, refused.rejection))
            continue
        if verifier:
            out = verifier.watch(emitter, node, out, decision, index)
        out.meta.update(value_meta(node))
        out.meta["attnpass"] = {"kernel": decision.kernel, "source": str(decision.call.source)}
        copied.replace(node, out)
        done.append(decision)
    return done


def _place(
    copied: GraphCopy, found: FoundCall, inlined: dict[Node, dict[Node, Node]]
) -> tuple[GraphModule, Node, Wiring, Meaning | None]:
    """The module, the node, its operands and its mask's meaning in the copy; an opaque layer is opened on first use."""
    opened = found.opened
    if opened is None:
        owner, nodes = copied.modules[found.owner], copied.nodes
    else:
        owner = copied.modules[opened.owner]
        if opened.node not in inlined:
            inputs = tuple(copied.current(copied.nodes[node]) for node in opened.inputs)
            inlined[opened.node] = _inline(copied, Opened(owner, copied.nodes[opened.node], opened.body, inputs))
        nodes = inlined[opened.node]

    def mapped(node: Node) -> Node:
        return copied.current(
            nodes[node] if node in nodes else copied.nodes[node]
        )  # a mask may be read around the layer

    meaning = None if found.meaning is None or found.meaning.stop else found.meaning.map_nodes(mapped)
    return owner, nodes[found.node], found.wiring.map_nodes(mapped), meaning


def emit_call(
    emitter: Emitter,
    node: Node,
    call: AttentionCall,
    kernel: Kernel,
    wiring: Wiring,
    meaning: Meaning | None = None,
) -> Node:
    """Emit ``kernel`` in the place of ``node``: views and casts in, the kernel, views and the wanted layout out."""
    wanted = emitter.spec(node)
    q, k, v = (_operand(emitter, each, call) for each in (wiring.q, wiring.k, wiring.v))
    mask = _mask(emitter, wiring.additions, call) if call.mask.spelled is None else None
    sinks = None if wiring.sinks is None else emitter.apply(wiring.sinks)
    out = kernel.emit(
        emitter, call, Operands(q, k, v, mask, call.scale_or_default(), sinks, meaning if mask is None else None)
    )
    for step in wiring.out:
        out = emitter(step.op, out, *step.args)
    for _ in range(0 if wiring.out else 4 - wanted.ndim):
        out = emitter(aten.squeeze.dim, out, 0)
    return restore_layout(emitter, out, wanted)


def _operand(emitter: Emitter, operand: Operand, call: AttentionCall) -> Node:
    """4-D, and in the dtype that the kernel computes in."""
    node = emitter.apply(operand)
    for _ in range(4 - emitter.spec(node).ndim):
        node = emitter(aten.unsqueeze.default, node, 0)
    if emitter.spec(node).dtype != torch.bool and call.context.autocast is not None:
        node = emitter.cast(node, call.dtype)
    return node


def _mask(emitter: Emitter, additions: Sequence[Addition], call: AttentionCall) -> Node | None:
    """What is done to the scores, as the one mask tensor that a kernel takes."""
    nodes = [(_operand(emitter, each.operand, call), each.fill) for each in additions]
    return nodes[0][0] if nodes else None


def value_meta(node: Node) -> dict[str, Any]:
    """The metadata that the replacement of ``node`` takes over: its value and where it came from."""
    keys = (*COPIED_META, "example_value", "val", "tensor_meta")
    return {key: node.meta[key] for key in keys if key in node.meta}


def _inline(copied: GraphCopy, opened: Opened) -> dict[Node, Node]:
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
            copied.replace(user, env[result[index]])
        graph.erase_node(node)
    else:
        copied.replace(node, env[result])
    return env


def _put_back(decision: Decision, rejection: Rejection) -> Decision:
    trials = tuple(
        Trial(t.kernel, (*t.rejections, rejection)) if t.kernel == decision.kernel else t for t in decision.trials
    )
    return replace(decision, kernel=NATIVE, reason=Reason.NONE_ACCEPTED, trials=trials)
