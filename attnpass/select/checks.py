"""Data + call + machine -> reasons: every rule of `Limits` as a check that says the value it met.

All reasons are collected, none stops the others, so that a user who fixes one does not meet the next. Sizes are asked
only through `attnpass.graph.symbolic`: what cannot be proved for every value of a symbolic size is a reason, never a
guard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from attnpass.graph.symbolic import as_int, known, known_equal, known_multiple, shown
from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.ir.call import AttentionCall
from attnpass.ir.hidden import UNTRACKED
from attnpass.ir.limits import Alignment, Code, Limits, Rejection
from attnpass.ir.mask import EmptyRows, Term
from attnpass.machine.machine import Machine


def rejections(limits: Limits, call: AttentionCall, machine: Machine) -> list[Rejection]:
    """Every reason, as data, why a kernel with these limits does not take this call on this machine."""
    checks = (_machine, _tensors, _head_dims, _heads, _mask, _softmax, _gradients, _layout, _surroundings)
    return [reason for check in checks for reason in check(limits, call, machine)]


def _machine(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if machine.kind not in limits.devices:
        yield Rejection(Code.DEVICE, "device", machine.kind, _one_of(limits.devices))
    elif machine.kind == "cuda" and limits.capabilities is not None and not machine.is_between(*limits.capabilities):
        yield Rejection(Code.CAPABILITY, "GPU", machine.capability or "unknown", limits.generations)
    elif machine.kind == "rocm" and limits.gfx is not None and machine.capability not in limits.gfx:
        yield Rejection(Code.CAPABILITY, "GPU", machine.capability or "unknown", _one_of(limits.gfx))
    problem = machine.library_problem(limits.library)
    if problem:
        yield Rejection(Code.LIBRARY, limits.library.name, problem, limits.library.wanted)


def _tensors(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if call.dtype not in limits.dtypes:
        yield Rejection(Code.DTYPE, "dtype", dtype_name(call.dtype), _one_of(map(dtype_name, limits.dtypes)))
    dtypes = [dtype_name(t.dtype) for t in (call.q, call.k, call.v)]
    if call.context.autocast is None and len(set(dtypes)) > 1:
        yield Rejection(Code.DTYPE, "dtype of q, k, v", ", ".join(dtypes), "one dtype")
    if limits.queries_max is not None and not known(call.Sq <= limits.queries_max):
        yield Rejection(Code.LENGTH, "Sq", shown(call.Sq), f"at most {limits.queries_max}")
    ndims = {call.q.ndim, call.k.ndim, call.v.ndim}
    if len(ndims) > 1 or not ndims <= {2, 3, 4}:
        shown_ndims = ", ".join(str(t.ndim) for t in (call.q, call.k, call.v))
        yield Rejection(Code.RANK, "number of dims of q, k, v", shown_ndims, "2, 3 or 4, the same for all")


def _head_dims(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if as_int(call.D) is None and not limits.head_dim_may_be_symbolic:
        yield Rejection(Code.DYNAMIC, "head_dim", shown(call.D), "a number")
        return
    for name, size in (("head_dim", call.D), ("value head_dim", call.Dv)):
        if name == "value head_dim" and known_equal(call.D, call.Dv):
            continue
        if limits.head_dim_max is not None and not known(size <= limits.head_dim_max):
            yield Rejection(Code.HEAD_DIM, name, shown(size), f"at most {limits.head_dim_max}")
        if not known(size >= limits.head_dim_min):
            yield Rejection(Code.HEAD_DIM, name, shown(size), f"at least {limits.head_dim_min}")
        if not known_multiple(size, limits.head_dim_multiple):
            yield Rejection(Code.HEAD_DIM, name, shown(size), f"a multiple of {limits.head_dim_multiple}")
    if not limits.value_dim_may_differ and not known_equal(call.D, call.Dv):
        yield Rejection(Code.VALUE_DIM, "value head_dim", shown(call.Dv), f"head_dim, which is {shown(call.D)}")


def _heads(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if limits.broadcasts or call.q.ndim != call.k.ndim or call.q.ndim != call.v.ndim or call.q.ndim > 4:
        return
    B, Bk, Bv = (t.shape[0] if t.ndim == 4 else 1 for t in (call.q, call.k, call.v))
    if not (known_equal(B, Bk) and known_equal(B, Bv)):
        actual = f"{shown(B)}, {shown(Bk)}, {shown(Bv)}"
        yield Rejection(Code.BROADCAST, "batch size of q, k, v", actual, "the same, since only PyTorch broadcasts")
    heads_v = call.v.shape[-3] if call.v.ndim >= 3 else 1
    if not known_equal(call.Hkv, heads_v):
        actual = f"{shown(call.Hkv)}, {shown(heads_v)}"
        yield Rejection(Code.BROADCAST, "heads of k, v", actual, "the same, since only PyTorch broadcasts")
    elif call.is_gqa and not limits.gqa:
        actual = f"{shown(call.H)} heads on {shown(call.Hkv)}"
        yield Rejection(Code.GQA, "grouped-query attention", actual, "as many key/value heads as query heads")
    elif call.is_gqa and not (known(call.Hkv >= 1) and known_multiple(call.H, call.Hkv)):
        yield Rejection(Code.GQA, "number of heads", shown(call.H), f"a known multiple of Hkv, {shown(call.Hkv)}")
    elif call.is_gqa and not call.enable_gqa and not known_equal(call.Hkv, 1):
        yield Rejection(Code.GQA, "enable_gqa", False, f"True for {shown(call.H)} heads on {shown(call.Hkv)}")


def _mask(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    mask, tensor = call.mask, call.mask.tensor
    if call.mask_and_causal and tensor is not None:
        yield Rejection(Code.MASK_AND_CAUSAL, "mask", "a tensor beside is_causal=True", "one of the two")
    yield from _terms(limits, call)
    if mask.spelled is not None:
        yield from _rules(limits, call)
    elif tensor is not None and not limits.mask_tensor:
        kind = "a bool tensor" if tensor.dtype == torch.bool else f"an additive {dtype_name(tensor.dtype)} tensor"
        yield Rejection(Code.MASK, "mask", kind, _one_of((t.value for t in limits.terms), also="none"))
    elif tensor is not None:
        yield from _mask_tensor(limits, call, tensor)


def _terms(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    read_as_tensor = set() if call.mask.spelled is not None else {Term.TENSOR}
    unknown_terms = {t.term for t in call.mask.terms} - limits.terms - read_as_tensor
    if unknown_terms:
        actual = " & ".join(sorted(t.value for t in unknown_terms))
        yield Rejection(Code.MASK, "mask", actual, _one_of((t.value for t in limits.terms), empty="none"))
    if limits.padding_by_length and call.mask.has(Term.KEY_PADDING):
        yield from _padding_by_length(limits, call)
    spells_rules = Term.FUNCTION in limits.terms or (limits.padding_beside_rules and call.mask.has(Term.KEY_PADDING))
    if not spells_rules:
        yield from _alignment(limits, call)


def _padding_by_length(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    if not call.mask.is_only(Term.KEY_PADDING) and not limits.padding_beside_rules:
        yield Rejection(Code.MASK, "mask", str(call.mask), "key_padding alone, which is read as a number of keys")
    if call.needs_grad:
        yield Rejection(Code.MASK, "mask in training", Term.KEY_PADDING.value, "no padding, or inference")
    if call.sinks is not None:
        yield Rejection(Code.SINKS, "sinks beside padding", "a logit for each head", "none")
    if call.dropout_p and limits.dropout:
        yield Rejection(Code.DROPOUT, "dropout_p beside padding", call.dropout_p, "0")


def _rules(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    """A mask that was proved: the kernel is to compute it from its meaning instead of reading the tensor."""
    mask, computes = call.mask, Term.FUNCTION in limits.terms
    by_length = limits.padding_by_length and mask.is_only(Term.KEY_PADDING)
    if mask.bias is not None and not computes:
        yield Rejection(Code.MASK, "mask", "rules and a bias", "rules, or one tensor")
    if call.bias_learns and not limits.table_grad:
        yield Rejection(Code.MASK_GRAD, "mask.requires_grad", True, "False, there is no gradient for the mask")
    yield from _empty_rows_in_training(call)
    if call.needs_grad and mask.rows_may_be_empty and mask.empty is EmptyRows.NAN_ADDED:
        wanted = "a tensor, which makes NaN of the gradients of such a row, or a key that each row sees"
        yield Rejection(Code.EMPTY_ROWS, "mask in training", "rules, hidden by added -inf", wanted)
    kept = limits.empty_rows_are_zero if mask.empty.is_zero else computes or by_length
    if mask.rows_may_be_empty and not kept:
        yield Rejection(Code.EMPTY_ROWS, "mask", "rules that may hide all keys of a query", "at least one key a row")


def _alignment(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    """Can the kernel start its causal masks and windows at the diagonals where this call's start?"""
    for term in call.mask.terms:
        if term.term not in (Term.CAUSAL, Term.WINDOW) or term.term not in limits.terms:
            continue
        top_left = known_equal(term.offset, 0)
        bottom_right = known_equal(term.offset, call.Sk - call.Sq)
        if top_left and bottom_right:
            continue
        if top_left and Alignment.TOP_LEFT not in limits.alignments:
            kind = "causal" if term.term is Term.CAUSAL else "windowed"
            lengths = f"{shown(call.Sq)}, {shown(call.Sk)}"
            yield Rejection(Code.CAUSAL_ALIGNMENT, f"length of q and k in a {kind} call", lengths, "the same")
        elif not top_left and not (bottom_right and Alignment.BOTTOM_RIGHT in limits.alignments):
            wanted = _one_of((alignment.value for alignment in limits.alignments), empty="0 and Sq == Sk")
            yield Rejection(Code.CAUSAL_ALIGNMENT, "offset of the diagonal", shown(term.offset), wanted)


