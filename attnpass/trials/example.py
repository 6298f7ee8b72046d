"""One attention call on made-up data: a kernel computes it alone, in a graph that holds nothing else."""

from __future__ import annotations

import math
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
from torch.nn.functional import scaled_dot_product_attention

from attnpass.apply.emit_call import Site, emit_call
from attnpass.emit.emitter import EmitRefusedError, Emitter
from attnpass.graph.operand import Operand
from attnpass.graph.tensor import TensorSpec
from attnpass.index.expr import B, K, Load, axis, number
from attnpass.index.logic import all_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec, Term
from attnpass.ir.meaning import Meaning
from attnpass.ir.wiring import Addition, Wiring
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.select.checks import rejections
from attnpass.select.costs import FEW

OPERANDS = ("q", "k", "v", "mask", "sinks")
SEEN = 0.7  # of the keys of a bool mask
Step = Callable[[], object]


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


class Example:
    """The operands of one call, made once for all kernels that compute it.

    Attributes:
        call: the call, with numbers for sizes. A mask whose meaning was proved is rules and padding.
        tensors: q, k, v, mask, sinks and padding on the device, those that there are. Padding, (B, 1, 1, Sk), is what a
            kernel reads that computes the mask from its meaning.

    Args:
        call: the call.
        hides: do padding and bool masks hide keys at random, as suits who looks for faults? If not, they are what a
            program's own are like, of which no more is known, as suits a clock.
    """

    def __init__(self, call: AttentionCall, hides: bool = False) -> None:
        self.call = call
        specs = (call.q, call.k, call.v, call.mask.spelled or call.mask.tensor, call.sinks)
        try:
            generator = torch.Generator(call.device if call.device.type == "cuda" else "cpu").manual_seed(0)
            self.tensors = {
                name: _typical(spec, int(call.Sq))
                if name == "mask" and spec.dtype == torch.bool and not hides
                else _random(spec, generator, grad=call.needs_grad and name in "qkv")
                for name, spec in zip(OPERANDS, specs, strict=True)
                if spec is not None
            }
            if call.mask.has(Term.KEY_PADDING):
                self.tensors["padding"] = _padding(call, generator, hides)
        except (RuntimeError, AssertionError) as error:
            raise UnfitError(str(error)) from error

    def operands(self, spelled: bool = False) -> list[Tensor | None]:
        """q, k, v, mask and sinks for a kernel that reads the mask as a tensor, or computes it from the padding."""
        computes = self.call.mask.spelled is not None and not spelled
        return [self.tensors.get("padding" if computes and name == "mask" else name) for name in OPERANDS]

    def runnable(self, kernel: Kernel, machine: Machine, spelled: bool = False) -> Callable[..., Tensor]:
        """The call, computed by ``kernel``: a function of those of `operands` that are there.

        Args:
            kernel: who computes the call.
            machine: where.
            spelled: does it read the mask as a tensor, although its meaning is known?

        Raises:
            UnfitError: the kernel refuses.
        """
        call = replace(self.call, mask=self.call.mask.as_spelled()) if spelled else self.call
        refused = [*rejections(kernel.limits_for(machine), call, machine), *kernel.check(call, machine)]
        if refused:
            raise UnfitError("; ".join(map(str, refused)))
        given = {name: x for name, x in zip(OPERANDS, self.operands(spelled), strict=True) if x is not None}
        try:
            gm = _emitted(kernel, call, given)
        except EmitRefusedError as error:
            raise UnfitError(str(error)) from error
        return runnable(gm, list(given.values()), kernel.compile_options(call))

    def step(self, kernel: Kernel, machine: Machine, spelled: bool = False) -> Step:
        """One run of `runnable`: forward, and backward too where gradients flow."""
        run = self.runnable(kernel, machine, spelled)
        given = [x for x in self.operands(spelled) if x is not None]
        if not self.call.needs_grad:
            return lambda: run(*given)
        wanted = [x for x in given if x.requires_grad]
        weight = torch.randn_like(run(*given))
        return lambda: torch.autograd.grad(run(*given), wanted, weight)


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


