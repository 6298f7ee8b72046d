"""Is a result as right as eager's own? The yardstick is the error that eager makes against the same program in fp64.

A value may lie near eager's, near the exact one, or between both: where rounding decides (a finite fill beside scores),
either is a right answer, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tests.fuzz.scope import Program

LOWER = (torch.float32, torch.float16, torch.bfloat16)
CASTS = {"half": torch.float16, "bfloat16": torch.bfloat16, "float": torch.float32}
STEPS = {torch.float64: 1e6, torch.float32: 64.0, torch.float16: 8.0, torch.bfloat16: 4.0}  # floor, in eps of the dtype
MULTIPLE = 4.0
LOST = 5e-2  # the same for half precision: eager itself is no answer there
COARSE = 1e-2  # of the largest value: a row that is farther off is another question
USUAL = 100.0  # values of attention and its gradients, at these sizes


class InDouble(TorchFunctionMode):
    """Every float is an fp64 one. A cast loses no precision; what is beyond the range of its type becomes infinite.

    A cast away from ``dtype``, the program's own, makes a copy as it does there.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wanted: list[torch.dtype] = [CASTS[func.__name__]] if getattr(func, "__name__", "") in CASTS else []

        def widened(x: Any) -> Any:
            if isinstance(x, torch.dtype) and x in LOWER:
                wanted.append(x)
                return torch.float64
            return x

        args, kwargs = pytree.tree_map(widened, (tuple(args), dict(kwargs or {})))
        if getattr(func, "__name__", "") in CASTS and isinstance(args[0], Tensor):
            func, args = torch.Tensor.to, (args[0], torch.float64)
        if func is torch.Tensor.to and wanted and wanted[0] != self.dtype:
            kwargs["copy"] = True
        result = func(*args, **kwargs)
        if wanted and isinstance(result, Tensor) and result.dtype == torch.float64 and "out" not in kwargs:
            beyond = (result.detach().abs() > torch.finfo(wanted[0]).max) & result.detach().isfinite()
            if bool(beyond.any()):  # a number, not a product with infinity: that would make NaN of every gradient
                return torch.where(beyond, torch.inf * result.detach().sign(), result)
        return result


