"""From an expression to the words of `MaskSpec`: who takes part, what is added, may a row be empty?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

from attnpass.graph.symbolic import Size, known_equal
from attnpass.graph.tensor import TensorSpec
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.index.bounds import Bounds
from attnpass.index.expr import (
    FALSE,
    TRUE,
    ZERO,
    Apply,
    B,
    Expr,
    Float,
    H,
    K,
    Lin,
    Load,
    NonNeg,
    Q,
    Where,
    linear,
    number,
    plus,
)
from attnpass.index.interned import remembered
from attnpass.index.logic import (
    all_of,
    any_of,
    axes_of,
    dtype_of,
    is_boolean,
    loads_of,
    negated,
    substituted,
    walk,
    where,
    written_out,
)
from attnpass.index.scalars import StopError, rounded
from attnpass.index.simplify import conjuncts, side_of, simplified
from attnpass.ir.hidden import Low, hides, may_be_low, when_empty
from attnpass.ir.mask import EmptyRows, MaskSpec, MaskTerm, Term
from attnpass.ir.meaning import Meaning

INF = float("inf")
MOST_WITNESSES = 16  # keys that are tried, each in the whole mask: 200 of them would take a minute


@dataclass(frozen=True, slots=True)
class Split:
    """An additive mask taken apart.

    Attributes:
        allowed: where the key takes part.
        bias: what is added there; None for nothing.
        lows: the numbers that hide the others.
        mixed: is a bias added to one of these?
    """

    allowed: Expr
    bias: Expr | None = None
    lows: frozenset[Low] = frozenset()
    mixed: bool = False

    def plus(self, other: Split, dtype: torch.dtype) -> Split:
        """Both masks, added in ``dtype``, ``other`` behind this one: what it writes stands over what this adds."""
        over = all(low.written for low in other.lows)
        mixed = bool((self.lows and other.bias) or (other.lows and self.bias and not over))
        bias = self.bias or other.bias
        if self.bias and other.bias:
            bias = Apply("add", (self.bias, other.bias), dtype)
        lows = self.lows | other.lows
        return Split(all_of((self.allowed, other.allowed)), bias, lows, mixed or self.mixed or other.mixed)


def taken_apart(expr: Expr) -> Split:
    """An additive mask as the keys that it hides and the bias on the others.

    Raises:
        StopError: it adds a finite number that hides only in part, such as -10000, beside other things.
    """
    return remembered(expr, "taken apart", _taken_apart, _sides)


def _sides(expr: Expr) -> tuple[Expr, ...]:
    """What an additive mask is taken apart into."""
    if isinstance(expr, Where):
        return expr.yes, expr.no
    if isinstance(expr, Apply) and expr.op == "add":
        return expr.args
    return expr.args[:1] if _is_carried(expr) else ()


def _is_carried(expr: Expr) -> TypeGuard[Apply]:
    """Is it an additive mask in another dtype, or times a positive number?"""
    if not isinstance(expr, Apply) or expr.op not in ("mul", "cast"):
        return False
    return all(isinstance(each, Float) and 0 < each.value < INF for each in expr.args[1:])


def _carried(expr: Apply) -> Split:
    """What hides keys still does so behind a factor or a cast, or it is not followed."""
    inner, rest = taken_apart(expr.args[0]), expr.args[1:]
    if inner.allowed == TRUE:
        return Split(TRUE, expr)
    times = math.prod(each.value for each in rest if isinstance(each, Float))
    lows = frozenset(Low(rounded(low.value * times, expr.dtype), expr.dtype) for low in inner.lows)
    if not all(hides(low.value, expr.dtype) for low in lows):
        raise StopError("a number that hides keys no longer, once it is scaled")
    bias = None if inner.bias is None else Apply(expr.op, (inner.bias, *rest), expr.dtype)
    return Split(inner.allowed, bias, lows, inner.mixed)


def _taken_apart(expr: Expr) -> Split:
    if is_boolean(expr):
        return Split(expr, lows=frozenset({Low(-INF)}))
    if isinstance(expr, Float) and expr.value == 0:
        return Split(TRUE)
    if isinstance(expr, Float) and hides(expr.value, expr.dtype):
        return Split(FALSE, lows=frozenset({Low(expr.value, expr.dtype)}))
    if isinstance(expr, Where):
        yes, no = taken_apart(expr.yes), taken_apart(expr.no)
        allowed = yes.allowed
        if allowed != no.allowed:
            allowed = any_of((all_of((expr.test, allowed)), all_of((negated(expr.test), no.allowed))))
        bias = _chosen_bias(expr.test, yes, no)
        return Split(allowed, bias, yes.lows | no.lows, yes.mixed or no.mixed)
    if isinstance(expr, Apply) and expr.op == "add":
        left, right = (taken_apart(arg) for arg in expr.args)
        return left.plus(right, expr.dtype)
    if _is_carried(expr):
        return _carried(expr)
    if isinstance(expr, Lin):
        raise StopError("an additive mask of integers")
    return Split(TRUE, expr)


def _chosen_bias(test: Expr, yes: Split, no: Split) -> Expr | None:
    """The bias of a ``where``; on the side that is hidden altogether it does not matter."""
    dtypes = [dtype_of(side.bias) for side in (yes, no) if side.bias]
    if not dtypes:
        return None
    if no.allowed == FALSE:
        return yes.bias
    if yes.allowed == FALSE:
        return no.bias
    zero = Float(0.0, dtypes[0] or torch.float32)
    return where(test, yes.bias or zero, no.bias or zero)


def prove(split: Split, sizes: Mapping[str, Size], by_hand: bool, spelled: TensorSpec | None, several: bool) -> Meaning:
    """Name what a mask means.

    Args:
        split: the mask.
        sizes: of the axes b, h, q and k.
        by_hand: is the softmax written by hand? A row of nothing but -inf is NaN there.
        spelled: the mask as the program spelled it, one tensor.
        several: do several additions hide keys? What a row gives that all of them hide is then not tracked.
    """
    bounds = Bounds.of(sizes)
    allowed = simplified(split.allowed, bounds)
    bias = None if split.bias is None else simplified(split.bias, bounds)
    low = bias if bias is not None and may_be_low(bias) else None
    if low is not None and any(_may_overflow(part) for part in walk(low)):
        raise StopError("arithmetic in fp16 on what may be as low as its range")
    if allowed == FALSE:
        raise StopError("a mask that hides every key")
    empty = when_empty(split.lows, by_hand, several)
    may_be_empty = _rows_may_be_empty(allowed, bounds, sizes, low)
    if may_be_empty and (empty is None or (empty is EmptyRows.RAW and bias is not None)):
        raise StopError("rows that may see no key, hidden by finite numbers in several places, or rounded ones")
    terms = tuple(_terms(conjuncts(allowed), sizes))
    text = " + ".join(map(str, [allowed] if bias is None else [allowed, bias])) if allowed != TRUE or bias else ""
    spec = MaskSpec(terms, _bias_spec(bias, spelled), may_be_empty, empty or EmptyRows.ZERO, spelled, meaning=text)
    return Meaning(spec, allowed, bias)


def _may_overflow(part: Expr) -> bool:
    """May a program get an infinity, where a kernel that computes in fp32 does not?"""
    return isinstance(part, Apply) and part.dtype == torch.float16 and part.op in ("add", "sub", "mul", "cast")


def _bias_spec(bias: Expr | None, spelled: TensorSpec | None) -> TensorSpec | None:
    if bias is None:
        return None
    specs = [_spec(load) for load in _floats_of(bias)]
    return max(specs, key=lambda spec: spec.requires_grad, default=spelled)  # one that needs a gradient speaks for all


def _floats_of(bias: Expr) -> list[Load]:
    return [load for load in loads_of(bias) if load.dtype.is_floating_point]


def _rows_may_be_empty(allowed: Expr, bounds: Bounds, sizes: Mapping[str, Size], low: Expr | None = None) -> bool:
    """May a row see no key? Not if all see the same one: the first, the last, or one on a diagonal.

    Beside a bias that may be as ``low`` as -inf it has to be a key where that may not, as ALiBi where q is k.
    """
    if allowed == TRUE and low is None:
        return False
    parts = sorted(conjuncts(allowed), key=written_out)  # a small one soon says no
    for key in list(dict.fromkeys(_witnesses(allowed, sizes)))[:MOST_WITNESSES]:
        inside = bounds.always(key) and bounds.always(plus(number(sizes[K] - 1), key, -1))
        seen = inside and all(simplified(substituted(part, K, key), bounds) == TRUE for part in parts)
        if seen and (low is None or not may_be_low(simplified(substituted(low, K, key), bounds))):
            return False
    return True


def _witnesses(allowed: Expr, sizes: Mapping[str, Size]) -> Iterator[Lin]:
    yield ZERO
    yield linear({Q: 1})
    yield linear({Q: 1}, sizes[K] - sizes[Q])
    yield number(sizes[K] - 1)
    for part in walk(allowed):
        if isinstance(part, NonNeg) and part.form.factor(K) == -1:
            yield plus(part.form, linear({K: 1}))


def _terms(parts: Sequence[Expr], sizes: Mapping[str, Size]) -> Iterator[MaskTerm]:
    sides = [side_of(part) for part in parts]
    left, right = ([side[1] for side in sides if side and side[0] == sign] for sign in (1, -1))
    rest = [part for part, side in zip(parts, sides, strict=True) if side is None]
    if len(right) > 1 or len(left) > 1:  # two bounds of which neither is known to be the tighter
        yield MaskTerm(Term.FUNCTION)
    elif right and (not left or _at_a_corner(right[0], sizes)):
        yield MaskTerm(Term.CAUSAL, offset=right[0])
        if left:
            yield MaskTerm(Term.WINDOW, offset=right[0], left=left[0] + right[0])
    elif right or left:
        yield MaskTerm(Term.WINDOW, left=left[0] if left else None, right=right[0] if right else None)
    for part in sorted(rest, key=str):
        yield MaskTerm(_term(part), tensor=_tensor(part))


def _at_a_corner(offset: Size, sizes: Mapping[str, Size]) -> bool:
    return known_equal(offset, 0) or known_equal(offset, sizes[K] - sizes[Q])


def _term(part: Expr) -> Term:
    axes = axes_of(part)
    if any({Q, K} <= axes_of(load) for load in loads_of(part)):
        return Term.TENSOR
    if Q not in axes:
        return Term.KEY_PADDING if K in axes and not _is_pattern(part) else Term.FUNCTION
    if K not in axes:
        return Term.QUERY_PADDING
    if isinstance(part, Apply) and part.op == "eq" and H not in axes:
        left, right = part.args
        if substituted(left, Q, linear({K: 1})) == substituted(right, Q, linear({K: 1})) and axes_of(left) <= {B, Q, K}:
            return Term.SAME_SEGMENT
    return Term.FUNCTION


def _is_pattern(part: Expr) -> bool:
    """Is it a pattern of keys that reads nothing, such as ``k % 2 == 0``? That pads nothing."""
    return not loads_of(part) and any(isinstance(each, Apply) and each.op == "mod" for each in walk(part))


def _tensor(part: Expr) -> TensorSpec | None:
    loads = loads_of(part)
    return _spec(loads[0]) if loads else None


def _spec(load: Load) -> TensorSpec:
    """The metadata of what is read."""
    made = tensor(load.node)
    assert made is not None
    spec = TensorSpec.of(made)
    return replace(spec, requires_grad=load.node.requires_grad) if isinstance(load.node, Value) else spec


def only_a_tensor(meaning: Meaning) -> bool:
    """Was nothing understood: is every part of the mask a tensor that is read at every (q, k)?"""
    terms = meaning.spec.terms
    if meaning.bias is not None:
        whole = [{Q, K} <= {*map(str, load.index)} for load in _floats_of(meaning.bias)]
        return not terms and any(whole) and (isinstance(meaning.bias, Load) or may_be_low(meaning.bias))
    return bool(terms) and all(term.term is Term.TENSOR for term in terms)
