"""native_flash: FlashAttention-2 inside PyTorch (``aten::_scaled_dot_product_flash_attention``), and its CPU sibling.

The raw ops check little, so every rule of PyTorch's own dispatch (``aten/.../sdp_utils.cpp``) is repeated here as data.
Measured without these rules (H200, torch 2.11): causal with Sq != Sk is bottom-right, off by 3.2; a negative scale
gives NaN. On the CPU: a negative scale with causal gives NaN, a last stride other than 1 is off by 4.0, Sk = 0 ends the
process.

Padding alone goes, as a number of keys, to the form for variable lengths (``aten::_flash_attention_forward``). Hardly
anybody calls it so, and it may change: it proves itself first, like a library's kernel (`attnpass.trials.validate`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands, additive_mask, aten
from attnpass.emit.layout import bhsd, bshd, multiple_of, padded, trimmed
from attnpass.emit.padding import by_length
from attnpass.emit.sinks import Sunk
from attnpass.graph.symbolic import known, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import ALL_FLOATS, BOTTOM_RIGHT, TOP_LEFT, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import LITTLE_SHARED_MEMORY, Machine, sm_number


class NativeFlash(Kernel):
    """PyTorch's flash attention, named explicitly instead of left to its dispatch."""

    name = "native_flash"
    backend = "FLASH_ATTENTION"
    title = "PyTorch's FlashAttention-2 (CUDA, ROCm) or flash attention for CPU"
    aliases = ("_native_flash",)
    expensive = (
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    )
    limits = Limits(
        devices=frozenset({"cuda", "rocm", "cpu"}),
        capabilities=("sm_80", "sm_121"),
        gfx=frozenset({"gfx90a", "gfx942", "gfx950"}),
        head_dim_max=256,
        head_dim_padding=8,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.KEY_PADDING}),
        padding_by_length=True,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        dropout=True,
        log_sum_exp=True,
        row_alignment=16,
    )
    cpu_limits = replace(
        limits,
        devices=frozenset({"cpu"}),
        dtypes=ALL_FLOATS,
        head_dim_max=None,
        head_dim_padding=1,
        head_dim_may_be_symbolic=True,
        terms=frozenset({Term.CAUSAL}),
        padding_by_length=False,
        alignments=TOP_LEFT,
        mask_tensor=True,
        mask_dtype_may_differ=True,
        hidden_rows_train=False,  # gradients off by 33 (torch 2.13, fp32)
        dropout=False,
        row_alignment=1,
    )

    def limits_for(self, machine: Machine) -> Limits:
        if machine.kind == "rocm":  # AOTriton's variable lengths are others, and nobody tried its log-sum-exp
            return replace(self.limits, terms=self.cpu_limits.terms, padding_by_length=False, log_sum_exp=False)
        return self.cpu_limits if machine.kind == "cpu" else self.limits

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if machine.kind == "cpu":
            return
        if call.needs_grad and sm_number(machine.capability) in LITTLE_SHARED_MEMORY:
            large_without_dropout = call.dropout_p == 0 and known(call.D > 224)
            if not (known(call.D <= 192) or large_without_dropout):
                wanted = "at most 192, or above 224 without dropout, in training on this GPU"
                yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), wanted)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        if call.mask.has(Term.KEY_PADDING):
            return _emit_padded(emitter, call, args)
        if call.device.type == "cpu":
            return _emit_cpu(emitter, call, args)
        D = int(call.D)
        q, k, v = (padded(emitter, node, multiple_of(8, D)) for node in (args.q, args.k, args.v))
        if args.sinks is not None:
            return trimmed(emitter, emitter(_sunk, args.sinks, q, k, v, call.is_causal, args.scale), D)
        results = emitter(
            aten._scaled_dot_product_flash_attention.default,
            q,
            k,
            v,
            call.dropout_p,
            call.is_causal,
            False,  # return_debug_mask
            scale=args.scale,
        )
        out = trimmed(emitter, emitter.item(results, 0), D)
        return out if call.lse is None else (out, emitter.item(results, 1))


