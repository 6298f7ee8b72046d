"""Emit a kernel for a call that no SDPA call can spell: windows, softcap, sinks. And judge what it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule

from attnpass.apply.emit_call import Site, emit_call
from attnpass.emit.emitter import Emitter
from attnpass.find.find import find
from attnpass.find.sdpa import wiring_of
from attnpass.graph.operand import Operand
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.limits import Limits, Rejection
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.kernels.registry import registry_for
from attnpass.machine.machine import Machine
from attnpass.select.checks import rejections
from attnpass.testing import sdpa_graph
from attnpass.trials.reference import allowed_error, difference
from tests.helpers.brute_force import brute_force


def window(left: int | None, right: int | None, offset: int = 0) -> MaskSpec:
    return MaskSpec((MaskTerm(Term.WINDOW, offset, left, right),))


def seen_by(mask: MaskSpec, Sq: int, Sk: int) -> Tensor:
    """(Sq, Sk), True where a key takes part: each pair looked at on its own."""

    def takes_part(q: int, k: int) -> bool:
        for term in mask.terms:
            distance = k - (q + term.offset)
            if term.term is Term.CAUSAL and distance > 0:
                return False
            if term.term is Term.WINDOW and term.left is not None and distance < -term.left:
                return False
            if term.term is Term.WINDOW and term.right is not None and distance > term.right:
                return False
        return True

    return torch.tensor([[takes_part(q, k) for k in range(Sk)] for q in range(Sq)])


def emitted(
    kernel: str, machine: Machine, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, **changes: Any
) -> tuple[GraphModule, list[Rejection]]:
    """The graph that computes the changed call with ``kernel``, and why the kernel would have refused it."""
    gm = sdpa_graph({"enable_gqa": q.shape[1] != k.shape[1]}, mask=False)
    *inputs, node = [n for n in gm.graph.nodes if n.op != "output"]
    mode, tensors = FakeTensorMode(allow_non_fake_inputs=True), [q, k, v]
    if sinks is not None:
        with gm.graph.inserting_after(inputs[-1]):
            inputs.append(gm.graph.placeholder("sinks"))
        tensors.append(sinks)
        changes["sinks"] = TensorSpec.of(sinks)
    with mode:
        for each, tensor in zip(inputs, tensors, strict=True):
            each.meta["example_value"] = mode.from_tensor(tensor)
        values = [each.meta["example_value"] for each in inputs[:3]]
        node.meta["example_value"] = F.scaled_dot_product_attention(*values, **node.kwargs)
    call = replace(find(gm).calls[0].call, **changes)
    chosen = registry_for((kernel,))[kernel]
    refused = [*rejections(chosen.limits_for(machine), call, machine), *chosen.check(call, machine)]
    if not refused:
        wiring = replace(wiring_of(node), sinks=Operand(inputs[3]) if sinks is not None else None)
        node.replace_all_uses_with(emit_call(Emitter(gm, node), call, chosen, Site(node, wiring)).out)
        gm.graph.erase_node(node)
        gm.recompile()
    return gm, refused


def assert_like_brute_force(
    kernel: str, machine: Machine, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None, **changes: Any
) -> None:
    """Emit the changed call, run it, and compare output and gradients with the call written out."""
    gm, refused = emitted(kernel, machine, q, k, v, sinks, **changes)
    assert not refused, [str(reason) for reason in refused]
    limits = registry_for((kernel,))[kernel].limits_for(machine)
    seen = seen_by(changes.get("mask", MaskSpec()), q.shape[2], k.shape[2])
    meaning = {name: changes[name] for name in ("scale", "softcap") if name in changes}
    leaves = [x for x in (q, k, v, sinks) if x is not None]
    own_leaves, exact_leaves = (
        [x.detach().to(dtype or x.dtype).requires_grad_(x.requires_grad) for x in leaves]
        for dtype in (None, torch.float64)
    )
    got = gm(*leaves)
    own = brute_force(*own_leaves[:3], seen, sinks=None if sinks is None else own_leaves[3], **meaning)
    exact = brute_force(*exact_leaves[:3], seen, sinks=None if sinks is None else exact_leaves[3], **meaning)
    assert got.stride() == F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1]).stride()
    _assert_close("output", got, own, exact, limits)
    if q.requires_grad:
        weight = torch.randn(got.shape)
        pairs = ((got, leaves), (own, own_leaves), (exact, exact_leaves))
        grads = [torch.autograd.grad((out * weight.to(out.dtype)).sum(), given) for out, given in pairs]
        for name, *three in zip(("q", "k", "v", "sinks")[: len(leaves)], *grads, strict=True):
            _assert_close(f"gradient of {name}", *three, limits)


def _assert_close(name: str, got: Tensor, own: Tensor, exact: Tensor, limits: Limits) -> None:
    found = difference(got, exact)
    allowed = allowed_error([difference(own, exact)], got.dtype, limits.tolerance)
    assert not found.nan and found.max_abs <= allowed, f"{name}: {found}, allowed {allowed:.2e}"
