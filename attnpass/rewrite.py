"""The pass: find -> understand -> select -> apply -> report, on a copy of the graph.

Everything is decided before anything is changed. The copy is thrown away if the pass fails, and the untouched graph is
compiled: a bug in here may cost speed, never a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule

from attnpass.apply import apply
from attnpass.assumptions import Assumptions
from attnpass.call import AttentionCall
from attnpass.config import Config
from attnpass.errors import StrictError
from attnpass.graph.values import Source, value_of
from attnpass.graph_copy import GraphCopy
from attnpass.kernel import Kernel
from attnpass.limits import Rejection
from attnpass.lowering import lowered
from attnpass.machine import Machine
from attnpass.masks.understand import Reader
from attnpass.patterns import Findings, find
from attnpass.policy import Choice
from attnpass.probe import Prover
from attnpass.report.record import Report
from attnpass.select import AUTO, NATIVE, Decision, Reason, select
from attnpass.symbolic import is_hashable
from attnpass.tuning.choice import timed
from attnpass.tuning.tuner import Tuner
from attnpass.verify import Verifier

Machines = Mapping[torch.device, Machine]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What came out of the pass.

    Attributes:
        module: the graph to compile; the one that went in if nothing was changed.
        report: everything that was found, decided and done.
        compile_options: Inductor options that the emitted kernels need.
        assumptions: buffers whose values were read; the compiled code has to be guarded by them.
    """

    module: GraphModule
    report: Report
    compile_options: dict[str, Any] = field(default_factory=dict)
    assumptions: Assumptions = field(default_factory=Assumptions)


def run_pass(
    gm: GraphModule,
    kernels: Mapping[str, Kernel],
    look: Callable[[Sequence[AttentionCall]], Machines],
    config: Config,
    report: Report,
    verifier: Verifier | None = None,
    prover: Prover | None = None,
    tuner: Tuner | None = None,
    dry_run: bool = False,
    grad: bool | None = None,
) -> Rewritten:
    """Rewrite a copy of ``gm``.

    Args:
        gm: a graph with fake values on its nodes (``example_value`` or ``val``). It is not changed.
        kernels: the registered kernels by name.
        look: gives the facts about each device in the graph, when the calls are known.
        config: the settings in force.
        report: the report to complete (its running number and names are set by the caller).
        verifier: compares rewritten calls with the reference at run time, or None.
        prover: tries a library's kernel before it is used, or None.
        tuner: times the kernels that take a call, or None.
        dry_run: decide everything, change nothing.
        grad: do gradients flow through the calls, where the graph's values do not say it.

    Raises:
        StrictError: ``config.strict`` is on and a call was kept although its wished kernels refused it.
    """
    start = time.perf_counter()
    code_before = gm.print_readable(print_output=False) if config.log == "debug" or config.report else ""
    assumptions = Assumptions()
    findings = understand(find(gm, grad), assumptions)
    read, spent = time.perf_counter(), tuner.spent if tuner else 0.0
    machines = look([found.call for found in findings.calls])
    start += time.perf_counter() - read  # importing a library is not the pass
    decisions = decide(findings, kernels, machines, config, verifier, prover, tuner)
    start += tuner.spent - spent if tuner else 0.0  # nor is timing kernels
    work = gm
    if not dry_run:
        work, decisions = _applied(gm, findings, decisions, kernels, verifier)
    _enforce_strict(decisions, config)  # behind apply: a kernel may turn out not to fit only there
    report = replace(
        report,
        config=config,
        machines={device: machines[device] for device in dict.fromkeys(d.call.device for d in decisions)},
        decisions=tuple(decisions),
        near_misses=findings.near_misses,
        nodes=findings.nodes,
        pass_ms=(time.perf_counter() - start) * 1000,
        code_before=code_before,
        code_after=work.print_readable(print_output=False) if work is not gm and code_before else code_before,
    )
    return Rewritten(work, report, {} if work is gm else _compile_options(decisions, kernels), assumptions)


def _applied(
    gm: GraphModule,
    findings: Findings,
    decisions: list[Decision],
    kernels: Mapping[str, Kernel],
    verifier: Verifier | None,
) -> tuple[GraphModule, list[Decision]]:
    """A rewritten copy, or ``gm`` itself if nothing changes; and what became of the decisions."""
    if not any(decision.rewritten for decision in decisions):
        return gm, decisions
    copied = GraphCopy.of(gm)
    decisions = apply(copied, findings, decisions, kernels, verifier)
    if not any(decision.rewritten for decision in decisions):
        return gm, decisions
    copied.finish()
    return copied.module, decisions


