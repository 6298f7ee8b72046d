"""What a mask means, as data: the question that every kernel is asked and the answer that every report prints."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from attnpass.graph.symbolic import Size, as_int, shown
from attnpass.graph.tensor import TensorSpec


class Term(Enum):
    """The things that a mask can mean. A mask is a conjunction of terms: a key takes part where all of them hold."""

    CAUSAL = "causal"
    WINDOW = "window"
    KEY_PADDING = "key_padding"
    QUERY_PADDING = "query_padding"
    SAME_SEGMENT = "same_segment"
    FUNCTION = "function"
    TENSOR = "tensor"


RULES = frozenset({Term.CAUSAL, Term.WINDOW})  # they need no data


class EmptyRows(Enum):
    """What the program gives for a query that sees no key at all (`attnpass.ir.hidden` decides)."""

    ZERO = "zero"  # SDPA, for a bool mask or -inf
    ZERO_ADDED = "zero, added"  # NaN made 0 behind the softmax, from -inf added to the scores: their gradients are NaN
    NAN = "nan"  # softmax over nothing but -inf, written by hand: over the scores
    NAN_ADDED = "nan, added"  # the same, added to the scores: their gradients are NaN too
    NAN_MIXED = "nan, mixed"  # the same, some of it written, some added: only the tensors tell which gradients are NaN
    AVERAGE = "average"  # one large number written over all scores: every key counts the same
    ADDED = "added"  # one added to all scores, which absorbs them: the same, but gradients pass
    RAW = "raw"  # one added to all scores that shifts them: as if nothing was hidden
    ROUNDED = "rounded"  # added in fp16, whose steps there are so wide that every key counts the same
    MIXED = "mixed"  # some written, some added: only the tensors themselves tell

    @property
    def is_zero(self) -> bool:
        """Is such a row 0?"""
        return self in (EmptyRows.ZERO, EmptyRows.ZERO_ADDED)

    @property
    def is_nan(self) -> bool:
        """Is such a row NaN?"""
        return self in (EmptyRows.NAN, EmptyRows.NAN_ADDED, EmptyRows.NAN_MIXED, EmptyRows.ROUNDED)


@dataclass(frozen=True, slots=True)
class MaskTerm:
    """One conjunct of a mask.

    Attributes:
        term: what it means.
        offset: CAUSAL and WINDOW: where the diagonal stands, at key ``q + offset``; 0 is top-left, Sk - Sq is
            bottom-right. CAUSAL: keys up to the diagonal take part.
        left: WINDOW only: keys seen to the left of the diagonal, None for no bound.
        right: WINDOW only: keys seen to the right of the diagonal, None for no bound.
        tensor: KEY_PADDING, SAME_SEGMENT and TENSOR: the tensor that is read at run time.
    """

    term: Term
    offset: Size = 0
    left: Size | None = None
    right: Size | None = None
    tensor: TensorSpec | None = None

    def __str__(self) -> str:
        if self.term is Term.CAUSAL and as_int(self.offset) != 0:
            return f"causal({shown(self.offset)})"
        if self.term is Term.WINDOW:
            bounds = [b for b in (self.left, self.right) if b is not None]
            return f"window({', '.join(str(shown(b)) for b in bounds)})"
        return str(self.term.value)


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """What a mask means: a conjunction of terms and an optional additive bias.

    Attributes:
        terms: the conjuncts; empty means that every query sees every key.
        bias: spec of the tensor added to the scaled scores, or None.
        rows_may_be_empty: could a query see no key at all? Such a row gives what `empty` says, and must stay so.
        empty: what the program gives for such a row.
        spelled: the mask as the program spelled it, one tensor, where its meaning was proved; a kernel that cannot
            express the meaning may read that instead.
        meaning: who takes part, as people read it: ``k <= q and padding[b, k]``.
        stop: why the meaning of a mask tensor is not known, with the node, or "".
    """

    terms: tuple[MaskTerm, ...] = ()
    bias: TensorSpec | None = None
    rows_may_be_empty: bool = False
    empty: EmptyRows = EmptyRows.ZERO
    spelled: TensorSpec | None = None
    meaning: str = field(default="", compare=False)
    stop: str = field(default="", compare=False)

    @classmethod
    def causal(cls, offset: Size = 0) -> MaskSpec:
        return cls(terms=(MaskTerm(Term.CAUSAL, offset=offset),))

    @classmethod
    def from_tensor(cls, mask: TensorSpec) -> MaskSpec:
        """The mask that a bool or additive tensor spells: its values are known only when the program runs."""
        if mask.dtype == torch.bool:
            return cls(terms=(MaskTerm(Term.TENSOR, tensor=mask),), rows_may_be_empty=True)
        return cls(bias=mask, rows_may_be_empty=True)

    def as_spelled(self) -> MaskSpec:
        """The mask as the tensor that the program made of it."""
        if self.spelled is None:
            return self
        rows = self.rows_may_be_empty
        return replace(MaskSpec.from_tensor(self.spelled), rows_may_be_empty=rows, empty=self.empty)

    def as_counted(self) -> MaskSpec:
        """The mask as what it costs: a bias alone is counted as the tensor that the program made of it.

        What a kernel saves that reads a table instead was not measured.
        """
        return self.as_spelled() if self.bias is not None and not self.terms else self

    @property
    def shows_empty_rows(self) -> bool:
        """May a row see no key, and read all of them then?"""
        return self.rows_may_be_empty and self.empty in (EmptyRows.AVERAGE, EmptyRows.ADDED, EmptyRows.RAW)

    def has(self, term: Term) -> bool:
        return any(t.term is term for t in self.terms)

    def is_only(self, *terms: Term) -> bool:
        """Is there nothing else in the mask?"""
        return self.bias is None and bool(self.terms) and all(t.term in terms for t in self.terms)

    def band(self) -> tuple[Size, Size]:
        """CAUSAL and WINDOW as one pair (left, right) of keys seen beside the diagonal, -1 for no bound.

        >>> MaskSpec.causal().band()
        (-1, 0)
        """
        left: Size = -1
        right: Size = -1
        for term in self.terms:
            if term.term is Term.CAUSAL:
                right = 0
            elif term.term is Term.WINDOW:
                left = left if term.left is None else term.left
                right = right if term.right is None or right == 0 else term.right
        return left, right

    def seen(self, Sq: int, Sk: int, device: torch.device) -> torch.Tensor:
        """CAUSAL and WINDOW as a bool tensor (Sq, Sk), True where a key takes part; the other terms are left out."""
        q, k = torch.arange(Sq, device=device)[:, None], torch.arange(Sk, device=device)[None]
        shown = torch.ones(Sq, Sk, dtype=torch.bool, device=device)
        for term in self.terms:
            diagonal = q + int(term.offset)
            if term.term is Term.CAUSAL:
                shown &= k <= diagonal
            elif term.term is Term.WINDOW:
                if term.left is not None:
                    shown &= k >= diagonal - int(term.left)
                if term.right is not None:
                    shown &= k <= diagonal + int(term.right)
        return shown

    @property
    def tensor(self) -> TensorSpec | None:
        """The operand that a kernel has to read: the bool mask or the bias; None if the mask is only a rule."""
        if self.bias is not None:
            return self.bias
        return next((t.tensor for t in self.terms if t.tensor is not None), None)

    def __str__(self) -> str:
        parts = [str(t) for t in self.terms]
        if self.bias is not None:
            parts.append("tensor" if self.spelled is None else "bias")
        return " & ".join(parts) or "none"
