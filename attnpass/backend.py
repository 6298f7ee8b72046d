"""The Dynamo backend: ``torch.compile(model, backend="attnpass")``.

config -> pass -> report -> compiler. An entry point of the group ``torch_dynamo_backends`` names `attnpass`, so a
program needs no import. User errors (a wrong name, a strict refusal) are raised; an error of our own never breaks a
program: the untouched graph is compiled and the failure is said once.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._guards import CompileContext
from torch.fx import GraphModule

from attnpass import assumptions, log, memory, staleness, verify
from attnpass import report as rendering
from attnpass.call import AttentionCall
from attnpass.compiler import compile_graph, uses_cuda_graphs
from attnpass.config import Config, split_options, unknown_variables
from attnpass.errors import ISSUES_HINT, AttnpassError, PassError
from attnpass.kernel import Kernel
from attnpass.kernels import libraries, registry, registry_for
from attnpass.library import PYTORCH, Library
from attnpass.machine import Machine
from attnpass.policy_check import check_policy, resolve_policy
from attnpass.preference import auto_order
from attnpass.probe import Prover
from attnpass.recomputation import attention_is_expensive
from attnpass.report.record import Report
from attnpass.rewrite import Machines, Rewritten, decision_key, node_devices, run_pass
from attnpass.select import AUTO, select
from attnpass.tuning.tuner import Tuner
from attnpass.verify import Verifier

logger = logging.getLogger(__name__)
REPORTS_KEPT = 1000

_reports: deque[Report] = deque(maxlen=REPORTS_KEPT)
_numbers = itertools.count()
_said: set[str] = set()
_provers: dict[Path, Prover] = {}
_tuners: dict[Path, Tuner] = {}


def attnpass(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """Compile one Dynamo graph: rewrite its attention, then hand it to Inductor (or ``ATTNPASS_COMPILER``).

    Args:
        gm: the graph, before autograd.
        example_inputs: real tensors and SymInts, as Dynamo gives them.
        mode: ``torch.compile``'s mode, for Inductor.
        options: ``torch.compile``'s options; ``attnpass.*`` are ours, the others Inductor's.

    Raises:
        ConfigError: a setting is not legal.
        UnknownKernelError: no kernel has the name.
        KernelUnavailableError: the library of a named kernel is missing or too old.
        StrictError: ``ATTNPASS_STRICT=1`` and a call was kept.
    """
    ours, theirs = split_options(options)
    config = Config.load(ours)
    log.configure("info" if config.verify and config.log == "warning" else config.log)
    _say_unknown_variables()
    staleness.guard()
    rewritten = _guarded_pass(gm, config, uses_cuda_graphs(config.compiler, mode, theirs))
    rewritten.assumptions.guard()
    publish(rewritten.report, config)
    machine = next(iter(rewritten.report.machines.values()), None)
    with attention_is_expensive(rewritten.module):
        return compile_graph(
            rewritten.module, example_inputs, config.compiler, mode, theirs, rewritten.compile_options, machine
        )


def reset() -> None:
    """Called by ``torch._dynamo.reset()``: forget what verification and changed buffers taught."""
    verify.forget()
    assumptions.forget()


attnpass.reset = reset  # type: ignore[attr-defined]


def look_at(
    gm: GraphModule, config: Config, calls: Sequence[AttentionCall] = (), cuda_graphs: bool = False
) -> Machines:
    """The facts about every device that ``gm`` touches.

    Imported are only the libraries that are named, those that ``auto`` means for one of the calls, and to tune, all.

    Args:
        gm: the graph.
        config: the settings in force.
        calls: the attention calls in it.
        cuda_graphs: will the compiler replay launches?

    Raises:
        UnknownKernelError: no kernel has a name that is wished for.
        KernelUnavailableError: the library of a named kernel is missing or too old.
    """
    kernels = registry_for(config.policy.wishes, config.trust_remote_code)
    wishes = resolve_policy(config.policy, kernels)
    named = {kernels[name].limits.library for name in wishes if name != AUTO}
    exact = {kernel.limits.library for kernel in kernels.values() if kernel.limits.exact}
    machines = {}

    def seen(device: torch.device, imported: Iterable[Library]) -> Machine:
        return replace(Machine.look(device, libraries(), imported), cuda_graphs=cuda_graphs)

    for device in node_devices(gm):
        imported = {PYTORCH, *named, *(exact if config.tune else ())}  # those of them that are not here stay so
        machine = seen(device, imported)
        possible = {kernels[name].limits.library for name in auto_order(machine)} if AUTO in wishes else set()
        here = [call for call in calls if call.device == device]
        while not possible <= imported:
            chosen = _libraries_chosen(here, kernels, machine, config)
            if chosen <= imported:
                break
            imported |= chosen
            machine = seen(device, imported)
        check_policy(config.policy, kernels, machine)
        machines[device] = machine
    return machines


def _libraries_chosen(
    calls: Sequence[AttentionCall], kernels: Mapping[str, Kernel], machine: Machine, config: Config
) -> set[Library]:
    """The libraries of the kernels that would be selected; equal calls are asked about once."""
    alike = {decision_key(call, config) or index: call for index, call in enumerate(calls)}
    return {kernels[select(call, kernels, machine, config).kernel].limits.library for call in alike.values()}


def new_report(config: Config) -> Report:
    """An empty report with the next running number."""
    compile_id = CompileContext.current_compile_id()
    return Report(graph=next(_numbers), compile_id=str(compile_id or ""), config=config)


def reports() -> list[Report]:
    """The reports of this process, oldest first (the last `REPORTS_KEPT`)."""
    return list(_reports)


def clear_reports() -> None:
    """Forget the reports of this process."""
    _reports.clear()


def _guarded_pass(gm: GraphModule, config: Config, cuda_graphs: bool) -> Rewritten:
    """Run the pass; on an error of our own, say it and give the untouched graph back."""
    report = new_report(config)
    verifier = _verifier(config)

    def look(calls: Sequence[AttentionCall]) -> Machines:
        machines = look_at(gm, config, calls, cuda_graphs)
        if verifier is not None:
            verifier.machines = machines
        return machines

    try:
        return run_pass(gm, registry(), look, config, report, verifier, prover(config), tuner(config))
    except AttnpassError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        what = "ATTNPASS_STRICT=1, so nothing runs" if config.strict else "the program runs unrewritten"
        message = (
            f"attnpass: rewriting graph {report.graph} failed with {text}; {what}; "
            f"{ISSUES_HINT}. ATTNPASS_KERNEL=native switches the rewriting off."
        )
        if config.strict:
            raise PassError(message) from error
        _say_once(message)
        logger.debug("the failure in full", exc_info=True)
        return Rewritten(gm, replace(report, error=text))


def _verifier(config: Config) -> Verifier | None:
    compile_id = CompileContext.current_compile_id()
    if not config.verify or compile_id is None:
        return None
    return Verifier(f"frame {compile_id.frame_id}", registry())


def prover(config: Config) -> Prover | None:
    """Tries kernels of libraries before they are used; one for each cache folder and process."""
    if not config.probe:
        return None
    return _provers.setdefault(folder := memory.cache_folder(config.cache), Prover(folder))


def tuner(config: Config) -> Tuner | None:
    """Times kernels if ``ATTNPASS_TUNE`` asks for it; one for each cache folder and process."""
    return _tuners.setdefault(folder := memory.cache_folder(config.cache), Tuner(folder)) if config.tune else None


def publish(report: Report, config: Config) -> None:
    """Say what was decided: in `reports`, in the log and, where that is asked for, in a file."""
    context = CompileContext.try_get()
    if context and context.attempt and _reports and _reports[-1].compile_id == report.compile_id:
        _reports.pop()  # Dynamo started this very graph over
    _reports.append(report)
    torch._dynamo.utils.counters["attnpass"]["calls"] += len(report.decisions)
    torch._dynamo.utils.counters["attnpass"]["rewritten"] += report.rewritten
    log.emit_report(report)
    if config.report:
        try:
            rendering.write(report, config.report)
        except Exception as error:
            _say_once(
                f"attnpass: writing the report to {config.report} failed with {error}; choose another ATTNPASS_REPORT"
            )


def _say_unknown_variables() -> None:
    for message in unknown_variables():
        _say_once(f"attnpass: {message}")


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning("%s", message)
