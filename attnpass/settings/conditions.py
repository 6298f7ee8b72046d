"""What a condition of a policy asks of a call. Every answer is yes, no, or unknown with the reason.

A graph does not show everything: a size may be symbolic, a mask unproved, K an input of the graph. An unknown answer is
neither yes nor no, so that it satisfies neither ``cross`` nor ``!cross``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import torch

from attnpass.graph.symbolic import Size, known, shown
from attnpass.graph.tensor import DTYPE_NAMES, dtype_name
from attnpass.ir.call import AttentionCall, Kind, Pattern
from attnpass.ir.mask import Term


@dataclass(frozen=True, slots=True)
class Unknown:
    """The answer that the graph does not give, and why not."""

    reason: str


Holds: TypeAlias = "bool | Unknown"


@dataclass(frozen=True, slots=True)
class Fact:
    """A word that a call is or is not.

    Attributes:
        meaning: for the docs, what the word says of a call.
        ask: the answer for one call.
    """

    meaning: str
    ask: Callable[[AttentionCall], Holds]


COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        "==": operator.eq,
        "!=": operator.ne,
        "<=": operator.le,
        ">=": operator.ge,
        "<": operator.lt,
        ">": operator.gt,
    }
)
CHOSEN = "chosen"
OPPOSITES = MappingProxyType({"==": "!=", "!=": "==", "<=": ">", ">=": "<", "<": ">=", ">": "<="})
SIZES: Mapping[str, Callable[[AttentionCall], Size]] = MappingProxyType(
    {"head_dim": lambda call: call.D, "Sq": lambda call: call.Sq, "Sk": lambda call: call.Sk}
)


def compare(call: AttentionCall, size: str, comparison: str, number: int) -> Holds:
    """Does ``size`` of the call compare so with ``number``, for every value that it can take? Adds no guard."""
    value = SIZES[size](call)
    if known(COMPARISONS[comparison](value, number)):
        return True
    if known(COMPARISONS[OPPOSITES[comparison]](value, number)):
        return False
    return Unknown(f"{size} is {shown(value)}")


def _kind(call: AttentionCall, wanted: Kind) -> Holds:
    if call.kind is Kind.UNKNOWN:
        return Unknown("the graph does not show where K comes from")
    return call.kind is wanted


def _is_causal(call: AttentionCall) -> Holds:
    mask = call.mask
    if call.is_causal:
        return True
    if call.context.unreadable == "is_causal":
        return Unknown("is_causal is decided at run time")
    if mask.has(Term.FUNCTION):
        return Unknown(f"the mask has no name: {mask.meaning or mask}")
    if mask.tensor is not None and mask.spelled is None:
        return Unknown("what the mask tensor means was not proved")
    return False


def _is_masked(call: AttentionCall) -> Holds:
    if str(call.mask) == "none" and call.context.unreadable == "is_causal":
        return Unknown("is_causal is decided at run time")
    return str(call.mask) != "none"


def _is_chosen(call: AttentionCall) -> Holds:
    return bool(call.chosen)


def _is_gqa(call: AttentionCall) -> Holds:
    if known(call.Hkv != call.H):
        return True
    return Unknown(f"H is {shown(call.H)} and Hkv is {shown(call.Hkv)}") if call.is_gqa else False


def _has_dtype(dtype: torch.dtype) -> Fact:
    return Fact(f"computes in {dtype_name(dtype)} (behind autocast)", lambda call: call.dtype == dtype)


FACTS: Mapping[str, Fact] = MappingProxyType(
    {
        "self": Fact("K is made from the tensor that Q is made from", lambda call: _kind(call, Kind.SELF)),
        "cross": Fact("K is made from another sequence than Q", lambda call: _kind(call, Kind.CROSS)),
        "decode": Fact("one query: Sq is 1", lambda call: compare(call, "Sq", "==", 1)),
        "prefill": Fact("several queries: Sq is not 1", lambda call: compare(call, "Sq", "!=", 1)),
        "train": Fact("gradients flow through the call", lambda call: call.needs_grad),
        "inference": Fact("no gradients flow through the call", lambda call: not call.needs_grad),
        "causal": Fact("the mask is causal, alone or with more", _is_causal),
        "masked": Fact("there is any mask or bias, also a causal one", _is_masked),
        "gqa": Fact("K and V have fewer heads than Q", _is_gqa),
        CHOSEN: Fact("the program names the kernel itself; without this condition no clause is for it", _is_chosen),
        "handwritten": Fact("a chain of matmul and softmax", lambda call: call.pattern is Pattern.HANDWRITTEN),
        **{name: _has_dtype(dtype) for dtype, name in DTYPE_NAMES.items() if dtype.is_floating_point},
    }
)
