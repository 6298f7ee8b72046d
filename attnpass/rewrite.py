"""The pass: find -> understand -> select -> apply -> report, on a copy of the graph.

Everything is decided before anything is changed. The copy is thrown away if the pass fails, and the untouched graph is
compiled: a bug in here may cost speed, never a result.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from attnpass.call import AttentionCall, Source
from attnpass.config import Config
from attnpass.emit import COPIED_META, Emitter, EmitRefusedError, aten, restore_layout
from attnpass.errors import StrictError
from attnpass.kernel import Kernel, Operands
from attnpass.limits import Rejection
from attnpass.machine import Machine
from attnpass.patterns import Findings, FoundCall, find
from attnpass.patterns.multihead import Opened
from attnpass.patterns.sdpa import arguments, value_of
from attnpass.report.record import Report
from attnpass.select import AUTO, NATIVE, Decision, Reason, Trial, select
from attnpass.verify import Verifier

Machines = Mapping[torch.device, Machine]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What came out of the pass.

    Attributes:
        module: the graph to compile; the one that went in if nothing was changed.
        report: everything that was found, decided and done.
        compile_options: Inductor options that the emitted kernels need.
    """

    module: GraphModule
    report: Report
    compile_options: dict[str, Any] = field(default_factory=dict)


def run_pass(
    gm: GraphModule,
    kernels: Mapping[str, Kernel],
    machines: Machines,
    config: Config,
    report: Report,
    verifier: Verifier | None = None,
    dry_run: bool = False,
) -> Rewritten:
    """Rewrite a copy of ``gm``.

    Args:
        gm: a graph with fake values on its nodes (``example_value`` or ``val``). It is not changed.
        kernels: the registered kernels by name.
        machines: the facts about each device in the graph.
        config: the settings in force.
        report: the report to complete (its running number and names are set by the caller).
        verifier: compares rewritten calls with the reference at run time, or None.
        dry_run: decide everything, change nothing.

    Raises:
        StrictError: ``config.strict`` is on and a call was kept although its wished kernels refused it.
    """
    start = time.perf_counter()
    code_before = gm.print_readable(print_output=False) if config.log == "debug" or config.report else ""
    work = gm if dry_run else copy_graph(gm)
    findings = find(work)
    decisions = decide(findings, kernels, machines, config, verifier)
    _enforce_strict(decisions, config)
    if not dry_run:
        decisions = apply(findings.calls, decisions, kernels, verifier)
    changed = not dry_run and any(decision.rewritten for decision in decisions)
    if changed:
        _finish(work)
    options: dict[str, Any] = {}
    for decision in decisions if changed else ():
        options.update(kernels[decision.kernel].compile_options(decision.call))
    report = replace(
        report,
        config=config,
        machines={device: machines[device] for device in dict.fromkeys(d.call.device for d in decisions)},
        decisions=tuple(decisions),
        near_misses=findings.near_misses,
        nodes=findings.nodes,
        pass_ms=(time.perf_counter() - start) * 1000,
        code_before=code_before,
        code_after=work.print_readable(print_output=False) if changed and code_before else code_before,
    )
    return Rewritten(work if changed else gm, report, options)


def copy_graph(gm: GraphModule) -> GraphModule:
    """A copy whose graphs can be changed; parameters, buffers and fake values are shared with the original."""
    graph, nodes = Graph(), {}
    result = graph.graph_copy(gm.graph, nodes)
    old_output = gm.graph.output_node()
    graph.output(result).meta = dict(old_output.meta)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    for old, new in nodes.items():
        if hasattr(old, "_dynamo_source"):  # AOTAutograd reads it to tell parameters from inputs
            new._dynamo_source = old._dynamo_source
    duplicate = GraphModule(gm, graph, type(gm).__name__)
    duplicate.meta = dict(gm.meta)
    for key, value in gm.__dict__.items():
        duplicate.__dict__.setdefault(key, value)
    for name, module in gm.named_children():
        if isinstance(module, GraphModule):
            setattr(duplicate, name, copy_graph(module))
    return duplicate