def _emit_padded(emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
    args, lengths = by_length(emitter, call, args)
    q, k, v = bshd(emitter, args, multiple_of(8, call.D))
    key = ("native_flash starts", str(call.B), str(call.Sq), str(call.Sk), call.device)
    starts = emitter.once(key, lambda: emitter.inline(_starts, q, k))
    return bhsd(emitter, _padded.emit(emitter, call, q, k, v, lengths, *starts, args.scale), call.Dv)


def _starts(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Where each example begins among all tokens of q and of k: (B + 1,) int32."""
    example = torch.arange(q.shape[0] + 1, device=q.device, dtype=torch.int32)
    return example * q.shape[1], example * k.shape[1]


def _padded_forward(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, starts_q: Tensor, starts_k: Tensor, scale: float
) -> Tensor:
    """(B, Sq, H, D), twice (B, Sk, Hkv, D) -> (B, Sq, H, D), contiguous: of the first ``lengths`` (B,) int32 keys."""
    tokens = (x.flatten(0, 1) for x in (q, k, v))
    sizes = (q.shape[1], k.shape[1])
    out: Tensor = variable_length(
        *tokens, starts_q, starts_k, *sizes, 0.0, False, False, scale=scale, seqused_k=lengths
    )[0]
    return out.view(q.shape)


variable_length: Callable[..., Any] = aten._flash_attention_forward.default
_padded = ops.attention(
    "native_flash_padded(Tensor q, Tensor k, Tensor v, Tensor lengths, Tensor starts_q, Tensor starts_k, float scale)",
    _padded_forward,
)


def _emit_cpu(emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
    mask = args.mask
    if mask is not None and emitter.value(mask).dtype == torch.bool:
        mask = additive_mask(emitter, mask, call.dtype)
    if args.sinks is not None:
        return emitter(_sunk_cpu, args.sinks, args.q, args.k, args.v, mask, call.is_causal, args.scale)
    # Only what differs from the op's defaults: each further keyword costs a call of compiled code 0.15 to 0.4 us.
    options: dict[str, Any] = {} if call.scale is None else {"scale": call.scale}
    if mask is not None:
        options["attn_mask"] = mask
    results = emitter(_flash_cpu, args.q, args.k, args.v, 0.0, call.is_causal, **options)
    out = emitter.item(results, 0)
    return out if call.lse is None else (out, emitter.item(results, 1))


def _forward(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, ...]:
    """(B, H, Sq, D), twice (B, Hkv, Sk, D) -> as q; its log-sum-exp (B, H, Sq); the random numbers' state, unused."""
    results = aten._scaled_dot_product_flash_attention.default(q, k, v, 0.0, is_causal, False, scale=scale)
    return results[0], results[1], results[6], results[7]


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
    out, lse, seed, offset, is_causal, scale = rest
    lengths = (None, None, q.shape[2], k.shape[2])
    backward = aten._scaled_dot_product_flash_attention_backward.default
    return backward(grad, q, k, v, out, lse, *lengths, 0.0, is_causal, seed, offset, scale=scale)


def _forward_cpu(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Any:
    """As `_forward`, with an additive mask; the log-sum-exp of a row that sees no key is 0."""
    return _flash_cpu(q, k, v, 0.0, is_causal, attn_mask=mask, scale=scale)


def _backward_cpu(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any) -> Any:
    out, lse, is_causal, scale = rest
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    return backward(grad, q, k, v, out, lse, 0.0, is_causal, attn_mask=mask, scale=scale)


_flash_cpu = aten._scaled_dot_product_flash_attention_for_cpu.default
_operands = "Tensor sinks, Tensor q, Tensor k, Tensor v"
_sunk = ops.compose(
    f"native_flash_sunk({_operands}, bool is_causal, float scale) -> Tensor", Sunk(_forward, _backward, 3)
)
_sunk_cpu = ops.compose(
    f"native_flash_cpu_sunk({_operands}, Tensor? mask, bool is_causal, float? scale) -> Tensor",
    Sunk(_forward_cpu, _backward_cpu, 4),
)