def _mask_tensor(limits: Limits, call: AttentionCall, tensor: TensorSpec) -> Iterator[Rejection]:
    if tensor.dtype != torch.bool and not tensor.dtype.is_floating_point:
        yield Rejection(Code.MASK_DTYPE, "mask dtype", dtype_name(tensor.dtype), "bool or floating point")
    same = tensor.dtype in (torch.bool, call.dtype) or call.context.autocast is not None
    if not same and not limits.mask_dtype_may_differ:
        yield Rejection(Code.MASK_DTYPE, "mask dtype", dtype_name(tensor.dtype), f"bool or {dtype_name(call.dtype)}")
    if tensor.requires_grad and call.needs_grad and not limits.mask_grad:
        yield Rejection(Code.MASK_GRAD, "mask.requires_grad", True, "False, there is no gradient for the mask")
    hides_rows = call.mask.rows_may_be_empty and tensor.dtype in (torch.float32, torch.bfloat16)
    if call.needs_grad and hides_rows and not limits.hidden_rows_train:
        wanted = "a bool mask in training (a row hidden by a large finite number would get wrong gradients)"
        yield Rejection(Code.KNOWN_BUG, "mask", f"an additive {dtype_name(tensor.dtype)} tensor", wanted)
    yield from _empty_rows_in_training(call)
    if call.mask.rows_may_be_empty and not limits.empty_rows_are_zero:
        yield Rejection(Code.EMPTY_ROWS, "mask", "a tensor that may hide all keys of a query", "at least one key a row")
    if tensor.device != call.device:
        yield Rejection(Code.DEVICE, "mask device", tensor.device, str(call.device))
    if tensor.ndim > 4:
        yield Rejection(Code.RANK, "number of mask dims", tensor.ndim, "at most 4")
        return
    sizes = (call.B, call.H, call.Sq, call.Sk)[4 - tensor.ndim :]
    for axis, size, full in zip("BHQK"[4 - tensor.ndim :], tensor.shape, sizes, strict=True):
        if not (known_equal(size, full) or known_equal(size, 1)):
            yield Rejection(Code.MASK_SHAPE, f"mask size over {axis}", shown(size), f"1 or {shown(full)}, known")


