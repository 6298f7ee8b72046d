"""Layouts in the graph: BHSD to BSHD and back as views, head dims padded, outputs brought into the expected strides.

Models make (B, S, H, D) and view it as (B, H, S, D) for SDPA. A library that wants BSHD gets the view back: the two
transposes cancel, and nothing is copied.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import overload

import torch
from torch.fx import Node

from attnpass.emit.emitter import EmitRefusedError, Emitted, Emitter, Operands, additive_mask, aten
from attnpass.emit.mask_tensors import raised
from attnpass.graph.symbolic import Size, known, known_equal, known_multiple, shown
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.hidden import LOWEST
from attnpass.ir.limits import Code, Rejection

BIAS_ALIGNMENT = 16  # elements; PyTorch pads its own bias to this


def transposed(emitter: Emitter, node: Node) -> Node:
    """BHSD as BSHD, or BSHD as BHSD: a view."""
    return emitter(aten.transpose.int, node, 1, 2)


def bshd(emitter: Emitter, args: Operands, head_dim: int | None = None) -> tuple[Node, Node, Node]:
    """q, k and v as BSHD, their head dim zero-padded to ``head_dim``. Zeros add nothing to a score."""
    q, k, v = (transposed(emitter, padded(emitter, node, head_dim)) for node in (args.q, args.k, args.v))
    return q, k, v


@overload
def bhsd(emitter: Emitter, out: Node, head_dim: Size) -> Node: ...
@overload
def bhsd(emitter: Emitter, out: Emitted, head_dim: Size) -> Emitted: ...
def bhsd(emitter: Emitter, out: Emitted, head_dim: Size) -> Emitted:
    """A library's BSHD output as BHSD, without the padding of its head dim; a log-sum-exp beside it as it is."""
    if isinstance(out, tuple):
        return bhsd(emitter, out[0], head_dim), out[1]
    return transposed(emitter, trimmed(emitter, out, head_dim))


def either_layout(emitter: Emitter, args: Operands, head_dim: int | None = None) -> tuple[str, Node, Node, Node]:
    """The layout in which q lies in memory, "NHD" (BSHD) or "HND" (BHSD), and q, k and v in it.

    For a library that takes both and gives its output in the same: so the output has the strides that SDPA's has.
    """
    _B, H, S, _D = emitter.spec(args.q).stride
    if known(H < S):
        q, k, v = bshd(emitter, args, head_dim)
        return "NHD", q, k, v
    q, k, v = (padded(emitter, node, head_dim) for node in (args.q, args.k, args.v))
    return "HND", q, k, v


def from_layout(emitter: Emitter, out: Node, layout: str, head_dim: Size) -> Node:
    """The output of a call in `either_layout` as BHSD, without the padding of its head dim."""
    return bhsd(emitter, out, head_dim) if layout == "NHD" else trimmed(emitter, out, head_dim)


def padded(emitter: Emitter, node: Node, head_dim: int | None) -> Node:
    """``node`` with its last dimension zero-padded to ``head_dim``; nothing is emitted if it is that already."""
    here = emitter.spec(node).shape[-1]
    if head_dim is None or here == head_dim:
        return node
    return with_zeros(emitter, node, head_dim - int(here))


def with_zeros(emitter: Emitter, node: Node, count: int | Node) -> Node:
    """``node`` with ``count`` zeros behind its last dimension.

    ``constant_pad_nd`` on fake tensors turns symbolic sizes into the numbers at hand (PyTorch 2.13), and each length
    would be compiled anew; a concatenation keeps them.
    """
    value = emitter.value(node)
    if all(isinstance(size, int) for size in value.shape):
        return emitter(aten.constant_pad_nd.default, node, [0, count])
    sizes = [emitter.size(node, dim) for dim in range(value.ndim - 1)]
    return emitter(aten.cat.default, [node, emitter(aten.new_zeros.default, node, [*sizes, count])], -1)


def trimmed(emitter: Emitter, node: Node, head_dim: Size) -> Node:
    """``node`` without what `padded` added."""
    if known_equal(emitter.spec(node).shape[-1], head_dim):
        return node
    return emitter(aten.slice.Tensor, node, -1, 0, head_dim)


