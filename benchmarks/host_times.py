"""Host time of a call: an op of ours beside the function of the library that it calls."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

ROUNDS = 1000
Call = Callable[..., Any]


def microseconds(calls: Mapping[str, Call], operands: list[Tensor], before: Call | None = None) -> dict[str, float]:
    """Median host time of a single call of each, launched on a device that is idle, in microseconds.

    They take turns in an order drawn anew each round, so that they share what disturbs, and none is always the one that
    finds its code in the caches.

    Args:
        calls: what is timed.
        operands: its arguments.
        before: called first each time, without being timed: other code, as in a compiled program. Without it each call
            runs behind itself.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffle = random.Random(0).shuffle
    turns = list(calls.items())
    for _ in range(ROUNDS):
        shuffle(turns)
        for name, call in turns:
            (before or call)(*operands)
            torch.cuda.synchronize()
            start = time.perf_counter()
            call(*operands)
            times[name].append((time.perf_counter() - start) * 1e6)
    torch.cuda.synchronize()
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def around(kernel: str, operands: list[Tensor]) -> Iterator[tuple[str, Call]]:
    """Our op and the library's own function, called eagerly on the same BSHD tensors."""
    from attnpass.kernels import flash2, flash3, flash4, sage, sage1, xformers

    scale = operands[0].shape[-1] ** -0.5
    bshd = [x.transpose(1, 2) for x in operands]

    def less_mean() -> Tensor:
        """What our graphs do in one fused kernel, eagerly."""
        return bshd[1] - bshd[1].mean(1, keepdim=True)

    if kernel == "native_cudnn":
        fused = torch.ops.aten._scaled_dot_product_cudnn_attention
        yield "op_us", lambda *_: fused(*operands, None, False, 0.0, False, False, scale=scale)
    elif kernel == "flash2":
        from flash_attn import flash_attn_func

        yield "op_us", lambda *_: flash2._infer(*bshd, scale, -1, -1, 0.0, 0.0)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "flash3":
        from flash_attn_interface import flash_attn_func

        yield "op_us", lambda *_: flash3._infer(*bshd, None, None, scale, -1, -1, 0.0, False)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "flash4":
        from flash_attn.cute import flash_attn_func

        yield "op_us", lambda *_: flash4._infer(*bshd, None, None, scale, -1, -1, 0.0)
        yield "library_us", lambda *_: flash_attn_func(*bshd, softmax_scale=scale)
    elif kernel == "sage1":
        from sageattention import sageattn

        yield "op_us", lambda *_: sage1._infer(bshd[0], less_mean(), bshd[2], "NHD", False, scale)
        yield "library_us", lambda *_: sageattn(*bshd, tensor_layout="NHD", sm_scale=scale)
    elif kernel.startswith("sage"):
        from sageattention import sageattn_qk_int8_pv_fp8_cuda_sm90 as best

        yield "op_us", lambda *_: sage._infer(bshd[0], less_mean(), bshd[2], "sage_fp8_sm90", "NHD", False, scale)
        yield "library_us", lambda *_: best(*bshd, tensor_layout="NHD", sm_scale=scale)
    elif kernel == "xformers":
        from xformers.ops import fmha

        only = {"op": fmha.flash.FwOp}
        yield "op_us", lambda *_: xformers._infer(*bshd, None, "flash", False, scale)
        yield "library_us", lambda *_: fmha.memory_efficient_attention_forward(*bshd, scale=scale, **only)
