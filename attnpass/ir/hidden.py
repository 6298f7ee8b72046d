"""Hidden by a large number: how low is low, in which dtype, and what a row gives in which every key is hidden so.

The one place that decides it. A number below `HIDES` weighs nothing beside a score that is seen: exp(-1e8) is 0. One
below `ABSORBS` also swallows the score that it is added to, and any bias: in fp32, x - 1e30 is -1e30. What a row
without any visible key gives follows from how its keys were hidden, forward and backward:

| its keys | output | gradients of q and k | |
|---|---|---|---|
| False in SDPA's mask, or -inf there | 0 | none | ZERO |
| -inf, and the weights of hidden keys, or NaN, made 0 behind the softmax | 0 | none | ZERO |
| the same, where -inf is added to the scores | 0 | NaN | ZERO_ADDED |
| -inf written over each score, in a softmax written by hand | NaN | none: the scores are not read | NAN |
| -inf added to each score there | NaN | NaN | NAN_ADDED |
| -inf there, some written, some added | NaN | NaN for the keys that were not written over | NAN_MIXED |
| one number written in the place of each score | average of V | none: the scores are not read | AVERAGE |
| one number added, so low that it absorbs the score | average of V | pass through the sum | ADDED |
| one number added that shifts all scores (fp16's lowest, in fp32) | as if nothing was hidden | as well | RAW |
| some added in fp16, whose steps there round the score away | average of V | not tracked | ROUNDED |
| some written, some added | depends on both; NaN where they add up to -inf | depends on both | MIXED |
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch

from attnpass.graph.computed import computed
from attnpass.graph.ops import name_of, uniform
from attnpass.graph.value import Value
from attnpass.graph.values import tensor, value_of
from attnpass.index.expr import Apply, Expr, Float, Load, as_number
from attnpass.index.interned import remembered
from attnpass.ir.mask import EmptyRows

HIDES = -1e8
ABSORBS = -1e30
ABSORBS_IN_FP16 = -8192.0  # where fp16 has steps of 8: a score added to it is rounded away
FOLLOWED = 200  # values between a bias and what it is learned from
PROJECTIONS = frozenset({"linear", "addmm", "matmul", "mm", "embedding", "convolution"})
# Of moderate numbers these make moderate ones. A logarithm or a quotient need not be one; what is not here is unknown.
MODERATE = frozenset(
    {"add", "sub", "rsub", "mul", "neg", "abs", "sigmoid", "tanh", "clamp", "minimum", "maximum", "cumsum", "to"}
    | {"lt", "le", "gt", "ge", "eq", "ne", "bitwise_and", "bitwise_or", "bitwise_not"}
    | {"logical_and", "logical_or", "logical_not", "where", "masked_fill", "tril", "triu", "full", "arange"}
    | {"view", "permute", "expand", "clone", "detach", "repeat", "repeat_interleave", "flip", "roll"}
    | {"slice", "select", "index", "index_select", "gather", "slice_scatter", "select_scatter"}
    | {"cat", "stack", "constant_pad_nd"}
)
PLACES = frozenset({"slice", "slice_scatter"})  # their numbers say where, and the end of a dimension is a large one
LOWEST = -1e38  # as good as -inf beside any score, and finite after a factor of log2(e)

# Rows whose gradients only the tensors themselves tell, and how their keys were hidden.
UNTRACKED = {
    EmptyRows.MIXED: "some keys written to a low number, others added to",
    EmptyRows.ZERO_ADDED: "-inf added to scores, then NaN made 0",
    EmptyRows.NAN_MIXED: "some keys written to -inf, others added to",
    EmptyRows.ROUNDED: "fp16 sums",
}


@dataclass(frozen=True, slots=True)
class Low:
    """A number that hides keys.

    Attributes:
        value: the number.
        dtype: in which it meets the score; None for fp32, in which SDPA's kernels add.
        written: does it stand in the place of the score, or is it added?
    """

    value: float
    dtype: torch.dtype | None = None
    written: bool = False


def hides(value: float, dtype: torch.dtype) -> bool:
    """Does a number of this dtype, added to a score, hide a key beside one without it?"""
    return value <= ABSORBS or (dtype == torch.float16 and value <= torch.finfo(dtype).min)


def hides_when_written(value: float, dtype: torch.dtype) -> bool:
    """Does a number that stands in the place of a score of this dtype hide its key beside any other?"""
    return not math.isnan(value) and value <= (torch.finfo(dtype).min if dtype == torch.float16 else HIDES)


def may_be_outbid(value: float) -> bool:
    """May a bias beside it be lower still?"""
    return ABSORBS < value < 0 and math.isfinite(value)


def may_be_low(bias: Expr) -> bool:
    """May a bias be as low as what hides other keys? Then these count as much as those that it is added to.

    What is learned is as moderate as the scores themselves, and so is what is counted; any other tensor may be a mask.
    """
    waiting, seen = [bias], {bias}
    while waiting:
        part = waiting.pop()
        if _vanishes(part):
            continue
        if isinstance(part, Float) and abs(part.value) >= -HIDES:
            return True
        if isinstance(part, Load) and part.dtype.is_floating_point and not is_moderate(part.node):
            return True
        fresh = [each for each in part.parts() if each not in seen]
        seen.update(fresh)
        waiting += fresh
    return False


def _vanishes(part: Expr) -> bool:
    """Is it 0 or NaN whatever its tensors hold, as ALiBi is where a query meets its own key: ``slopes[h] * 0``?"""
    return remembered(part, "vanishes", _is_nothing, lambda each: each.args if isinstance(each, Apply) else ())


def _is_nothing(part: Expr) -> bool:
    match part:
        case Apply(op="mul"):
            return any(map(_vanishes, part.args))
        case Apply(op="sub"):
            return part.args[0] == part.args[1] or all(map(_vanishes, part.args))
        case Apply(op="add" | "cast" | "abs"):
            return all(map(_vanishes, part.args))
    return part.value == 0 if isinstance(part, Float) else as_number(part) == 0


def is_moderate(value: Value, limit: float = -HIDES, infinite: bool = False) -> bool:
    """Is it computed from trainable parameters, integers and numbers of the program below ``limit`` alone?

    What such numbers make by another op, as ALiBi's slopes by a quotient, is computed and looked at.

    ``infinite``: beside them, infinity may stand in the program; asked where the range is that of a narrow dtype.
    """
    waiting, seen = [value], {value}
    while waiting:
        one = waiting.pop()
        places = not one.is_leaf and name_of(one) in PLACES
        numbers = [] if places else [abs(each) for each in one.args if isinstance(each, (int, float))]
        if len(seen) > FOLLOWED or any(each >= limit and not (infinite and math.isinf(each)) for each in numbers):
            return False
        if one.is_leaf and not _is_learned(one) and not _counts(one):
            return False
        if not one.is_leaf and name_of(one) not in MODERATE | PROJECTIONS:
            known = computed(one)
            if known is not None and bool((known.double().abs() < limit).all()):
                continue
            if known is not None or not _is_power(one):
                return False
        if infinite and name_of(one) == "cumsum":  # of many numbers below a small limit
            return False
        if name_of(one) in PROJECTIONS and any(map(_is_learned, one.inputs)):
            continue
        fresh = [each for each in one.inputs if each not in seen]
        seen.update(fresh)
        waiting += fresh
    return True


def _is_learned(value: Value) -> bool:
    held = None if value.maker is None else value_of(value.maker)
    return value.is_leaf and isinstance(held, torch.nn.Parameter) and held.requires_grad


def _counts(value: Value) -> bool:
    """Integers and truth values."""
    made = tensor(value)
    return made is not None and not made.dtype.is_floating_point and value.constant is None


def _is_power(value: Value) -> bool:
    """A power of a number of the program that is not 0, as slopes are: no exponent makes it infinite."""
    return name_of(value) == "pow" and uniform(value.args[0]) not in (None, 0.0)


def when_empty(lows: Collection[Low], by_hand: bool, several: bool) -> EmptyRows | None:
    """What a row gives whose keys are all hidden by ``lows``; None if that is not tracked.

    Args:
        lows: the numbers.
        by_hand: is the softmax written by hand?
        several: do several additions hide keys?
    """
    if all(low.value == -math.inf for low in lows):
        ways = {low.written for low in lows}
        if not by_hand:
            return EmptyRows.ZERO
        if True not in ways:
            return EmptyRows.NAN_ADDED
        return EmptyRows.NAN_MIXED if False in ways else EmptyRows.NAN
    if len(lows) > 1:
        return None
    (low,) = lows
    if low.written:
        return EmptyRows.AVERAGE  # one number written at several places is written once, where any of them says so
    if several:
        return None
    if by_hand and low.dtype == torch.float16:
        return None  # rounded to steps of 32 there, and not in any kernel
    return EmptyRows.ADDED if low.value <= ABSORBS else EmptyRows.RAW


def absorbing(fill: float, dtype: torch.dtype) -> float:
    """A number that hides scores where it is written, as one that does so where it is added."""
    lowest = torch.finfo(dtype).min
    return fill if fill == -math.inf else max(fill, lowest) if fill <= ABSORBS else lowest
