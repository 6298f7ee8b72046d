"""The pass: find -> understand -> select -> apply -> report, on a copy of the graph.

Everything is decided before anything is changed. The copy is thrown away if the pass fails, and the untouched graph is
compiled: a bug in here may cost speed, never a result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch.fx import GraphModule

from attnpass.apply.apply import apply
from attnpass.errors import StrictError
from attnpass.find.find import find
from attnpass.find.found import Findings
from attnpass.graph.copy import GraphCopy
from attnpass.ir.decision import AUTO, NATIVE, Decision, Reason
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import registry_for
from attnpass.machine.machine import Machine, Machines
from attnpass.report.log import say_once
from attnpass.report.record import Report
from attnpass.select.decide import decide
from attnpass.select.machines import look_at, node_devices
from attnpass.select.wishes import with_hint
from attnpass.settings.config import Config
from attnpass.trials.trials import Trials
from attnpass.understand.buffers import Assumptions
from attnpass.understand.understand import understand


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


@dataclass(frozen=True, slots=True)
class Given:
    """What a graph does not say of itself.

    Attributes:
        cuda_graphs: will the compiler replay launches?
        grad: do gradients flow through the calls, where the graph's values do not say it.
        dry_run: decide everything, change nothing.
        machine: where the calls are to run, if that is not here; only for a dry run, and nothing is tried out.
    """

    cuda_graphs: bool = False
    grad: bool | None = None
    dry_run: bool = False
    machine: Machine | None = None


def run_pass(gm: GraphModule, config: Config, report: Report, given: Given = Given()) -> Rewritten:
    """Rewrite a copy of ``gm``.

    Args:
        gm: a graph with fake values on its nodes (``example_value`` or ``val``). It is not changed.
        config: the settings in force.
        report: the report to complete (its running number and names are set by the caller).
        given: what the graph does not say.

    Raises:
        ConfigError, UnknownKernelError, KernelUnavailableError: a setting cannot be met.
        StrictError: ``config.strict`` is on and a call was kept although its wished kernels refused it.
    """
    clock = _Clock()
    code_before = gm.print_readable(print_output=False) if config.log == "debug" or config.report else ""
    assumptions = Assumptions()
    findings = understand(find(gm, given.grad), assumptions)
    with clock.stopped():  # importing a library is not the pass
        kernels = registry_for(config.wishes, config.trust_remote_code)
        config, followed = with_hint(config, kernels)
        machines = _machines(gm, config, kernels, findings, given)
    if followed:
        say_once(f"attnpass: {followed}")
    trials = Trials(kernels) if given.machine else Trials.of(config, kernels, machines)
    decisions = decide(findings, kernels, machines, config, trials)
    clock.start += trials.spent  # nor is timing kernels
    work = gm
    if not given.dry_run:
        work, decisions = _applied(gm, findings, decisions, trials)
    _enforce_strict(decisions, config, kernels)  # behind apply: a kernel may turn out not to fit only there
    report = replace(
        report,
        config=config,
        machines={device: machines[device] for device in dict.fromkeys(d.call.device for d in decisions)},
        decisions=tuple(decisions),
        near_misses=findings.near_misses,
        nodes=findings.nodes,
        pass_ms=clock.ms,
        code_before=code_before,
        code_after=work.print_readable(print_output=False) if work is not gm and code_before else code_before,
    )
    return Rewritten(work, report, {} if work is gm else _compile_options(decisions, kernels), assumptions)


def _machines(
    gm: GraphModule, config: Config, kernels: Mapping[str, Kernel], findings: Findings, given: Given
) -> Machines:
    if given.machine is not None:
        return dict.fromkeys(node_devices(gm), given.machine)
    return look_at(gm, config, kernels, [found.call for found in findings.calls], given.cuda_graphs)


@dataclass(slots=True)
class _Clock:
    start: float = field(default_factory=time.perf_counter)

    @property
    def ms(self) -> float:
        return (time.perf_counter() - self.start) * 1000

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What runs inside does not count."""
        before = time.perf_counter()
        yield
        self.start += time.perf_counter() - before


def _applied(
    gm: GraphModule, findings: Findings, decisions: list[Decision], trials: Trials
) -> tuple[GraphModule, list[Decision]]:
    """A rewritten copy, or ``gm`` itself if nothing changes; and what became of the decisions."""
    if not any(decision.rewritten for decision in decisions):
        return gm, decisions
    copied = GraphCopy.of(gm)
    decisions = apply(copied, findings, decisions, trials.kernels, trials.verifier)
    if not any(decision.rewritten for decision in decisions):
        return gm, decisions
    copied.finish()
    return copied.module, decisions


def _enforce_strict(decisions: Sequence[Decision], config: Config, kernels: Mapping[str, Kernel]) -> None:
    kept = [d for d in decisions if d.reason in (Reason.NONE_ACCEPTED, Reason.LOWERED)] if config.strict else []
    accept = {AUTO, NATIVE, *kernels[NATIVE].aliases}
    kept = [d for d in kept if not accept & {*config.choose(d.call).wishes}]
    if not kept:
        return
    wishes = f"ATTNPASS_KERNEL={config.kernel}" if config.decisions is None else str(config.decisions)
    count = f"{len(kept)} of {len(decisions)}"
    lines = [f"rewriting attention: ATTNPASS_STRICT=1 and {count} calls are taken by none of {wishes}"]
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
