"""aiter: AMD's kernels for Instinct GPUs, the library ``amd-aiter`` (>= 0.1.5) (https://github.com/ROCm/aiter).

What its source says (``aiter/ops/mha.py``, ``csrc/py_itfs_ck``, 0.1.7.post2, and what changed up to 0.1.16):

- causal and windows are bottom-right; the assembly backward takes causal as top-left: trained only where Sq == Sk;
- the only mask is one additive (Sq, Sk) tensor for all batches and heads; it is multiplied by log2(e), so finfo.min
  becomes -inf, and a row that is -inf throughout is divided by 0 (``block_fmha_pipeline_qr_ks_vs.hpp:689``): NaN;
- the backward knows of a row only its log-sum-exp, which loses log(Sk) beside a large finite bias;
- the autograd function asserts ``return_lse`` when a gradient is needed, and keeps the random state of dropout to
  itself: training calls the functions below it, which want more arguments in each version (``sink_size``, ...);
- ``deterministic`` is True by default, which makes the backward slower;
- a window is a pair, and from 0.1.8 a triple with the number of sinks; a pair still works. One without a key to either
  side is not kept from the assembly kernels, which have no windows;
- head dims are padded to multiples of 8, by the public function only; v may have another one;
- kernels are built when they are first called, for minutes; importing the library looks for a GPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands, additive_mask, aten
from attnpass.emit.layout import bhsd, multiple_of, padded, transposed
from attnpass.emit.mask_tensors import expanded, raised, rows_with_keys, with_empty_rows_shown, with_empty_rows_zero
from attnpass.graph.symbolic import known, known_equal, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.hidden import LOWEST
from attnpass.ir.limits import BOTTOM_RIGHT, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine

AITER = Library("amd-aiter", "0.1.5", modules=("aiter.ops.mha",), install="pip install --pre amd-aiter")


class Aiter(Kernel):
    """AMD's Composable Kernel and assembly attention."""

    name = "aiter"
    title = "AITER (amd-aiter)"
    aliases = ("aiter_fa2_hub",)
    limits = Limits(
        devices=frozenset({"rocm"}),
        gfx=frozenset({"gfx90a", "gfx942", "gfx950"}),
        library=AITER,
        head_dim_max=256,
        head_dim_padding=8,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW}),
        mask_tensor=True,
        hidden_rows_train=False,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        dropout=True,
        row_alignment=16,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        banded = call.mask.has(Term.CAUSAL) or call.mask.has(Term.WINDOW)
        if call.mask.tensor is not None:
            if banded:
                yield Rejection(Code.MASK, "mask", str(call.mask), "a rule or a tensor, not both")
            for name, size in zip("BH"[-(call.mask.tensor.ndim - 2) :], call.mask.tensor.shape[:-2], strict=False):
                if not known_equal(size, 1):
                    yield Rejection(Code.MASK_SHAPE, f"mask size over {name}", shown(size), "1, one mask for all")
        if banded and call.needs_grad and not known_equal(call.Sq, call.Sk):
            lengths = f"{shown(call.Sq)}, {shown(call.Sk)}"
            yield Rejection(Code.CAUSAL_ALIGNMENT, "length of q and k in training with a diagonal", lengths, "the same")
        left, right = call.mask.band()
        if call.mask.has(Term.WINDOW) and not (known(left > 0) or known(right > 0)):
            yield Rejection(Code.MASK, "window", f"({shown(left)}, {shown(right)})", "a key beside the diagonal")
        if call.dropout_p is not None and call.dropout_p >= 1:
            yield Rejection(Code.DROPOUT, "dropout_p", call.dropout_p, "less than 1")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        sizes = ((args.q, call.D), (args.k, call.D), (args.v, call.Dv))
        q, k, v = (transposed(emitter, padded(emitter, node, multiple_of(8, size))) for node, size in sizes)
        bias, rows = (None, None) if args.mask is None else _bias(emitter, call, args, args.mask)
        out = _attention.emit(emitter, call, q, k, v, bias, args.scale, *call.mask.band(), call.dropout_p)
        return with_empty_rows_zero(emitter, bhsd(emitter, out, call.Dv), rows)


def _bias(emitter: Emitter, call: AttentionCall, args: Operands, mask: Node) -> tuple[Node, Node]:
    """The mask as an additive (Sq, Sk) tensor without empty rows, and which rows were not empty."""
    rows = rows_with_keys(emitter, mask)
    bias = additive_mask(emitter, with_empty_rows_shown(emitter, mask, rows), call.dtype)
    flat = expanded(emitter, call, args, raised(emitter, bias, LOWEST), batch=False, heads=False)
    return emitter(aten.squeeze.dims, flat, [0, 1]), rows


def _window(Sk: int, left: int, right: int) -> tuple[bool, tuple[int, int]]:
    """Causal, and the window beside it; bounds that reach beyond the keys are none."""
    left, right = (-1 if bound >= Sk else bound for bound in (left, right))
    causal = left < 0 and right == 0
    return causal, (-1, -1) if causal else (left, right)


def _infer(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, left: int, right: int, dropout_p: float
) -> Tensor:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, Dv) -> (B, Sq, H, Dv), contiguous."""
    from aiter.ops.mha import flash_attn_func

    causal, window = _window(k.shape[1], left, right)
    out: Tensor = flash_attn_func(
        q=q,
        k=k,
        v=v,
        dropout_p=dropout_p,
        softmax_scale=scale,
        causal=causal,
        window_size=window,
        bias=None if bias is None else bias.contiguous(),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        return_lse=False,
    )
    return out.contiguous()


@cache
def _newer_arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """What later versions want to be told: no sinks, no fp8."""
    wanted = {"sink_size": 0, "q_descale": None, "k_descale": None, "v_descale": None}
    return {name: value for name, value in wanted.items() if name in inspect.signature(function).parameters}


def _shared(Sk: int, bias: Tensor | None, scale: float, left: int, right: int, dropout_p: float) -> dict[str, Any]:
    """The keyword arguments of forward and backward in training."""
    causal, window = _window(Sk, left, right)
    return {
        "dropout_p": dropout_p,
        "softmax_scale": scale,
        "causal": causal,
        "window_size_left": window[0],
        "window_size_right": window[1],
        "bias": None if bias is None else bias.contiguous(),
        "alibi_slopes": None,
    }


def _train(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *numbers: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The output, its log-sum-exp (B, H, Sq) in fp32, and the state of the dropout's random numbers."""
    from aiter.ops.mha import _flash_attn_forward

    out, lse, _, rng_state = _flash_attn_forward(
        q=q,
        k=k,
        v=v,
        return_lse=True,
        return_softmax=False,
        **_shared(k.shape[1], bias, *numbers),
        **_newer_arguments(_flash_attn_forward),
    )
    return out.contiguous(), lse, rng_state


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    rng_state: Tensor,
    *numbers: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    from aiter.ops.mha import _flash_attn_backward

    dq, dk, dv = ops.contiguous_gradients(grad, q, k, v)
    _flash_attn_backward(
        dout=ops.aligned(grad),
        q=q,
        k=k,
        v=v,
        out=out,
        softmax_lse=lse,
        dq=dq,
        dk=dk,
        dv=dv,
        dbias=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        rng_state=rng_state,
        **_shared(k.shape[1], bias, *numbers),
    )
    return dq, dk, dv


_attention = ops.attention(
    "aiter(Tensor q, Tensor k, Tensor v, Tensor? bias, float scale, SymInt left, SymInt right, float dropout_p)",
    _infer,
    _train,
    _backward,
    saved={"lse": ops.log_sum_exp, "rng_state": ops.rng_state},
    random=True,
)
