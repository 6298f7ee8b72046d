"""Softmax in every spelling: the op, or exponentials divided by their sum, before the product with V or behind it.

What a row gives whose keys are all hidden by one number depends on the spelling: see `Way`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from attnpass.find.handwritten.links import RefusedError, Same, Shifted
from attnpass.find.handwritten.on_scores import on_scores
from attnpass.graph.ops import argument, name_of
from attnpass.graph.symbolic import known_all_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor


class Way(Enum):
    """How the weights are normalised, by what a row gives in which every score is the same low number."""

    SOFTMAX = "an average; NaN for -inf"
    SAFE = "an average; 0 for -inf"
    BARE = "NaN: each exponential is 0"
    LOGSUM = "a sum of V, since the logarithm of the number of keys is rounded away; NaN for -inf"


@dataclass(frozen=True, slots=True)
class Softmax:
    """A softmax.

    Attributes:
        node: the weights; where ``total`` is not None, times it.
        scores: what it is the softmax of.
        dim: over which dimension.
        way: its spelling.
        nodes: the values that it is made of, ``node`` too.
        total: what the product with V is divided by.
    """

    node: Value
    scores: Any
    dim: Any
    way: Way
    nodes: tuple[Value, ...]
    total: Value | None = None


def read_softmax(value: Value) -> Softmax | None:
    """The softmax that an op is, or that the exponentials ``value`` belong to; None if there is none."""
    name = name_of(value)
    if name not in ("softmax", "safe_softmax", "exp") or tensor(value) is None:
        return None
    if name != "exp":
        way = Way.SAFE if name == "safe_softmax" else Way.SOFTMAX
        return Softmax(value, argument(value, 0), argument(value, 1), way, (value,))
    inner = value.args[0]
    if name_of(inner) in ("log_softmax", "_log_softmax"):
        return Softmax(value, argument(inner, 0), argument(inner, 1), Way.SOFTMAX, (value, inner))
    return _by_logarithm(value, inner) or _by_sum(value)


def _by_logarithm(value: Value, inner: Value) -> Softmax | None:
    """``exp(s - logsumexp(s))``."""
    if name_of(inner) != "sub" or argument(inner, 2, 1) != 1 or not isinstance(inner.args[1], Value):
        return None
    scores, total = inner.args[0], inner.args[1]
    made = _before_views(total)
    dims = argument(made, 1) if name_of(made) == "logsumexp" and made.args[0] is scores else None
    if not isinstance(dims, (list, tuple)) or len(dims) != 1 or not _stands_beside(total, scores, dims[0]):
        return None
    nodes = (value, inner, total) if made is total else (value, inner, total, made)
    return Softmax(value, scores, dims[0], Way.LOGSUM, nodes)


def _by_sum(value: Value) -> Softmax | None:
    """``exp(s)``, divided by its sum; if it is not, what is made of it may be, as the chain around it shows."""
    sums = [user for user in value.users if name_of(user) == "sum" and user.args[0] is value]
    dims = argument(sums[0], 1) if len(sums) == 1 else None
    if not isinstance(dims, (list, tuple)) or len(dims) != 1:
        return None
    total, scores = sums[0], value.args[0]
    way = Way.SOFTMAX if _is_shifted(scores) else Way.BARE
    behind = [user for user in total.users if name_of(user) == "view"]
    beside = behind[0] if len(behind) == len(total.users) == 1 else total
    for user in value.users:
        divides = name_of(user) == "div" and user.args[:2] == (value, beside) and not user.kwargs
        if divides and _stands_beside(beside, value, dims[0]):
            return Softmax(user, scores, dims[0], way, tuple(dict.fromkeys((value, total, beside, user))))
    return Softmax(value, scores, dims[0], way, (value, total), total)


def _is_shifted(scores: Any) -> bool:
    """Was the scores' own maximum taken away from them, last of all?"""
    try:
        while isinstance(scores, Value):
            link = on_scores(scores, lambda _: False)
            if not isinstance(link, Same):
                return isinstance(link, Shifted)
            scores = link.x
    except RefusedError:
        pass
    return False


def _before_views(value: Value) -> Value:
    while name_of(value) == "view" and isinstance(value.args[0], Value):
        value = value.args[0]
    return value


def _stands_beside(total: Value, whole: Any, dim: Any) -> bool:
    """Has ``total`` the shape of ``whole``, but for size 1 in ``dim``?"""
    one, other = tensor(total), tensor(whole)
    if one is None or other is None or not isinstance(dim, int):
        return False
    shape = list(other.shape)
    shape[dim] = 1
    return known_all_equal(tuple(one.shape), tuple(shape))
