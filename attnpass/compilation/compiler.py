"""Who compiles after the pass: Inductor as ``torch.compile`` itself would call it, or any other backend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule

from attnpass.errors import ConfigError
from attnpass.machine.machine import Machine, sdp_enabled
from attnpass.version import __version__

AHEAD_OF_TIME = "aot:"
OURSELVES = "attnpass"
Backend = Callable[..., Callable[..., Any]]
SALT_OPTION = "unsafe_marked_cacheable_functions"


@dataclass(frozen=True, slots=True)
class Downstream:
    """Who compiles after the pass, and what the user told them.

    Attributes:
        compiler: ``inductor``, a backend that Dynamo knows, or ``aot:NAME``.
        mode: ``torch.compile``'s mode, or None.
        options: the user's options for the downstream compiler.
    """

    compiler: str
    mode: str | None
    options: Mapping[str, Any]

    @property
    def uses_cuda_graphs(self) -> bool:
        """Will Inductor record CUDA graphs, by its mode (``reduce-overhead``, ...), options or configuration?"""
        if self.compiler != "inductor":
            return False
        name = "triton.cudagraphs"
        chosen = torch._inductor.list_mode_options().get(self.mode or "", {})
        return bool({name: torch._inductor.config.triton.cudagraphs, **chosen, **self.options}[name])


def compile_graph(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    downstream: Downstream,
    kernel_options: Mapping[str, Any],
    machine: Machine | None,
) -> Callable[..., Any]:
    """Compile ``gm`` with the downstream compiler that ``ATTNPASS_COMPILER`` names.

    Args:
        gm: the rewritten graph.
        example_inputs: as Dynamo gave them.
        downstream: who compiles it.
        kernel_options: Inductor options that the emitted kernels need; the user's own win.
        machine: the device of the calls in the graph, None if it has none.

    Raises:
        ConfigError: no such backend.
    """
    compiler, mode, options = downstream.compiler, downstream.mode, downstream.options
    backend: Backend
    if compiler == "inductor":
        salted = {**kernel_options, **options, SALT_OPTION: _salted(options.get(SALT_OPTION), machine)}
        backend = torch._TorchCompileInductorWrapper(mode, salted, None)
    elif compiler.startswith(AHEAD_OF_TIME):
        backend = _ahead_of_time(_lookup(compiler.removeprefix(AHEAD_OF_TIME)))
    else:
        kwargs = {key: value for key, value in (("mode", mode), ("options", dict(options))) if value}
        backend = partial(_lookup(compiler), **kwargs)
    return backend(gm, example_inputs)


def _ahead_of_time(backend: Backend) -> Backend:
    """``backend``, given the graphs that AOTAutograd makes."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def boxed(graph: GraphModule, inputs: Sequence[Any]) -> Any:
        return make_boxed_func(backend(graph, inputs))

    wrapped: Backend = aot_autograd(fw_compiler=boxed)
    return wrapped


def _salted(user_value: dict[str, str] | None, machine: Machine | None) -> dict[str, str]:
    """An option that puts our version, the libraries' and the SDPA switches into the key of AOTAutograd's cache.

    Beside it, that key holds no more of an op than its name.
    """
    facts = {
        "attnpass": __version__,
        "libraries": dict(machine.versions) if machine else {},
        "sdp": sorted(sdp_enabled()),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {**(user_value or {}), "attnpass.salt": digest}


def _lookup(name: str) -> Backend:
    from torch._dynamo.backends.registry import list_backends, lookup_backend

    known = ", ".join(sorted({"inductor", *list_backends(exclude_tags=())} - {OURSELVES}))
    wanted = f"known: {known}; or {AHEAD_OF_TIME}NAME for one that wants ahead-of-time graphs"
    doing = f"choosing a compiler: ATTNPASS_COMPILER names {name!r}, which"
    if name == OURSELVES:
        raise ConfigError(f"{doing} compiles nothing itself: it hands the graph to another compiler; {wanted}")
    try:
        backend = lookup_backend(name)
    except Exception as error:
        raise ConfigError(f"{doing} is not a registered backend ({error}); {wanted}") from None
    if _is_ourselves(backend):
        raise ConfigError(f"{doing} is another name of attnpass, which compiles nothing itself; {wanted}")
    return backend


def _is_ourselves(backend: Any) -> bool:
    while isinstance(backend, partial):
        backend = backend.func
    return str(getattr(backend, "__module__", "")).split(".")[0] == "attnpass"
