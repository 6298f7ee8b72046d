"""The whole suite for one kernel in one call: generated calls, calls just outside the limits, ops, torch.compile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.utils import _pytree as pytree

from attnpass.backend import attnpass
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import NATIVE
from attnpass.ir.limits import FLOATS, TOP_LEFT, Code, Limits
from attnpass.ir.mask import MaskSpec, Term
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import _registry, register, registry
from attnpass.machine.machine import Machine
from attnpass.offline import rewrite
from attnpass.report.history import reports
from attnpass.report.record import Report
from attnpass.select.checks import rejections
from attnpass.testing.cases import Case, cases_for, make_operands, runnable
from attnpass.testing.conformance import check, sdpa_graph
from attnpass.trials.accuracy import judge

LARGEST_ON_CPU = 2_000_000  # products in one case: half precision is slow there
SYMBOLIC_LENGTHS = (100, 128, 131)  # in between a multiple of everything, then of nothing
ANYWHERE = "a kind of machine that is none"


def conform(kernel: Kernel | str, device: str = "cpu", *, count: int = 150, seed: int = 0) -> Counter[str]:
    """Hold a kernel to everything that its `Limits` promise.

    Args:
        kernel: the kernel, or the name of a registered one.
        device: where the calls are computed.
        count: how many calls are drawn from its limits.
        seed: of the draw.

    Returns:
        How many of the drawn calls were ``right`` and how many ``refused``.

    Raises:
        AssertionError: something is wrong: an output, a gradient or its strides, an operand changed in place, a refusal
            without its code, an op that breaks a rule of ``torch.library``. The message says which call.
    """
    with _registered(kernel) as known:
        outcomes: Counter[str] = Counter()
        taken: dict[Any, Case] = {}
        for case in _drawn(known.limits, device, count, seed):
            outcome = check(known.name, case, device)
            outcomes["refused" if outcome.refused else "right"] += 1
            if not outcome.refused:
                taken.setdefault((case.grad, case.mask in ("none", "causal")), case)
        assert taken, f"{known.name} took none of {count} calls that were drawn from its limits"
        for (_, dense), case in taken.items():
            if dense:  # opcheck copies operands, and a mask's rows are no longer aligned then
                check_ops(known.name, case, device)
                check_symbolic(known.name, case, device)
            check_compiled(known.name, case, device)
        check_refusals(known.name, next(iter(taken.values())), device)
        return outcomes


@contextmanager
def _registered(kernel: Kernel | str) -> Iterator[Kernel]:
    """The kernel, registered for as long as it is looked at."""
    if isinstance(kernel, str) or registry().get(kernel.name) is kernel:
        yield registry()[kernel if isinstance(kernel, str) else kernel.name]
        return
    register(kernel)
    try:
        yield kernel
    finally:
        del _registry[kernel.name]


@contextmanager
def _unregistered(kernel: str) -> Iterator[None]:
    before = dict(_registry)
    del _registry[kernel]
    try:
        yield
    finally:
        _registry.clear()
        _registry.update(before)  # in table order


def _drawn(limits: Limits, device: str, count: int, seed: int) -> list[Case]:
    """``count`` cases that PyTorch itself computes, small ones on a CPU."""
    found: list[Case] = []
    for case in cases_for(limits, 8 * count, seed):
        B, H, _Hkv, Sq, Sk, D, Dv = case.shape
        large = device == "cpu" and B * H * Sq * Sk * (D + Dv) > LARGEST_ON_CPU * (1 if limits.backward else 8)
        fit = None if large else runnable(case, device)
        if fit is not None:
            found.append(fit)
        if len(found) == count:
            break
    return found


def check_ops(kernel: str, case: Case, device: str = "cpu") -> None:
    """Hold the ops that ``kernel`` emits to the rules of ``torch.library.opcheck``: schema, fake, strides, autograd.

    Raises:
        torch.testing._internal.optests.OpCheckError: an op breaks one.
    """
    gm, _, inputs = _rewritten(kernel, case, device)
    _OpCheck(gm).run(*inputs)


def check_compiled(kernel: str, case: Case, device: str = "cpu") -> None:
    """Compile a call with ``torch.compile`` and judge what comes out.

    Raises:
        AssertionError: it is wrong, or not computed by ``kernel``.
    """
    torch._dynamo.reset()
    _judge_compiled(_compiled(kernel, case, device), case, device, registry()[kernel].limits)
    assert reports()[-1].rewritten, f"{case}: {kernel} takes it, but not inside torch.compile"
    torch._dynamo.reset()


def check_symbolic(kernel: str, case: Case, device: str = "cpu") -> None:
    """Compile a call whose length is symbolic and run it at several lengths.

    Raises:
        AssertionError: one is wrong, or the kernel's own questions about sizes made PyTorch compile anew.
    """
    B, H, Hkv, _Sq, _Sk, D, Dv = case.shape
    sized = [replace(case, shape=(B, H, Hkv, S, S, D, Dv), layout="BSHD") for S in SYMBOLIC_LENGTHS]
    graphs: dict[str, set[int]] = {NATIVE: set(), kernel: set()}
    for name, numbers in graphs.items():
        torch._dynamo.reset()
        compiled = _compiled(name, sized[0], device)
        for one in sized:
            if name == kernel:
                _judge_compiled(compiled, one, device, registry()[name].limits, symbolic=True)
            else:  # PyTorch's own may be wrong: causal with a negative scale is NaN on the CPU (2.13)
                with _unregistered(kernel):  # every registered kernel is asked
                    compiled(*_given(one, device, symbolic=True)[0])
            numbers.add(reports()[-1].graph)
    torch._dynamo.reset()
    wanted = f"{len(graphs[NATIVE])} without it; ask about sizes with attnpass.graph.symbolic only"
    assert len(graphs[kernel]) <= len(graphs[NATIVE]), f"{kernel}: compiled {len(graphs[kernel])} times, {wanted}"


def _compiled(kernel: str, case: Case, device: str) -> Callable[..., Tensor]:
    _, options = make_operands(case, device)

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, **options)

    settings = {**_settings(kernel), "attnpass.compiler": "aot_eager"}
    compiled: Callable[..., Tensor] = torch.compile(attention, backend=attnpass, options=settings)
    return compiled


def _judge_compiled(
    compiled: Callable[..., Tensor], case: Case, device: str, limits: Limits, symbolic: bool = False
) -> None:
    given, options = _given(case, device, symbolic)
    found = judge(limits, compiled, given, options)
    wrong = [str(one) for one in found if not one.good]
    assert not wrong, f"{case}, compiled{' for any length' if symbolic else ''}: {'; '.join(wrong)}"


def _given(case: Case, device: str, symbolic: bool) -> tuple[list[Tensor | None], dict[str, Any]]:
    """The operands of a case, their lengths marked as symbolic, and the options of the call."""
    operands, options = make_operands(case, device)
    for operand in operands[:3] if symbolic else ():
        torch._dynamo.maybe_mark_dynamic(operand, 2)
    return operands, options


def check_refusals(kernel: str, case: Case, device: str = "cpu") -> None:
    """Ask for calls that stand just outside the limits, each in one respect; each is refused with its code.

    Raises:
        AssertionError: one is not.
    """
    _, report, _ = _rewritten(kernel, case, device)
    call, machine = report.decisions[0].call, next(iter(report.machines.values()))
    known = registry()[kernel]
    limits = known.limits_for(machine)
    for code, outside, there in _outside(limits, call, machine):
        found = {reason.code for reason in (*rejections(limits, outside, there), *known.check(outside, there))}
        assert code in found, f"{kernel} takes {outside.text()} on {there.kind}, needs a refusal with {code.value!r}"


def _outside(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[tuple[Code, AttentionCall, Machine]]:
    yield Code.DEVICE, call, replace(machine, kind=ANYWHERE)
    if not limits.backward:
        yield Code.BACKWARD, replace(call, needs_grad=True), machine
    if not limits.dropout:
        yield Code.DROPOUT, replace(call, dropout_p=0.1), machine
    if not limits.softcap:
        yield Code.SOFTCAP, replace(call, softcap=2.0), machine
    if not (limits.sinks or limits.log_sum_exp):
        yield Code.SINKS, replace(call, sinks=TensorSpec((call.H,), (1,), call.q.dtype, call.device)), machine
    if not limits.log_sum_exp:
        lse = TensorSpec((call.B, call.H, call.Sq), (1, 1, 1), torch.float32, call.device)
        yield Code.LOG_SUM_EXP, replace(call, lse=lse), machine
    if limits.positive_scale:
        yield Code.SCALE, replace(call, scale=-1.0), machine
    if not limits.mask_tensor:
        mask = TensorSpec((call.Sq, call.Sk), (call.Sk, 1), torch.bool, call.device)
        yield Code.MASK, replace(call, mask=MaskSpec.from_tensor(mask)), machine
    if Term.CAUSAL not in limits.terms:
        yield Code.MASK, replace(call, mask=MaskSpec.causal()), machine
    elif not limits.alignments & TOP_LEFT:
        longer = replace(call.k, shape=(*call.k.shape[:-2], call.Sq + 8, call.D))
        yield Code.CAUSAL_ALIGNMENT, replace(call, mask=MaskSpec.causal(), k=longer, v=longer), machine
    for dtype in FLOATS - limits.dtypes:
        yield Code.DTYPE, replace(call, q=replace(call.q, dtype=dtype)), machine
    if limits.head_dim_max is not None:
        q, k = (replace(x, shape=(*x.shape[:-1], limits.head_dim_max + 8)) for x in (call.q, call.k))
        yield Code.HEAD_DIM, replace(call, q=q, k=k), machine


def _rewritten(kernel: str, case: Case, device: str) -> tuple[GraphModule, Report, list[Tensor]]:
    operands, options = make_operands(case, device)
    inputs = [x for x in operands if x is not None]
    gm = sdpa_graph(options, mask=operands[3] is not None)
    return *rewrite(gm, inputs, options=_settings(kernel)), inputs


def _settings(kernel: str) -> dict[str, Any]:
    return {"attnpass.kernel": kernel, "attnpass.probe": False}


def _checkable(operands: list[Any]) -> list[str]:
    """The checks that PyTorch can do: whether an operand was changed it asks ``allclose``, which has no fp8."""
    has_fp8 = any(isinstance(x, Tensor) and x.is_floating_point() and x.dtype.itemsize == 1 for x in operands)
    return ["test_schema"] * (not has_fp8) + [
        "test_autograd_registration",
        "test_faketensor",
        "test_aot_dispatch_dynamic",
    ]


class _OpCheck(Interpreter):
    """Runs a graph and checks each op that is not PyTorch's own with the operands that it meets."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims"):

            def leaf(x: Tensor) -> Tensor:
                return x.detach().requires_grad_(x.requires_grad)

            given = pytree.tree_map_only(Tensor, leaf, (args, kwargs))
            torch.library.opcheck(target, *given, test_utils=_checkable(pytree.tree_leaves(given)))
        return super().call_function(target, args, kwargs)
