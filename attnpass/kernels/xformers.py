"""xformers: memory-efficient attention (>= 0.0.29) (https://github.com/facebookresearch/xformers).

The operator is chosen here, not by the library's dispatch, which would take a forward-only FlashAttention-3 for
training if one is installed: ``flash`` (flash-attn 2 if it is there, else PyTorch's copy) where it can, ``cutlass`` for
fp32, masks, another value head dim and causal calls with Sq != Sk.

What its source says (``xformers/ops/fmha``, 0.0.35):

- importing it fails if flash-attn-4 is installed without flash-attn 2 (``flash.py:57``);
- its binary wants ``libcudart.so.12``, beside a CUDA 13 PyTorch too; without it every operator is "not supported";
- a bias is additive, in q's dtype, of exactly (B, H, Sq, Sk), its rows aligned to 16 bytes;
- grouped heads are a fifth dimension, with K and V expanded; there is no backward for it;
- ``LowerTriangularMask`` is top-left; only ``cutlass`` takes it for Sq != Sk;
- the non-autograd backward has no dropout;
- ``memory_efficient_attention_forward`` checks its operands anew at each call, in Python, before it calls
  ``FwOp.apply``; here the limits were checked when the call was compiled, so inference calls the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands
from attnpass.emit.layout import aligned_bias, bhsd, bshd, repeated_heads
from attnpass.graph.symbolic import as_int, known, known_equal, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import FLOATS, HALF, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.native_efficient import cutlass_rejections, may_misread_stride_0
from attnpass.machine.library import Build, Library, UnusableError
from attnpass.machine.machine import Machine, sm_number


def _read_build() -> Build:
    """Did the binary load? The library itself goes on without it and calls every operator unsupported."""
    import ctypes

    from xformers import _cpp_lib

    cause = getattr(_cpp_lib, "_cpp_library_load_exception", None)
    if cause is None:
        return {}
    origin = cause.__cause__
    if origin is None:
        raise UnusableError(f"its binary does not load: {' '.join(str(cause).split())[:200]}")
    try:
        ctypes.CDLL("libcudart.so.12")
    except OSError:
        wanted = "pip install nvidia-cuda-runtime-cu12 and put its lib folder on LD_LIBRARY_PATH"
        if "libcudart.so.12" in str(origin):
            raise UnusableError(f"its binary wants libcudart.so.12, which is not here ({wanted})") from cause
    raise UnusableError(f"its binary does not load: {origin}")


XFORMERS = Library("xformers", "0.0.29", modules=("xformers.ops",), build=_read_build)
FLASH, CUTLASS = "flash", "cutlass"


class Xformers(Kernel):
    """xFormers' memory-efficient attention: fp32, masks, and GPUs that others left behind."""

    name = "xformers"
    title = "xFormers memory-efficient attention"
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_70", "sm_121"),
        library=XFORMERS,
        dtypes=FLOATS,
        head_dim_multiple=8,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        hidden_rows_train=False,  # gradients off by 85 on an H200
        log_sum_exp=True,
        vmap=False,
        row_alignment=16,
        tolerance=5.0,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        generation = sm_number(machine.capability) or 0
        if _operator(call) == CUTLASS and generation > 90:
            yield Rejection(
                Code.CAPABILITY, "GPU", machine.capability, "at most sm_90 for this call's operator, cutlass"
            )
        if _operator(call) == FLASH and generation < 80:
            yield Rejection(
                Code.CAPABILITY, "GPU", machine.capability, "at least sm_80 for this call's operator, flash"
            )
        if _operator(call) == CUTLASS:
            yield from cutlass_rejections(call)
        if call.dtype == torch.bfloat16 and generation < 80:
            yield Rejection(Code.DTYPE, "dtype", "bf16", f"fp16 or fp32 on {machine.capability}")
        if call.is_gqa and not (as_int(call.H) and as_int(call.Hkv)):
            yield Rejection(Code.DYNAMIC, "heads", f"{shown(call.H)} on {shown(call.Hkv)}", "numbers")
        if call.needs_grad and machine.deterministic and _operator(call) == FLASH:
            yield Rejection(
                Code.DETERMINISTIC, "torch.use_deterministic_algorithms", "on", "off, for its flash backward"
            )

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        whole = call.needs_grad or args.sinks is not None or call.lse is not None  # computed by the op for training
        full = whole or (_operator(call) == CUTLASS and may_misread_stride_0(call))
        q, k, v = bshd(emitter, _full_heads(emitter, call, args) if full else args)
        bias = None if args.mask is None else aligned_bias(emitter, call, args)
        more = (bias, _operator(call), call.is_causal, args.scale)
        out = _attention.emit_more(emitter, call, q, k, v, *more, sinks=args.sinks)
        return bhsd(emitter, out, call.Dv)


