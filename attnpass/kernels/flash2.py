"""flash2: FlashAttention-2, the library ``flash-attn`` (>= 2.6.3) (https://github.com/Dao-AILab/flash-attention).

What its source says (``flash_attn/flash_attn_interface.py``, ``csrc/flash_attn/flash_api.cpp``, 2.8.3):

- causal and windows are bottom-right; PyTorch's is_causal is top-left: equal only where Sq == Sk;
- Sq = 0 is not handled in the forward; B = 0 is refused;
- the head dim is at most 256, a multiple of 8 (the Python function pads; here the graph does), the same for v;
- no mask tensor; softcap excludes dropout;
- a negative scale turns the maximum, taken before the scale, into the minimum: the weights overflow;
- with dropout and a head dim above 192, GPUs with little shared memory (sm_86, 89, 120, 121) leave the gradients
  unwritten, without an error (``flash_bwd_launch_template.h:295``);
- ``flash_attn_with_kvcache`` reads as many keys of each example as it is told, and gives 0 where there are none; it has
  no dropout;
- only the last stride is checked, while the kernel reads 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands
from attnpass.emit.layout import bhsd, bshd, multiple_of
from attnpass.emit.padding import by_length
from attnpass.emit.undecorated import undecorated
from attnpass.graph.symbolic import known, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import BOTTOM_RIGHT, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine import library
from attnpass.machine.library import Library
from attnpass.machine.machine import LITTLE_SHARED_MEMORY, Machine, sm_number

FLASH_ATTN = Library("flash-attn", "2.6.3", modules=("flash_attn.flash_attn_interface", "flash_attn_2_cuda"))


class Flash2(Kernel):
    """FlashAttention-2 as a library: newer than PyTorch's copy, with windows and softcap."""

    name = "flash2"
    title = "FlashAttention-2 (flash-attn)"
    aliases = ("flash", "flash_varlen", "flash_attention_2")
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_80", "sm_121"),
        library=FLASH_ATTN,
        head_dim_max=256,
        head_dim_padding=8,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW, Term.KEY_PADDING}),
        padding_by_length=True,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        dropout=True,
        softcap=True,
        log_sum_exp=True,
        vmap=True,
        row_alignment=16,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.softcap and call.dropout_p:
            yield Rejection(Code.DROPOUT, "dropout_p with softcap", call.dropout_p, "0")
        little = sm_number(machine.capability) in LITTLE_SHARED_MEMORY
        if call.needs_grad and call.dropout_p and little and not known(call.D <= 192):
            wanted = f"at most 192 in training with dropout on {machine.capability}"
            yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), wanted)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        args, lengths = by_length(emitter, call, args)
        q, k, v = bshd(emitter, args, multiple_of(8, call.D))
        softcap = call.softcap or 0.0
        if lengths is not None:
            return bhsd(emitter, _padded.emit(emitter, call, q, k, v, lengths, args.scale, softcap), call.Dv)
        numbers = (args.scale, *call.mask.band(), softcap, call.dropout_p)
        return bhsd(emitter, _attention.emit_more(emitter, call, q, k, v, *numbers, sinks=args.sinks), call.Dv)


def _shared(scale: float, left: int, right: int, softcap: float, dropout_p: float) -> dict[str, Any]:
    """The keyword arguments of forward and backward; 2.6 takes the window as one tuple."""
    window: dict[str, Any] = {"window_size": (left, right)}
    if library.at_least(FLASH_ATTN, "2.7"):
        window = {"window_size_left": left, "window_size_right": right}
    return {
        "dropout_p": dropout_p,
        "softmax_scale": scale,
        "causal": left < 0 and right == 0,
        "softcap": softcap,
        "alibi_slopes": None,
        **window,
    }


def _forward(q: Tensor, k: Tensor, v: Tensor, *numbers: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, D) -> (B, Sq, H, D) in q's layout.

    And its log-sum-exp (B, H, Sq) in fp32, and the state of the dropout's random numbers.
    """
    from flash_attn import flash_attn_interface as flash

    results = undecorated(flash._flash_attn_forward)(q=q, k=k, v=v, return_softmax=False, **_shared(*numbers))
    return results[0], results[-3], results[-1]  # 2.6 returns the padded operands in between


def _padded_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float, softcap: float) -> Tensor:
    """The output of `_forward`, of the first ``lengths`` (B,) int32 keys."""
    from flash_attn import flash_attn_interface as flash

    out: Tensor = flash.flash_attn_with_kvcache(
        q=q, k_cache=k, v_cache=v, cache_seqlens=lengths, softmax_scale=scale, softcap=softcap, num_splits=1
    )
    return out


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rng_state: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn import flash_attn_interface as flash

    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    undecorated(flash._flash_attn_backward)(
        dout=ops.aligned(grad),
        q=q,
        k=k,
        v=v,
        out=out,
        softmax_lse=lse,
        dq=dq,
        dk=dk,
        dv=dv,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        rng_state=rng_state,
        **_shared(*numbers),
    )
    return dq, dk, dv


_attention = ops.attention(
    "flash2(Tensor q, Tensor k, Tensor v, float scale, SymInt left, SymInt right, float softcap, float dropout_p)",
    train=_forward,
    backward=_backward,
    output=ops.output_like_q,
    saved={"lse": ops.log_sum_exp, "rng_state": ops.rng_state},
    gradients=ops.gradients_like_operands,
    random=True,
    vmap=True,
)
_padded = ops.attention(
    "flash2_padded(Tensor q, Tensor k, Tensor v, Tensor lengths, float scale, float softcap)",
    _padded_forward,
    output=ops.output_like_q,
    vmap=True,
)
