"""What of a call decides its speed: the call with numbers for sizes, and without where it stands in the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from attnpass.graph.symbolic import Size, hint
from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.graph.values import Source
from attnpass.ir.call import AttentionCall, Context, Kind, Pattern
from attnpass.ir.mask import RULES, EmptyRows, MaskSpec, Term


def signature(call: AttentionCall) -> AttentionCall | None:
    """``call`` as it can be timed alone: symbolic sizes at their hints, rounded up to a power of two.

    None if it cannot be: a size has no hint, or the mask's cost depends on data that only the program has.
    """
    try:
        q, k, v, out = (_numbered(spec) for spec in (call.q, call.k, call.v, call.out))
        sinks = None if call.sinks is None else _numbered(call.sinks)
        mask = _numbered_mask(call.mask.as_counted())
    except _NoHintError:
        return None
    if mask is None or call.context.functorch or call.context.subclass or call.context.unreadable:
        return None
    return replace(
        call,
        q=q,
        k=k,
        v=v,
        out=out,
        sinks=sinks,
        mask=mask,
        scale=None if call.scale is None or call.scale > 0 else -1.0,
        context=Context(autocast=call.context.autocast),
        node="",
        module="",
        source=Source(),
        pattern=Pattern.SDPA,
        kind=Kind.UNKNOWN,
        chosen="",
    )


def text_of(call: AttentionCall) -> str:
    """The signature in one line, which is its key: shape, dtype, mask, strides, and is it trained.

    >>> x = TensorSpec((2, 4, 64, 32), (8192, 32, 128, 1), torch.float16, torch.device("cpu"))
    >>> text_of(AttentionCall(q=x, k=x, v=x, out=x))
    'B2 H4 S64 D32, fp16, no mask, strides q 8192 32 128 1, k 8192 32 128 1, v 8192 32 128 1, inference'
    """
    kept = call.mask.tensor
    words = [call.shape_text(), dtype_name(call.dtype), call.text().partition(", ")[2]]
    words += [] if kept is None else [f"mask {dtype_name(kept.dtype)} {_row(kept.shape)} strides {_row(kept.stride)}"]
    strides = ", ".join(f"{name} {_row(spec.stride)}" for name, spec in (("q", call.q), ("k", call.k), ("v", call.v)))
    return ", ".join([*words, f"strides {strides}", "training" if call.needs_grad else "inference"])


class _NoHintError(Exception):
    """A size that nothing is known of."""


def _numbered_mask(mask: MaskSpec) -> MaskSpec | None:
    """The mask with numbers; None if its meaning is more than rules and padding, and how much it hides is not known."""
    if mask.spelled is not None and not mask.is_only(*RULES, Term.KEY_PADDING):
        return None
    terms = []
    for term in mask.terms:
        sizes: dict[str, Any] = {name: _number(getattr(term, name)) for name in ("offset", "left", "right")}
        tensor = None if term.tensor is None else _numbered(term.tensor)
        terms.append(replace(term, **sizes, tensor=tensor))
    bias, spelled = (None if spec is None else _numbered(spec) for spec in (mask.bias, mask.spelled))
    empty = EmptyRows.ZERO  # as SDPA, which the call is timed as
    return replace(mask, terms=tuple(terms), bias=bias, spelled=spelled, empty=empty, meaning="", stop="")


def _numbered(spec: TensorSpec) -> TensorSpec:
    """Numbers for sizes and strides; a tensor with a symbolic size lies dense, in the same order of dims."""
    shape = tuple(_rounded(size) for size in spec.shape)
    if all(isinstance(size, int) for size in (*spec.shape, *spec.stride)):
        stride: tuple[int, ...] = tuple(int(step) for step in spec.stride)
    else:
        stride = _dense(shape, [_hint(step) for step in spec.stride])
    return replace(spec, shape=shape, stride=stride, storage_offset=0)


def _dense(shape: Sequence[int], like: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose dims lie in the order of the strides ``like``; expanded dims stay so."""
    stride, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (like[d], -d)):
        if like[dim]:
            stride[dim] = step
            step *= shape[dim]
    return tuple(stride)


def _rounded(size: Size) -> int:
    """A number as it is; a symbol at its hint, rounded up to a power of two, so that near lengths share a signature."""
    return size if isinstance(size, int) else 1 << (_hint(size) - 1).bit_length()


def _number(size: Size | None) -> int | None:
    return size if size is None or isinstance(size, int) else _hint(size)


def _hint(size: Size) -> int:
    found = hint(size)
    if found is None:
        raise _NoHintError
    return found


def _row(numbers: Sequence[Size]) -> str:
    return " ".join(map(str, numbers))
