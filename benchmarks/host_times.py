"""Host time of a call: an op of ours beside the function of the library that it calls."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

ROUNDS = 1000
Call = Callable[..., Any]


def microseconds(
    calls: Mapping[str, Call],
    operands: list[Tensor],
    before: Call | None = None,
    within: Mapping[str, Callable[[], AbstractContextManager[None]]] = MappingProxyType({}),
) -> dict[str, float]:
    """Median host time of a single call of each, launched on a device that is idle, in microseconds.

    They take turns in an order drawn anew each round, so that they share what disturbs, and none is always the one that
    finds its code in the caches.

    Args:
        calls: what is timed.
        operands: its arguments.
        before: called first each time, without being timed: other code, as in a compiled program. Without it each call
            runs behind itself.
        within: what some of them run in, entered without being timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    turns = list(calls.items())
    for _ in range(ROUNDS):
        shuffle(turns)
        for name, call in turns:
            with within.get(name, nullcontext)():
                (before or call)(*operands)
                _wait()
                start = time.perf_counter()
                call(*operands)
                times[name].append((time.perf_counter() - start) * 1e6)
    _wait()
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def instead_of(op: Any, function: Call) -> Iterator[None]:
    """What Inductor compiled calls ``function`` instead of ``op``, which it looks up in ``torch.ops`` at each call."""
    namespace, _, name = op.name().partition(".")[0].partition("::")
    packet = getattr(getattr(torch.ops, namespace), name)
    overload = op._overloadname
    setattr(packet, overload, function)
    try:
        yield
    finally:
        setattr(packet, overload, op)


@dataclass(frozen=True, slots=True)
class Beside:
    """An op of ours beside the function of the library that it calls.

    Attributes:
        op: takes q, k and v as (B, S, H, D), and more; None where the graph does a part of what the function does.
        more: what it takes beside them, in a call without a mask.
        library: the library's own function, with the arguments of the op; without an op all that the graph does, with
            the function in it.
    """

    op: Any
    more: tuple[Any, ...]
    library: Call


def beside(kernel: str, scale: float) -> Beside | None:
    """None for kernels of PyTorch's own, which have no op of ours."""
    ops = torch.ops.attnpass
    if kernel == "flash2":
        from flash_attn import flash_attn_func

        return Beside(ops.flash2.default, (scale, -1, -1, 0.0, 0.0), lambda q, k, v, *_: flash_attn_func(q, k, v))
    if kernel == "flash3":
        from flash_attn_interface import flash_attn_func

        more = (None, None, scale, -1, -1, 0.0, False)
        return Beside(ops.flash3.default, more, lambda q, k, v, *_, **__: flash_attn_func(q, k, v))
    if kernel == "flash4":
        from flash_attn.cute import flash_attn_func

        more = (None, None, scale, -1, -1, 0.0)
        return Beside(ops.flash4.default, more, lambda q, k, v, *_: flash_attn_func(q, k, v)[0])
    if kernel == "sage1":
        from sageattention import sageattn

        smooth = torch.compile(lambda k: k - k.mean(1, keepdim=True), dynamic=False)
        plain = {"tensor_layout": "NHD", "sm_scale": scale, "smooth_k": False}
        return Beside(None, (), lambda q, k, v: sageattn(q, smooth(k), v, **plain))
    if kernel.startswith("sage"):
        from sageattention import sageattn_qk_int8_pv_fp8_cuda_sm90 as best

        return Beside(
            ops.sage.default,
            ("sage_fp8_sm90", "NHD", False, scale),
            lambda q, k, v, _, layout, *__: best(q, k, v, tensor_layout=layout, smooth_k=False),
        )
    if kernel == "xformers":
        from xformers.ops import fmha

        return Beside(
            ops.xformers.default,
            (None, "flash", False, scale),
            lambda q, k, v, *_: fmha.memory_efficient_attention_forward(q, k, v, op=fmha.flash.FwOp),
        )
    return None


def of_a_kernel(kernel: str, call: Call, plain: Call, operands: list[Tensor]) -> dict[str, float]:
    """Host time of a compiled call with a kernel, beside what it is made of.

    ``inductor_us``: the same call by plain Inductor. ``compiled_library_us``: the same code with the library's own
    function in place of our op. ``op_us``, ``library_us``: the two alone, and ``_cold_us``: behind ``plain``.

    Args:
        kernel: its name.
        call: the compiled call.
        plain: the call compiled by plain Inductor.
        operands: q, k and v, BHSD.
    """
    calls = {"compiled_us": call, "inductor_us": plain}
    pair = beside(kernel, operands[0].shape[-1] ** -0.5)
    if pair is None:
        return microseconds(calls, operands)
    bshd = [x.transpose(1, 2) for x in operands]
    if pair.op is None:
        return microseconds(calls | {"compiled_library_us": _alone(pair.library, bshd, ())}, operands)
    alone = {name: _alone(function, bshd, pair.more) for name, function in (("op", pair.op), ("library", pair.library))}
    calls |= {"compiled_library_us": call, **{f"{name}_us": function for name, function in alone.items()}}
    found = microseconds(calls, operands, within={"compiled_library_us": partial(instead_of, pair.op, pair.library)})
    cold = microseconds(alone, operands, before=plain)
    return found | {f"{name}_cold_us": us for name, us in cold.items()}


def _alone(function: Call, bshd: list[Tensor], more: tuple[Any, ...]) -> Call:
    return lambda *_: function(*bshd, *more)