def _emitted(kernel: Kernel, call: AttentionCall, given: Mapping[str, Tensor]) -> GraphModule:
    """A graph that is the call, emitted by the kernel; its result lies as SDPA's would."""
    graph, mode = Graph(), FakeTensorMode(allow_non_fake_inputs=True)
    nodes = {name: graph.placeholder(name) for name in given}
    for name, node in nodes.items():
        node.meta["example_value"] = mode.from_tensor(given[name])
    end = graph.output(())
    with mode:
        q, k, v = (nodes[name].meta["example_value"].to(call.dtype) for name in "qkv")
        end.meta["example_value"] = scaled_dot_product_attention(q, k, v, enable_gqa=call.is_gqa)
    operands = {name: Operand(node) for name, node in nodes.items()}
    additions: tuple[Addition[Node], ...] = ()
    if "mask" in operands:
        additions = (Addition(operands["mask"], -math.inf if given["mask"].dtype == torch.bool else None),)
    wiring = Wiring(operands["q"], operands["k"], operands["v"], additions, operands.get("sinks"))
    meaning = None if call.mask.spelled is None else _meaning(call.mask, nodes.get("mask"))
    gm = GraphModule(torch.nn.Module(), graph)
    end.args = (emit_call(Emitter(gm, end), replace(call, lse=None), kernel, Site(end, wiring, meaning)).out,)
    gm.recompile()
    return gm


def _meaning(mask: MaskSpec, padding: Node | None) -> Meaning:
    """The rules of ``mask``, and what it reads from ``padding``, (B, 1, 1, Sk)."""
    rules = Meaning.of_rules(mask)
    if padding is None:
        return rules
    seen = Load(padding, (axis(B), number(0), number(0), axis(K)), torch.bool)
    return replace(rules, allowed=all_of((seen, rules.allowed)))


def _random(spec: TensorSpec, generator: torch.Generator, grad: bool = False) -> Tensor:
    """Random numbers in a tensor of this shape, dtype and these strides; a bool one is a mask with no empty row."""
    shape, stride = [int(size) for size in spec.shape], [int(step) for step in spec.stride]
    reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True) if size)
    if spec.dtype != torch.bool:
        held = torch.randn(reach, generator=generator, device=generator.device, dtype=spec.dtype).to(spec.device)
        return held.as_strided(shape, stride).detach().requires_grad_(grad)
    held = torch.rand(reach, generator=generator, device=generator.device).to(spec.device) < SEEN
    mask = held.as_strided(shape, stride)
    _once(mask)[..., :1] = True
    return mask


def _typical(spec: TensorSpec, queries: int) -> Tensor:
    """A bool mask as models make them: causal where it has a row for each query, half a cache, or padding of one key.

    Kernels that leave out hidden blocks cost what the mask hides: random masks, that hide no block, are nobody's.
    """
    shape, stride = [int(size) for size in spec.shape], [int(step) for step in spec.stride]
    mask = torch.empty_strided(shape, stride, dtype=torch.bool, device=spec.device)
    rows, Sk = shape[-2:]
    keys, last = (torch.arange(length, device=spec.device) for length in (Sk, rows))
    shown = keys < (Sk // 2 if queries <= FEW else Sk - 1)
    _once(mask).copy_(shown if rows == 1 else shown & (keys <= last[:, None] + (Sk - rows)))
    _once(mask)[..., :1] = True  # no row without a key
    return mask


def _once(mask: Tensor) -> Tensor:
    """Each element of a tensor that may repeat some, once."""
    return mask[tuple(slice(None, None if step else 1) for step in mask.stride())]


def _padding(call: AttentionCall, generator: torch.Generator, hides: bool) -> Tensor:
    """Which keys take part: all, or in one example none (where a row may see none), in the others scattered ones."""
    shape = int(call.B), 1, 1, int(call.Sk)
    if not hides:
        return torch.ones(shape, dtype=torch.bool, device=call.device)
    seen = torch.rand(shape, generator=generator, device=generator.device) < SEEN
    full = not call.mask.rows_may_be_empty
    seen[0], seen[1:, ..., -1] = full, True
    seen[..., 0] |= full
    return seen.to(call.device)