def _operator(call: AttentionCall) -> str:
    """Which of the library's operators computes the call."""
    square = not call.is_causal or known_equal(call.Sq, call.Sk)
    small = known_equal(call.D, call.Dv) and known(call.D <= 256)
    positive = call.scale is None or call.scale > 0  # flash takes the maximum before it scales
    return FLASH if call.dtype in HALF and call.mask.tensor is None and square and small and positive else CUTLASS


def _full_heads(emitter: Emitter, call: AttentionCall, args: Operands) -> Operands:
    """K and V with as many heads as q: there is no backward for grouped heads, which are expanded with stride 0."""
    k, v = (repeated_heads(emitter, node, call.H, call.Hkv) for node in (args.k, args.v))
    return Operands(args.q, k, v, args.mask, args.scale)


def _call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, is_causal: bool, scale: float) -> dict[str, Any]:
    """The operands as the library wants them: grouped heads as a dimension of their own."""
    H, Hkv = q.shape[2], k.shape[2]
    if Hkv != H:
        q = q.unflatten(2, (Hkv, H // Hkv))
        k, v = (x.unsqueeze(3).expand(-1, -1, -1, H // Hkv, -1) for x in (k, v))
    if bias is not None:
        bias = _checked(bias, Hkv)
    return {"query": q, "key": k, "value": v, "attn_bias": _causal() if is_causal else bias, "scale": scale}


def _checked(bias: Tensor, Hkv: int) -> Tensor:
    """The bias with its heads in groups; strides as the library's check wants them, which asks those of size 1 too."""
    B, H, Sq, Sk = bias.shape
    b, h, row, key = bias.stride()
    shape, strides = [B, H, Sq, Sk], [b, h, row, key]
    if Hkv != H:  # not by `unflatten`, which makes up strides for sizes of 1: 50 for one query on 50 keys
        shape, strides = [B, Hkv, H // Hkv, Sq, Sk], [b, h * (H // Hkv), h, row, key]
    strides[:-1] = [0 if size == 1 else stride for size, stride in zip(shape[:-1], strides[:-1], strict=True)]
    return bias.as_strided(shape, strides)


@cache
def _causal() -> Any:
    from xformers.ops import LowerTriangularMask

    return LowerTriangularMask()


@cache
def _operators(name: str) -> tuple[Any, Any]:
    from xformers.ops import fmha

    module = fmha.flash if name == FLASH else fmha.cutlass
    return module.FwOp, module.BwOp


def _infer(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, operator: str, is_causal: bool, scale: float
) -> Tensor:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, Dv) -> (B, Sq, H, Dv), contiguous."""
    from xformers.ops import fmha

    call = fmha.Inputs(**_call(q, k, v, bias, is_causal, scale))
    out: Tensor = _operators(operator)[0].apply(call, needs_gradient=False)[0]
    return out.flatten(2, 3).contiguous() if out.ndim == 5 else out.contiguous()


def _train(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, operator: str, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The output and its log-sum-exp, (B, H, at least Sq) in fp32."""
    from xformers.ops import fmha

    call = _call(q, k, v, bias, is_causal, scale)
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(**call, op=_operators(operator)[0])
    return out.contiguous(), lse.contiguous()


def _log_sum_exp(q_BHSD: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, operator: str, *_: object) -> Tensor:
    B, H, Sq, _D = q_BHSD.shape
    rows = Sq if operator == FLASH else (Sq + 31) // 32 * 32  # cutlass pads the rows of its log-sum-exp
    return q_BHSD.new_empty((B, H, rows), dtype=torch.float32)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    operator: str,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    from xformers.ops import fmha

    call = _call(q, k, v, bias, is_causal, scale)
    grads = fmha.memory_efficient_attention_backward(
        grad=grad.contiguous(), output=out, lse=lse, **call, op=_operators(operator)[1]
    )
    return grads[0].contiguous(), grads[1].contiguous(), grads[2].contiguous()


_attention = ops.attention(
    "xformers(Tensor q, Tensor k, Tensor v, Tensor? bias, str operator, bool is_causal, float scale)",
    _infer,
    _train,
    _backward,
    saved={"lse": _log_sum_exp},
)
