"""The facts about every device that a graph touches, with the libraries that its calls may want."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.fx import GraphModule

from attnpass.errors import ConfigError
from attnpass.graph.values import value_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import AUTO
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import libraries
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.library import PYTORCH, Library, try_out
from attnpass.machine.machine import Machine, Machines
from attnpass.select.auto import auto_order
from attnpass.select.decide import decision_key
from attnpass.select.select import select
from attnpass.select.wishes import check_policy, resolve_policy
from attnpass.settings.config import HINT, Config


def node_devices(gm: GraphModule) -> set[torch.device]:
    """The devices of the tensors in ``gm`` and its bodies."""
    values = (value_of(n) for m in gm.modules() if isinstance(m, GraphModule) for n in m.graph.nodes)
    return {value.device for value in values if isinstance(value, torch.Tensor)}


def look_at(
    gm: GraphModule,
    config: Config,
    kernels: Mapping[str, Kernel],
    calls: Sequence[AttentionCall] = (),
    cuda_graphs: bool = False,
) -> Machines:
    """The facts about every device that ``gm`` touches.

    Imported are only the libraries that are named, those that ``auto`` means for one of the calls, and to tune, all.

    Args:
        gm: the graph.
        config: the settings in force.
        kernels: those that may be chosen, by name.
        calls: the attention calls in it.
        cuda_graphs: will the compiler replay launches?

    Raises:
        UnknownKernelError: no kernel has a name that is wished for.
        KernelUnavailableError: the library of a named kernel is missing or too old.
    """
    wishes = resolve_policy(config.kernel, kernels, config.kernel_origin)
    named = {kernels[name].limits.library for name in wishes if name != AUTO}
    exact = {kernel.limits.library for kernel in kernels.values() if kernel.limits.exact}
    machines = {}

    def seen(device: torch.device, imported: Iterable[Library]) -> Machine:
        return replace(Machine.look(device, libraries(kernels), imported), cuda_graphs=cuda_graphs)

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
        if config.kernel_origin != HINT:
            check_policy(config.kernel, kernels, machine, config.kernel_origin)
        machines[device] = machine
    return machines


def invented(name: str, kernels: Mapping[str, Kernel], wished: Iterable[Library] = ()) -> Machine:
    """A machine that need not be here, one of `KNOWN_MACHINES`, with every library in the oldest version that will do.

    Args:
        name: its name.
        kernels: every registered kernel by name.
        wished: libraries to look into: those of ``hub:`` kernels, which are the same anywhere.

    Raises:
        ConfigError: no machine has the name.
    """
    if name not in KNOWN_MACHINES:
        raise ConfigError(f"inventing a machine: {name!r} is none of {', '.join(KNOWN_MACHINES)}")
    machine = KNOWN_MACHINES[name]
    found = {one.key: try_out(one) for one in wished if one.part}
    return replace(
        machine,
        versions={**{one.key: one.min_version for one in libraries(kernels)}, **machine.versions},
        unusable={key: there.problem for key, there in found.items() if there.problem},
        builds={key: there.build for key, there in found.items() if there.build},
    )


def _libraries_chosen(
    calls: Sequence[AttentionCall], kernels: Mapping[str, Kernel], machine: Machine, config: Config
) -> set[Library]:
    """The libraries of the kernels that would be selected; equal calls are asked about once."""
    alike = {decision_key(call, config) or index: call for index, call in enumerate(calls)}
    return {kernels[select(call, kernels, machine, config).kernel].limits.library for call in alike.values()}
