"""How many attention calls does a program make? Counted as it runs, below autograd, without attnpass.

A call is one of PyTorch's attention ops, or a softmax whose input comes from a product of two tensors that are computed
(neither is a weight) and whose result goes into another such product. What lies between may change every number, mix
heads, or cut and join: no kernel may be able to compute it. A softmax may be written as an exponential.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

FUSED = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
}
PRODUCTS = {"bmm", "baddbmm", "mm", "addmm", "baddbmm_", "addmm_"}
ADDED = {"baddbmm", "addmm", "baddbmm_", "addmm_"}  # their first operand is added
SOFTMAXES = {"_softmax", "_safe_softmax", "_log_softmax"}
NORMS = {"native_layer_norm", "native_batch_norm", "_native_batch_norm_legit_no_training", "native_group_norm"}
COPIES = {"clone", "_to_copy", "contiguous", "_unsafe_view", "copy", "copy_", "_reshape_copy", "lift_fresh"}
REARRANGED = COPIES | {
    *(
        "cat",
        "stack",
        "constant_pad_nd",
        "index_select",
        "gather",
        "index",
        "index_put_",
        "index_put",
        "repeat",
        "roll",
    ),
    *(
        "scatter",
        "scatter_",
        "native_dropout",
        "masked_fill",
        "masked_fill_",
        "where",
        "slice_scatter",
        "select_scatter",
    ),
    *(
        "flip",
        "tril",
        "triu",
        "as_strided",
        "im2col",
        "fill_",
        "_unsafe_index",
        "_unsafe_masked_index",
        "repeat_interleave",
    ),
}
HEADS = 8  # a weight that mixes the heads of scores has no more rows or columns


@dataclass(slots=True)
class Marks:
    """What a tensor was made of: products that are scores, softmaxes that are weights."""

    scores: bool = False
    softmaxes: frozenset[int] = frozenset()
    broadcast: bool = False  # an elementwise product of computed tensors, larger than both: summed, it is a product

    def joined(self, other: Marks) -> Marks:
        return Marks(self.scores or other.scores, self.softmaxes | other.softmaxes)


NONE = Marks()


@dataclass(slots=True)
class Tally:
    """What was seen: how often each op computed attention, and how often it was written by hand."""

    calls: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.calls.values())


class AttentionCount(TorchDispatchMode):
    """Counts in ``tally`` while it is active."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.tally = Tally()
        self._weights = {_memory(weight) for weight in weights}
        self._copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._marks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._softmaxes = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        given = [x for x in pytree.tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        marks = self._after(func, name, given)
        result = func(*args, **(kwargs or {}))
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if name in ("mul", "div") and len(given) == 2:
            marks = self._elementwise(given, made[0], marks)
        elif name == "sum" and self._of(given[0]).broadcast:
            marks = self._product(given)
        elif name in COPIES and given and all(map(self.is_weight, given)):
            for x in made:
                self._copies[x] = True
        for x in made:
            if marks is not NONE:
                self._marks[x] = marks
        return result

    def _after(self, func: Any, name: str, given: list[Tensor]) -> Marks:
        if name in FUSED:
            self.tally.calls[name] += 1
            return NONE
        if name in PRODUCTS:
            return self._mixed(given) if self._has_weight(name, given) else self._product(given)
        together = NONE
        for x in given:
            together = together.joined(self._of(x)) if x in self._marks else together
        if together is NONE:
            return NONE
        if name in SOFTMAXES or (name in ("exp", "exp_") and not together.softmaxes):
            return self._softmax(together)
        if func.is_view:
            return self._of(given[0])
        if torch.Tag.pointwise in func.tags or name in REARRANGED:
            return together
        if name == "convolution":
            return together if max(given[1].shape[:2]) <= HEADS else NONE
        return Marks(softmaxes=together.softmaxes) if name in NORMS else NONE

    def _softmax(self, marks: Marks) -> Marks:
        """A softmax of scores begins new weights; one of weights is the same attention still."""
        if not marks.scores:
            return marks
        self._softmaxes += 1
        return Marks(softmaxes=frozenset({self._softmaxes}))

    def _product(self, given: list[Tensor]) -> Marks:
        """Weights in a product make a call, once for each softmax. Its result may be scores itself."""
        read = frozenset().union(*(self._of(x).softmaxes for x in given))
        fresh = read - self._counted
        self._counted |= fresh
        if fresh:
            self.tally.calls["by hand"] += 1
        return Marks(scores=True)

    def _mixed(self, given: list[Tensor]) -> Marks:
        """A product with a weight: heads that are mixed are scores or weights still."""
        small = [x for x in given if self.is_weight(x) and max(x.shape[-2:], default=0) <= HEADS]
        others = [self._of(x) for x in given if not self.is_weight(x)]
        return others[-1] if small and others else NONE

    def _elementwise(self, given: list[Tensor], made: Tensor, marks: Marks) -> Marks:
        if any(map(self.is_weight, given)) or made.numel() <= min(x.numel() for x in given):
            return marks
        read = [x for x in given if self._of(x).softmaxes]
        if read and made.numel() > read[0].numel():  # summed behind it, or not at all where there is one key
            return self._product(given)
        larger = made.numel() > max(x.numel() for x in given)
        return Marks(marks.scores, marks.softmaxes, broadcast=True) if larger else marks

    def _has_weight(self, name: str, given: list[Tensor]) -> bool:
        return any(map(self.is_weight, given[1:] if name in ADDED else given))

    def is_weight(self, x: Tensor) -> bool:
        return x in self._copies or _memory(x) in self._weights

    def _of(self, x: Tensor) -> Marks:
        return self._marks.get(x, NONE)


def _memory(x: Tensor) -> int:
    """Where a tensor lies; 0 for one that is made of others, such as a nested one."""
    return 0 if x.is_nested else x.untyped_storage().data_ptr()
