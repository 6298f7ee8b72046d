"""One attention call alone: a kernel emitted into a graph that holds nothing else, to be tried or timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._guards import tracing
from torch._ops import HigherOrderOperator
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import Graph, GraphModule, Node

from attnpass.apply.emit_call import emit_call
from attnpass.emit.emitter import EmitRefusedError, Emitter
from attnpass.find.find import find
from attnpass.find.sdpa import wiring_of
from attnpass.graph.operand import Operand
from attnpass.graph.tensor import TensorSpec
from attnpass.index.logic import all_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec
from attnpass.ir.meaning import Meaning
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.select.checks import rejections
from attnpass.understand.understand import Reader

SDPA = torch.nn.functional.scaled_dot_product_attention
OPERANDS = ("q", "k", "v", "mask", "sinks")


class UnfitError(Exception):
    """The kernel does not take the call, or the device is not there: nothing can be said."""


@contextmanager
def undisturbed(device: torch.device, grad: bool) -> Iterator[None]:
    """Neither disturbed by the compilation around us nor disturbing it, or the program's random numbers."""
    with ExitStack() as stack:
        stack.enter_context(tracing(None))
        stack.enter_context(unset_fake_temporarily())
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        yield


def runnable_alone(
    kernel: Kernel,
    machine: Machine,
    tensors: Mapping[str, Tensor | None],
    options: Mapping[str, Any],
    adapt: Callable[[AttentionCall], AttentionCall],
    proved: bool = False,
) -> Callable[..., Tensor]:
    """One call with ``kernel``, ready to run; it takes those of ``tensors`` that are there, in order.

    Args:
        kernel: who computes it.
        machine: where.
        tensors: by the names in `OPERANDS`.
        options: the keyword arguments of SDPA.
        adapt: adds to the call what SDPA cannot say: rules of the mask, softcap, gradients.
        proved: is the mask tensor handed over as what it means, as far as its shape says that?

    Raises:
        UnfitError: the kernel refuses the call.
    """
    gm, nodes, out = _program(tensors, options)
    findings = find(gm)
    (found,) = findings.calls
    found = Reader(findings.reading).understood(found) if proved else found
    call = adapt(found.call)
    meaning = None if found.meaning is None else _with_rules(found.meaning, call.mask)
    sinks = tensors.get("sinks")
    if sinks is not None:
        call = replace(call, sinks=TensorSpec.of(sinks))
    refused = [*rejections(kernel.limits_for(machine), call, machine), *kernel.check(call, machine)]
    if refused:
        raise UnfitError("; ".join(map(str, refused)))
    try:
        wiring = wiring_of(out)
        if "sinks" in nodes:
            wiring = replace(wiring, sinks=Operand(nodes["sinks"]))
        _, emitted = emit_call(Emitter(gm, out), out, call, kernel, wiring, meaning)
    except EmitRefusedError as error:
        raise UnfitError(str(error)) from error
    out.replace_all_uses_with(emitted)
    gm.graph.erase_node(out)
    gm.recompile()
    return runnable(gm, [x for x in tensors.values() if x is not None], kernel.compile_options(call))


def runnable(gm: GraphModule, given: Sequence[Tensor], options: Mapping[str, Any]) -> Callable[..., Tensor]:
    """The graph as it is; compiled, where it holds an operator that is only itself when compiled (FlexAttention).

    Args:
        gm: a graph with one output.
        given: its inputs.
        options: of Inductor.
    """
    if not any(isinstance(node.target, HigherOrderOperator) for node in gm.graph.nodes):
        return gm
    from torch._inductor.compile_fx import compile_fx

    compiled: Any = compile_fx(gm, list(given), config_patches=dict(options))

    def run(*operands: Tensor) -> Tensor:
        out = compiled(*operands)
        return out if isinstance(out, Tensor) else out[0]

    return run


def _with_rules(meaning: Meaning, mask: MaskSpec) -> Meaning:
    """``meaning`` and the causal and window terms of ``mask``."""
    return replace(meaning, spec=mask, allowed=all_of((meaning.allowed, Meaning.of_rules(mask).allowed)))


def _program(
    tensors: Mapping[str, Tensor | None], options: Mapping[str, Any]
) -> tuple[GraphModule, dict[str, Node], Node]:
    """A program that is one call of SDPA, its inputs by name, and the call."""
    graph = Graph()
    nodes = {name: graph.placeholder(name) for name, tensor in tensors.items() if tensor is not None}
    out = graph.call_function(SDPA, tuple(nodes.get(name) for name in OPERANDS[:4]), dict(options))
    graph.output(out)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = {name: mode.from_tensor(tensor) for name, tensor in tensors.items() if tensor is not None}
    for name, node in nodes.items():
        node.meta["example_value"] = fake[name]
    with mode:
        out.meta["example_value"] = SDPA(fake["q"], fake["k"], fake["v"], fake.get("mask"), **options)
    return GraphModule(torch.nn.Module(), graph), nodes, out