def decide(
    findings: Findings,
    kernels: Mapping[str, Kernel],
    machines: Machines,
    config: Config,
    verifier: Verifier | None = None,
) -> list[Decision]:
    """One decision for each call found; equal calls are decided once."""
    known: dict[AttentionCall, Decision] = {}
    decisions = []
    for index, found in enumerate(findings.calls):
        call = found.call
        extra = verifier.verdicts(call, index) if verifier else {}
        anonymous = replace(call, node="", module="", source=Source())
        key = None if extra or not _is_hashable(anonymous) else anonymous
        decision = known.get(key) if key is not None else None
        decision = replace(decision, call=call) if decision else select(call, kernels, machines[call.device], config, extra)
        if key is not None:
            known[key] = decision
        if decision.rewritten and config.limit is not None and sum(d.rewritten for d in decisions) >= config.limit:
            note = f"ATTNPASS_LIMIT={config.limit} stops before this call"
            decision = replace(decision, kernel=NATIVE, reason=Reason.LIMIT, note=note)
        decisions.append(decision)
    return decisions


def apply(
    calls: Sequence[FoundCall],
    decisions: Sequence[Decision],
    kernels: Mapping[str, Kernel],
    verifier: Verifier | None = None,
) -> list[Decision]:
    """Change the graphs as decided. A kernel that turns out not to fit leaves its call alone and says why."""
    done: list[Decision] = []
    shared: dict[Any, Any] = {}
    inlined: dict[Node, dict[Node, Node]] = {}
    for index, (found, decision) in enumerate(zip(calls, decisions, strict=True)):
        if not decision.rewritten:
            done.append(decision)
            continue
        owner, node = found.owner, found.node
        if found.opened:
            if found.opened.node not in inlined:
                inlined[found.opened.node] = _inline(found.opened)
            owner, node = found.opened.owner, inlined[found.opened.node][node]
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


def emit_call(emitter: Emitter, node: Node, call: AttentionCall, kernel: Kernel) -> Node:
    """Emit ``kernel`` for the SDPA ``node``: views and casts in, the kernel, views and the wanted layout out."""
    args = arguments(node)
    wanted = emitter.spec(node)
    missing = 4 - wanted.ndim
    operands = []
    for name in ("query", "key", "value", "attn_mask"):
        operand = args[name]
        if operand is not None:
            for _ in range(4 - emitter.spec(operand).ndim):
                operand = emitter(aten.unsqueeze.default, operand, 0)
            if emitter.spec(operand).dtype != torch.bool and call.context.autocast is not None:
                operand = emitter.cast(operand, call.dtype)
        operands.append(operand)
    out = kernel.emit(emitter, call, Operands(*operands, scale=call.scale_or_default()))
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
    result = opened.body.graph.output_node().args[0]
    if isinstance(result, (list, tuple)):  # (output, weights): each user picks one
        for user in list(node.users):
            picked = result[user.args[1]]
            user.replace_all_uses_with(env[picked])
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


def _enforce_strict(decisions: Sequence[Decision], config: Config) -> None:
    if not config.strict or AUTO in config.kernel or NATIVE in config.kernel:
        return
    kept = [d for d in decisions if d.reason is Reason.NONE_ACCEPTED]
    if not kept:
        return
    lines = [f"rewriting attention: ATTNPASS_STRICT=1 and {len(kept)} of {len(decisions)} calls are taken by none of "
             f"{', '.join(config.kernel)}:"]
    for decision in kept:
        lines.append(f"  {decision.call.source}  {decision.call.module or decision.call.node}: {decision.call.text()}")
        lines += [f"    {t.kernel}: {'; '.join(map(str, t.rejections))}" for t in decision.refused]
    lines.append("Name another kernel in ATTNPASS_KERNEL (end the list with `auto` to accept any), or unset ATTNPASS_STRICT.")
    raise StrictError("\n".join(lines))


def _finish(gm: GraphModule) -> None:
    for module in gm.modules():
        if isinstance(module, GraphModule):
            module.graph.lint()
            module.recompile()


def _is_hashable(call: AttentionCall) -> bool:
    """SymInts have no hash; calls with symbolic sizes are decided one by one."""
    specs = [s for s in (call.q, call.k, call.v, call.out, call.mask.tensor) if s is not None]
    return all(isinstance(x, int) for s in specs for x in (*s.shape, *s.stride, s.storage_offset))


def node_devices(gm: GraphModule) -> set[torch.device]:
    """The devices of the tensors in ``gm`` and its bodies."""
    values = (value_of(n) for m in gm.modules() if isinstance(m, GraphModule) for n in m.graph.nodes)
    return {value.device for value in values if isinstance(value, torch.Tensor)}
