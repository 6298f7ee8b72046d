"""What of a call decides whether a kernel is right: a small call that stands for its class.

A class is what kernels branch on: dtype, head dims, how many heads share a key, mask, gradients, layout, and of each
length what it is a multiple of. The sample has a short length of the class, where the error of a badly handled last
block weighs most; so 40 layers of a model are tried once or twice, and lengths do not multiply that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from attnpass.graph.symbolic import Size, as_int, known, known_equal, known_multiple
from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import RULES, MaskSpec, MaskTerm, Term

LENGTHS = {"1": 1, "128": 256, "64": 192, "8": 200, "any": 77}  # class -> the length that is tried
STEP = 128  # what the longer side has more, where q and k have different lengths


def sample_of(call: AttentionCall) -> AttentionCall:
    """The call that is tried for ``call``'s class: its mask's rules are taken over, its tensors by their kind."""
    square = known_equal(call.Sq, call.Sk)
    Sq, Sk = LENGTHS[length_class(call.Sq)], LENGTHS[length_class(call.Sk)]
    shifted = any(not known_equal(term.offset, 0) for term in call.mask.terms if term.term in RULES)
    if not square and Sq == Sk:
        Sq, Sk = (Sq, Sk + STEP) if shifted else (Sq + STEP, Sk)
    H, Hkv = as_int(call.H), as_int(call.Hkv)
    group = H // Hkv if H and Hkv and H % Hkv == 0 else 1
    _B, heads, rows, _D = (0, 0, 0, 0) if call.q.ndim < 4 else call.q.stride
    bshd = call.q.ndim == 4 and known(heads < rows)
    q = _lying(bshd, 2 * group, Sq, as_int(call.D) or 64, call)
    k = _lying(bshd, 2, Sk, as_int(call.D) or 64, call)
    v = _lying(bshd, 2, Sk, as_int(call.Dv) or 64, call)
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        out=_lying(bshd, 2 * group, Sq, as_int(call.Dv) or 64, call),
        mask=_mask(call.mask, q, Sk, Sk - Sq if shifted else 0),
        scale=call.scale,
        softcap=call.softcap,
        sinks=None if call.sinks is None else _dense(q.shape[1:2], call.dtype, call.device),
        enable_gqa=group != 1,
        needs_grad=call.needs_grad,
    )


def class_of(sample: AttentionCall) -> str:
    """The class in words, which is its key: what was tried for it."""
    mask, layout = sample.mask, "BSHD" if known(sample.q.stride[1] < sample.q.stride[2]) else "BHSD"
    lengths = f"B{sample.B} H{sample.H} Hkv{sample.Hkv} Sq{sample.Sq} Sk{sample.Sk} D{sample.D}"
    words = [lengths + (f" Dv{sample.Dv}" if sample.Dv != sample.D else ""), dtype_name(sample.dtype)]
    rules = tuple(term for term in mask.terms if term.term in RULES)
    words += [str(MaskSpec(rules))] if rules else []
    if mask.has(Term.KEY_PADDING):
        words += [Term.KEY_PADDING.value + (" with rows without keys" if mask.rows_may_be_empty else "")]
    elif mask.tensor is not None:
        words += ["bool mask" if mask.bias is None else f"{dtype_name(mask.bias.dtype)} bias"]
    words += [f"softcap {sample.softcap:g}"] if sample.softcap else []
    words += ["sinks"] if sample.sinks is not None else []
    words += ["negative scale"] if sample.scale is not None and sample.scale <= 0 else []
    return ", ".join([*words, layout, *(["training"] if sample.needs_grad else [])])


def length_class(size: Size) -> str:
    """What a length is known to be a multiple of: "1" for exactly 1, "128", "64", "8", or "any"."""
    if known_equal(size, 1):
        return "1"
    return next((str(step) for step in (128, 64, 8) if known_multiple(size, step)), "any")


def _mask(mask: MaskSpec, q: TensorSpec, Sk: int, offset: int) -> MaskSpec:
    """The sample's mask: rules at its own lengths, and one tensor; padding stands for all data that a meaning reads."""
    B, H, Sq, _D = q.shape
    rules, kept = tuple(_rules(mask, Sk, offset)), mask.tensor
    made = MaskSpec(rules)
    if any(term.term not in (*RULES, Term.TENSOR) for term in mask.terms):
        spelled = _dense((B, 1, 1, Sk), torch.bool, q.device)
        made = MaskSpec((MaskTerm(Term.KEY_PADDING), *rules), spelled=spelled)
    elif kept is not None and kept.dtype == torch.bool:
        tensor = MaskTerm(Term.TENSOR, tensor=_dense((B, 1, Sq, Sk), torch.bool, q.device))
        made = MaskSpec((tensor, *rules))
    elif kept is not None:
        made = MaskSpec(rules, bias=_dense((B, H, Sq, Sk), kept.dtype, q.device))
    return replace(made, rows_may_be_empty=mask.rows_may_be_empty)


def _rules(mask: MaskSpec, Sk: int, offset: int) -> Iterator[MaskTerm]:
    """The causal and window terms; a window of a size of its own."""
    for term in mask.terms:
        if term.term is Term.CAUSAL:
            yield replace(term, offset=offset)
        elif term.term is Term.WINDOW:
            left = None if term.left is None else max(1, Sk // 3)
            right = term.right if term.right is None or term.right == 0 else max(1, Sk // 4)
            yield MaskTerm(Term.WINDOW, offset, left, right)


def _lying(bshd: bool, heads: int, S: int, dim: int, like: AttentionCall) -> TensorSpec:
    """An operand (2, heads, S, dim), in memory as (B, S, H, D) if ``bshd``."""
    stride = (S * heads * dim, dim, heads * dim, 1) if bshd else (heads * S * dim, S * dim, dim, 1)
    return TensorSpec((2, heads, S, dim), stride, like.dtype, like.device, like.needs_grad)


def _dense(shape: tuple[Size, ...], dtype: torch.dtype, device: torch.device) -> TensorSpec:
    stride = torch.empty([int(size) for size in shape], device="meta").stride()
    return TensorSpec(shape, stride, dtype, device)