def multiple_of(step: int, head_dim: Size) -> int:
    """The next multiple of ``step``."""
    return -(-int(head_dim) // step) * step


def repeated_heads(emitter: Emitter, node: Node, H: Size, Hkv: Size) -> Node:
    """K or V (BHSD) with as many heads as q, for a kernel without GQA: head i of q reads head i // (H / Hkv)."""
    if known_equal(H, Hkv):
        return node
    return emitter(aten.repeat_interleave.self_int, node, int(H) // int(Hkv), 1)


def aligned_bias(emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
    """The mask as an additive bias of (B, H, Sq, Sk) whose rows start at multiples of `BIAS_ALIGNMENT` elements."""
    assert args.mask is not None
    # CUTLASS's kernel multiplies by log2(e) first: finfo.min becomes -inf, and a row hidden by it 0 instead of an
    # average (off by 0.55 on an H200)
    bias = raised(emitter, additive_mask(emitter, args.mask, call.dtype), LOWEST)
    full = [emitter.size(args.q, 0), emitter.size(args.q, 1), emitter.size(args.q, 2), emitter.size(args.k, 2)]
    if known_equal(emitter.spec(bias).shape[-1], 1):
        bias = emitter(aten.expand.default, bias, [-1, -1, -1, full[3]])
    bias = dense_rows(emitter, bias)
    if not known_multiple(call.Sk, BIAS_ALIGNMENT):
        padding = _padding(emitter, full[3])
        padded = with_zeros(emitter, bias, padding)
        bias = emitter(aten.slice.Tensor, padded, -1, 0, full[3])
    return emitter(aten.expand.default, bias, full)


def dense_rows(emitter: Emitter, bias: Node) -> Node:
    """A bias whose rows are dense, copied once for all calls; of what is expanded over batch or heads, one.

    T5 makes its own with the heads last. cuDNN and CUTLASS read at misaligned addresses there, if nobody compiles the
    graph: Inductor would lay it out for them (`sdpa_constraint`).
    """
    spec = emitter.spec(bias)
    if known_equal(spec.stride[-1], 1) or known_equal(spec.shape[-1], 1):
        return bias

    def copied() -> Node:
        one = bias
        for dim in (0, 1):
            if known_equal(spec.stride[dim], 0):
                one = emitter(aten.slice.Tensor, one, dim, 0, 1)
        return emitter(aten.clone.default, one, memory_format=torch.contiguous_format)

    dense: Node = emitter.once(("dense rows", bias, emitter.epoch), copied)
    return dense


def _padding(emitter: Emitter, size: int | Node) -> int | Node:
    """Elements to add to reach the next multiple; a whole extra step where the size is symbolic and may be aligned."""
    if isinstance(size, int):
        return -size % BIAS_ALIGNMENT
    return emitter(operator.sub, BIAS_ALIGNMENT, emitter(operator.mod, size, BIAS_ALIGNMENT))


def restore_layout(emitter: Emitter, node: Node, wanted: TensorSpec) -> Node:
    """Give ``node`` the strides that the replaced node had; a copy is emitted only if they differ.

    Raises:
        EmitRefusedError: the wanted strides are of no permuted contiguous tensor.
    """
    if same_strides(emitter.spec(node), wanted):
        return node
    for order in itertools.permutations(range(wanted.ndim)):
        if not _is_contiguous([wanted.shape[i] for i in order], [wanted.stride[i] for i in order]):
            continue
        permuted = emitter(aten.permute.default, node, list(order))
        copied = emitter(aten.clone.default, permuted, memory_format=torch.contiguous_format)
        return emitter(aten.permute.default, copied, [order.index(i) for i in range(wanted.ndim)])
    strides = ", ".join(str(shown(s)) for s in wanted.stride)
    raise EmitRefusedError(Rejection(Code.OUTPUT_LAYOUT, "output strides", f"({strides})", "those of a dense tensor"))


def is_heads_first(wanted: TensorSpec) -> bool:
    """Is it stored as (B, H, S, D), and would (B, S, H, D) be another layout?"""
    if wanted.ndim != 4 or not _is_contiguous(wanted.shape, wanted.stride):
        return False
    return not known_equal(wanted.shape[1], 1) and not known_equal(wanted.shape[2], 1)


def takes_heads_last(emitter: Emitter, node: Node) -> bool:
    """Could a value stored as (B, S, H, D) replace the (B, H, S, D) value of ``node``, without a copy behind it?"""
    with emitter.mode, torch.no_grad():
        value = emitter.value(node)
        stored = torch.empty_like(value.transpose(1, 2), memory_format=torch.contiguous_format)
    return layout_is_free(emitter, stored.transpose(1, 2), node)


def layout_is_free(emitter: Emitter, value: torch.Tensor, node: Node) -> bool:
    """May ``value`` replace that of ``node`` as it lies? Yes if every reader makes the same dense tensor of both."""
    return bool(node.users) and all(_same_behind(emitter, value, user) for user in node.users)


def _same_behind(emitter: Emitter, value: torch.Tensor, reader: Node, depth: int = 0) -> bool:
    """Does ``reader`` give the same strides when it reads ``value``? Only transposes and what copies are looked at."""
    order = _permutation(reader)
    if order is not None and depth == 0 and reader.users:
        with emitter.mode, torch.no_grad():
            moved = value.permute(order)
        return all(_same_behind(emitter, moved, user, 1) for user in reader.users)
    if reader.op != "call_method" or reader.target not in ("contiguous", "reshape", "flatten"):
        return False
    if reader.target == "contiguous":
        return len(reader.args) == 1 and not reader.kwargs
    wanted = emitter.value(reader)
    if not all(isinstance(size, int) for size in (*value.shape, *wanted.shape)):
        return False  # whether it is a view or a copy would be a guard
    with emitter.mode, torch.no_grad():
        return same_strides(TensorSpec.of(value.reshape(wanted.shape)), TensorSpec.of(wanted))


def _permutation(node: Node) -> list[int] | None:
    """The order in which a method of tensors puts the dimensions; None for anything else."""
    if node.op != "call_method" or node.target not in ("transpose", "permute") or node.kwargs:
        return None
    order, dims = list(range(node.meta["example_value"].ndim)), node.args[1:]
    if node.target == "transpose" and len(dims) == 2 and all(isinstance(dim, int) for dim in dims):
        one, other = dims
        order[one], order[other] = order[other], order[one]  # type: ignore[index]
        return order
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (list, tuple)) else dims  # type: ignore[assignment]
    numbers = [dim % len(order) for dim in dims if isinstance(dim, int)]
    return numbers if node.target == "permute" and len(numbers) == len(order) else None


def same_strides(left: TensorSpec, right: TensorSpec) -> bool:
    """Do both have the same strides, dimensions of size 1 apart?"""
    return all(
        known_equal(a, b) or known_equal(size, 1)
        for a, b, size in zip(left.stride, right.stride, right.shape, strict=True)
    )


def _is_contiguous(shape: Sequence[Size], stride: Sequence[Size]) -> bool:
    expected: Size = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if not (known_equal(step, expected) or known_equal(size, 1)):
            return False
        expected = expected * size
    return True