def _empty_rows_in_training(call: AttentionCall) -> Iterator[Rejection]:
    """Only the tensors themselves tell which gradients such a row has."""
    how = UNTRACKED.get(call.mask.empty)
    if call.needs_grad and call.mask.rows_may_be_empty and how is not None:
        yield Rejection(Code.EMPTY_ROWS, "mask in training", how, "one way to hide keys, or a key that each row sees")


def _softmax(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if limits.positive_scale and call.scale is not None and not call.scale > 0:
        yield Rejection(Code.SCALE, "scale", call.scale, "a positive number")
    if call.softcap is not None and not limits.softcap:
        yield Rejection(Code.SOFTCAP, "softcap", call.softcap, "none")
    if call.sinks is not None:
        yield from _sinks(limits, call)
    if call.lse is not None:
        yield from _log_sum_exp(limits, call)
    if call.dropout_p is None:
        yield Rejection(Code.DROPOUT, "dropout_p", "not a constant", "a number in the graph")
    elif call.dropout_p > 0 and not limits.dropout:
        yield Rejection(Code.DROPOUT, "dropout_p", call.dropout_p, "0")
    if not limits.empty_lengths:
        for name, size in (("batch size", call.B), ("Sq", call.Sq), ("Sk", call.Sk)):
            if not known(size >= 1):
                yield Rejection(Code.LENGTH, name, shown(size), "at least 1")


def _sinks(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    if not (limits.log_sum_exp or (limits.sinks and not call.needs_grad)):
        field = "sinks in training" if limits.sinks else "sinks"
        yield Rejection(Code.SINKS, field, "a logit for each head", "none")
    elif call.dropout_p and not limits.sinks:
        yield Rejection(Code.DROPOUT, "dropout_p beside sinks", call.dropout_p, "0")


def _log_sum_exp(limits: Limits, call: AttentionCall) -> Iterator[Rejection]:
    """Of the keys alone, where some are seen: what a row without one gives differs between kernels."""
    field = "log-sum-exp beside the output"
    if not limits.log_sum_exp:
        yield Rejection(Code.LOG_SUM_EXP, field, "read", "unread")
    for what, there in {
        "gradients": call.needs_grad,
        "sinks": call.sinks is not None,
        "dropout": call.dropout_p != 0,
        "a softcap": call.softcap is not None,
        "padding, read as a number of keys,": limits.padding_by_length and call.mask.has(Term.KEY_PADDING),
        "a mask that may hide all keys of a query": call.mask.rows_may_be_empty,
    }.items():
        if there:
            yield Rejection(Code.LOG_SUM_EXP, field, f"read with {what}", "without")


def _gradients(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if call.needs_grad and not limits.backward:
        yield Rejection(Code.BACKWARD, "needs_grad", True, "False, there is no backward", "wrap it in torch.no_grad()")
    if machine.deterministic and not limits.deterministic:
        yield Rejection(Code.DETERMINISTIC, "torch.use_deterministic_algorithms", "on", "off for this kernel")


def _layout(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    casts = call.context.autocast is not None
    for name, spec in (("q", call.q), ("k", call.k), ("v", call.v)):
        if casts and spec.dtype != call.dtype:
            continue  # the cast that is emitted makes a new, well-aligned tensor
        if limits.last_stride_one and not (known_equal(spec.stride[-1], 1) or known_equal(spec.shape[-1], 1)):
            yield Rejection(Code.STRIDES, f"last stride of {name}", shown(spec.stride[-1]), "1")
        if limits.row_alignment > 1 and known_multiple(spec.shape[-1], limits.head_dim_padding):
            yield from row_alignment(limits.row_alignment, name, spec)


def row_alignment(alignment: int, name: str, spec: TensorSpec) -> Iterator[Rejection]:
    """Are all rows of an operand, and its first element, known to lie at multiples of ``alignment`` bytes?"""
    step = max(1, alignment // spec.dtype.itemsize)
    for size, stride in zip(spec.shape[:-1], spec.stride[:-1], strict=True):
        if not (known_multiple(stride, step) or known_equal(size, 1)):
            yield Rejection(Code.ALIGNMENT, f"stride of {name}", shown(stride), f"a known multiple of {step}")
    if not known_multiple(spec.storage_offset, step):
        yield Rejection(
            Code.ALIGNMENT, f"storage offset of {name}", shown(spec.storage_offset), f"a multiple of {step}"
        )


def _surroundings(limits: Limits, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    if call.context.subclass:
        yield Rejection(Code.SUBCLASS, "operand type", call.context.subclass, "a plain tensor")
    if call.context.unreadable:
        cure = "a NumPy number is none: write float(scale)" if call.context.unreadable == "scale" else ""
        yield Rejection(Code.DYNAMIC, call.context.unreadable, "decided at run time", "a constant in the graph", cure)
    if call.out.dtype != call.dtype:
        actual = f"{dtype_name(call.dtype)} in, {dtype_name(call.out.dtype)} out"
        yield Rejection(Code.AUTOCAST, "dtype around the call", actual, "what autocast at this place would give")
    only_vmap = set(call.context.functorch) <= {"vmap"} and call.sinks is None and not call.dropout_p
    if call.context.functorch and not (limits.functorch or (limits.vmap and only_vmap)):
        yield Rejection(Code.FUNCTORCH, "transform around the call", " of ".join(call.context.functorch), "none")


def _one_of(values: Iterable[str], *, also: str = "", empty: str = "") -> str:
    """``"fp16, fp32 or bf16"``."""
    words = [*([also] if also else []), *sorted(values)]
    if not words:
        return empty
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