def understand(findings: Findings, assumptions: Assumptions) -> Findings:
    """The same calls with what their masks mean; ``assumptions`` notes the buffers that were read for it."""
    reader = Reader(findings.reading, assumptions.array)
    return replace(findings, calls=tuple(map(reader.understood, findings.calls)))


def decide(
    findings: Findings,
    kernels: Mapping[str, Kernel],
    machines: Machines,
    config: Config,
    verifier: Verifier | None = None,
    prover: Prover | None = None,
    tuner: Tuner | None = None,
) -> list[Decision]:
    """One decision for each call found; equal calls are decided once."""
    known: dict[tuple[Choice, AttentionCall], Decision] = {}
    decisions: list[Decision] = []
    for index, found in enumerate(findings.calls):
        machine = machines[found.call.device]
        extra = verifier.verdicts(found.call, index) if verifier else {}
        readings = [one.call for one in (found, *found.alternatives())]
        choices = []
        for call in readings:
            key = None if extra else decision_key(call, config)
            decision = known.get(key) if key is not None else None
            if decision is None:
                decision = _select_proved(call, kernels, machine, config, extra, prover, tuner)
                decision = lowered(decision, kernels[NATIVE], machine, extra.get(NATIVE, ()))
            if key is not None:
                known[key] = decision
            choices.append(replace(decision, call=call))
            if decision.reason not in (Reason.NONE_ACCEPTED, Reason.LOWERED):
                break
        decision = next((each for each in choices if each.kernel != NATIVE), choices[0])
        if decision.rewritten and config.limit is not None and sum(d.rewritten for d in decisions) >= config.limit:
            note = f"ATTNPASS_LIMIT={config.limit} stops before this call"
            decision = replace(decision, kernel=NATIVE, lowered=False, reason=Reason.LIMIT, note=note)
        decisions.append(decision)
    return decisions


def decision_key(call: AttentionCall, config: Config) -> Any:
    """What calls that get the same decision have in common; None where a size is symbolic."""
    anonymous = replace(call, node="", module="", source=Source())
    return (config.policy.choose(call), anonymous) if is_hashable(anonymous) else None


def _select_proved(
    call: AttentionCall,
    kernels: Mapping[str, Kernel],
    machine: Machine,
    config: Config,
    extra: Mapping[str, Sequence[Rejection]],
    prover: Prover | None,
    tuner: Tuner | None,
) -> Decision:
    """Select; if the chosen kernel fails its trial, that is a reason like any other, and the next one is asked.

    Where ``auto`` chose and a tuner is there, the candidates are tried first and then timed.
    """
    reasons, fastest = dict(extra), None
    while True:
        decision = select(call, kernels, machine, config, reasons, fastest)
        if tuner is not None and fastest is None and decision.reason is Reason.AUTO:
            fastest = timed(decision, kernels, machine, prover, tuner)
            if fastest is not None:
                continue
        refusals = (
            prover.refusals(kernels[decision.kernel], decision.asked, machine) if prover and decision.rewritten else ()
        )
        if not refusals:
            return decision
        reasons[decision.kernel] = [*reasons.get(decision.kernel, ()), *refusals]


def _enforce_strict(decisions: Sequence[Decision], config: Config) -> None:
    kept = [d for d in decisions if d.reason in (Reason.NONE_ACCEPTED, Reason.LOWERED)] if config.strict else []
    kept = [d for d in kept if not {AUTO, NATIVE} & {*config.policy.choose(d.call).wishes}]
    if not kept:
        return
    wishes = config.policy
    count = f"{len(kept)} of {len(decisions)}"
    lines = [f"rewriting attention: ATTNPASS_STRICT=1 and {count} calls are taken by none of ATTNPASS_KERNEL={wishes}"]
    for decision in kept:
        lines.append(f"  {decision.call.source}  {decision.call.module or decision.call.node}: {decision.call.text()}")
        lines += [f"    by the clause {decision.clause!r}"] * bool(decision.clause)
        lines += [f"    {t.kernel}: {'; '.join(map(str, t.rejections))}" for t in decision.refused]
    lines.append(
        "Name another kernel in ATTNPASS_KERNEL (end the list with `auto` to accept any), or unset ATTNPASS_STRICT."
    )
    raise StrictError("\n".join(lines))


def _compile_options(decisions: Sequence[Decision], kernels: Mapping[str, Kernel]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for decision in decisions:
        if decision.rewritten:
            options.update(kernels[decision.kernel].compile_options(decision.call))
    return options


def node_devices(gm: GraphModule) -> set[torch.device]:
    """The devices of the tensors in ``gm`` and its bodies."""
    values = (value_of(n) for m in gm.modules() if isinstance(m, GraphModule) for n in m.graph.nodes)
    return {value.device for value in values if isinstance(value, torch.Tensor)}