def results(run: Callable[..., Any], program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """All that a run gives: outputs, what became of the inputs, and gradients."""
    with torch.set_grad_enabled(program.grad):
        out = [x for x in pytree.tree_leaves(run(*inputs)) if isinstance(x, Tensor)]
        if not program.grad:
            return [x.clone() for x in out] + inputs
        loss = torch.zeros((), dtype=torch.float64)
        for x in out:
            if x.requires_grad:
                seeded = torch.Generator().manual_seed(x.numel())
                weight = torch.randn(x.shape, generator=seeded, dtype=torch.float64)
                loss = loss + (x.double() * weight).sum()
        leaves = [x for x in inputs if x.requires_grad]
        if not loss.requires_grad:
            return [x.detach() for x in out]
        gradients: Sequence[Any] = torch.autograd.grad(loss, leaves, allow_unused=True)
        reached = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
        return [x.detach() for x in out] + reached


def exact_results(run: Callable[..., Any], program: Program) -> list[Tensor] | None:
    """The same in fp64; None where the program does not run so."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        inputs = program.fresh(double=True)
        with InDouble(program.dtype):
            return results(run, program, inputs)
    except Exception:  # dtypes that do not meet: eager alone has to do
        return None
    finally:
        torch.set_default_dtype(before)


def wrong(got: Sequence[Tensor], own: Sequence[Tensor], exact: Sequence[Tensor] | None, dtype: torch.dtype) -> str:
    """What is wrong with ``got``, in words; "" if nothing is."""
    if len(got) != len(own):
        return f"{len(got)} results, eager gives {len(own)}"
    rights: Sequence[Tensor | None] = exact if exact is not None and len(exact) == len(own) else [None] * len(own)
    sizes = [_largest(x) for x in own if x.is_floating_point()]
    largest = max((size for size in sizes if size < USUAL), default=0.0)  # not that of a mask that is returned
    errors = [_rows(x, y) for x, y in zip(own, rights, strict=True) if x.is_floating_point()]
    coarse = max((float(e[e <= COARSE * max(largest, 1.0)].max()) for e in errors if e.min() <= COARSE), default=0.0)
    for index, (mine, eager, right) in enumerate(zip(got, own, rights, strict=True)):
        text = _wrong(mine, eager, right, dtype, (largest, coarse))
        if text:
            return f"result {index}: {text}"
    return ""


def _largest(x: Tensor) -> float:
    finite = x.double().nan_to_num(0.0, 0.0, 0.0).abs()
    return min(float(finite.max()), 1e4) if x.numel() else 0.0


def _exact(eager: Tensor, right: Tensor | None) -> Tensor:
    b = eager.double().nan_to_num(0.0, 0.0, 0.0)
    return b if right is None or right.shape != b.shape else torch.where(right.isfinite(), right.double(), b)


def _rows(eager: Tensor, right: Tensor | None) -> Tensor:
    """Eager's worst error in each row."""
    error = (eager.double().nan_to_num(0.0, 0.0, 0.0) - _exact(eager, right)).abs()
    return error.reshape(-1, error.shape[-1] if error.ndim else 1).amax(-1) if error.numel() else error.new_zeros(1)


def _wrong(mine: Tensor, eager: Tensor, right: Tensor | None, dtype: torch.dtype, sizes: tuple[float, float]) -> str:
    """``sizes``: the program's largest value, and its worst error in a row that is no other question in fp64."""
    largest, coarse = sizes
    if (mine.shape, mine.dtype) != (eager.shape, eager.dtype):
        return f"{tuple(mine.shape)} {mine.dtype}, eager gives {tuple(eager.shape)} {eager.dtype}"
    if not eager.is_floating_point():
        return "" if torch.equal(mine, eager) else f"{int((mine != eager).sum())} of {eager.numel()} differ"
    a, b = mine.double(), eager.double()
    if right is not None and right.shape == b.shape:  # its kernel may lose a NaN
        b = torch.where(a.isnan() & right.isnan(), torch.nan, b)
    if not torch.equal(a.isnan(), b.isnan()):
        return f"NaN at {int(a.isnan().sum())} places, eager at {int(b.isnan().sum())} of {b.numel()}"
    if not torch.equal(a.isinf() * a.sign(), b.isinf() * b.sign()):
        return f"infinite at {int(a.isinf().sum())} places, eager at {int(b.isinf().sum())} of {b.numel()}"
    a, b = a.nan_to_num(0.0, 0.0, 0.0), b.nan_to_num(0.0, 0.0, 0.0)
    c = _exact(eager, right)
    own = max(float(_rows(eager, right).median()), coarse)
    coarsest = max(dtype, eager.dtype, key=lambda d: torch.finfo(d).eps)
    base = MULTIPLE * own + STEPS[coarsest] * torch.finfo(coarsest).eps * max(largest, _largest(eager), 1.0)
    if eager.dtype in (torch.float16, torch.bfloat16) and b.numel():  # where eager rounds the scores away
        lost = _rows(eager, right) > LOST * max(_largest(eager), 1.0)
        base = base + torch.where(lost, torch.inf, 0.0)[:, None].expand(-1, b.numel() // lost.numel()).reshape(b.shape)
    off = torch.maximum(torch.minimum(b, c) - base - a, a - torch.maximum(b, c) - base)
    if bool((off > 0).any()):
        at = int(off.argmax())
        values = (float(x.flatten()[at]) for x in (a, b, c))
        return "{:.4g}, eager {:.4g}, exact {:.4g}; ".format(*values) + f"{float((off > 0).double().mean()):.0%} off"
    return ""
