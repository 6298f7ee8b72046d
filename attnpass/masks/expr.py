"""The expression: one element of a mask as a function of the indices (b, h, q, k). Immutable, printable, hashable.

Booleans, integers and floats are told apart by class, never by value. Integers that depend on indices only are linear
forms (`Lin`), so that ``k <= q``, ``q >= k`` and ``~(k > q)`` are one and the same expression: ``q - k >= 0``. Whatever
is read from a tensor stays a `Load` of the graph's node, and arithmetic on loads stays as the program wrote it, because
moving a term across a comparison may overflow. The functions in lower case build expressions and simplify on the way;
what needs the sizes of the axes is in `attnpass.masks.simplify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attnpass.symbolic import Size, shown

B, H, Q, K = AXES = ("b", "h", "q", "k")
LARGEST = 1 << 40  # beyond this, int64 arithmetic on indices might overflow


class Expr:
    """One element as a function of the indices."""

    __slots__ = ()


def size_key(size: Size) -> Any:
    """What makes two sizes the same: the number, or the symbol's own expression."""
    return size if isinstance(size, int) else size.node.expr


@dataclass(frozen=True, slots=True, eq=False)
class Lin(Expr):
    """``const + sum(factor * axis)``: an integer. Axes are sorted and no factor is 0."""

    terms: tuple[tuple[str, int], ...] = ()
    const: Size = 0

    def key(self) -> Any:
        return self.terms, size_key(self.const)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lin) and self.key() == other.key()

    def __hash__(self) -> int:
        return hash(self.key())

    def factor(self, axis: str) -> int:
        return dict(self.terms).get(axis, 0)

    def __str__(self) -> str:
        terms = sorted(self.terms, key=lambda term: term[1] < 0)  # "q - k", not "- k + q"
        words = [f"{'-' if n < 0 else '+'} {axis if abs(n) == 1 else f'{abs(n)} * {axis}'}" for axis, n in terms]
        if not (isinstance(self.const, int) and self.const == 0) or not words:
            negative = isinstance(self.const, int) and self.const < 0
            words.append(f"- {-self.const}" if negative else f"+ {shown(self.const)}")
        return " ".join(words).removeprefix("+ ")


@dataclass(frozen=True, slots=True)
class Bool(Expr):
    """True or False."""

    value: bool

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class Float(Expr):
    """A floating-point number of a dtype, already rounded to it. Never NaN."""

    value: float
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True, slots=True)
class Load(Expr):
    """``node[index]``: an element that is read when the program runs."""

    node: Any  # the value of a Reading; a node of the program once that is looked up
    index: tuple[Expr, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.node.name}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True, slots=True)
class Apply(Expr):
    """Arithmetic or a comparison on what is not linear: ``op`` is a name of `OPERATORS`."""

    op: str
    args: tuple[Expr, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        left, right = (f"({arg})" if isinstance(arg, Apply) else str(arg) for arg in self.args)
        return f"{left} {OPERATORS[self.op]} {right}"


@dataclass(frozen=True, slots=True)
class NonNeg(Expr):
    """``form >= 0``."""

    form: Lin

    def __str__(self) -> str:
        return _comparison(self.form, "<=")


@dataclass(frozen=True, slots=True)
class Zero(Expr):
    """``form == 0``."""

    form: Lin

    def __str__(self) -> str:
        return _comparison(self.form, "==")


@dataclass(frozen=True, slots=True)
class Not(Expr):
    """The opposite of a truth value."""

    arg: Expr

    def __str__(self) -> str:
        inner = f"({self.arg})" if not isinstance(self.arg, Load) else str(self.arg)
        return f"not {inner}"


@dataclass(frozen=True, slots=True)
class And(Expr):
    """All of them hold. Made by `all_of`."""

    args: frozenset[Expr]

    def __str__(self) -> str:
        return " and ".join(f"({text})" if isinstance(arg, Or) else text for arg, text in _written(self.args))


@dataclass(frozen=True, slots=True)
class Or(Expr):
    """One of them holds. Made by `any_of`."""

    args: frozenset[Expr]

    def __str__(self) -> str:
        return " or ".join(f"({text})" if isinstance(arg, And) else text for arg, text in _written(self.args))


@dataclass(frozen=True, slots=True)
class Where(Expr):
    """``yes`` where ``test`` holds, else ``no``; integers or floats."""

    test: Expr
    yes: Expr
    no: Expr

    def __str__(self) -> str:
        return f"({self.yes} if {self.test} else {self.no})"


TRUE, FALSE, ZERO = Bool(True), Bool(False), Lin()
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "eq": "==", "lt": "<", "le": "<="}


def in_order(args: Iterable[Expr]) -> list[Expr]:
    """Rules about indices first, then by text: the order of every printed expression."""
    return [arg for arg, _ in _written(args)]


def _written(args: Iterable[Expr]) -> list[tuple[Expr, str]]:
    """Each with its text, in order. A text is made once: twice would be 2 ** depth times for what lies deepest."""
    pairs = [(arg, str(arg)) for arg in args]
    return sorted(pairs, key=lambda pair: (not isinstance(pair[0], (NonNeg, Zero)), pair[1]))


def _comparison(form: Lin, sign: str) -> str:
    """``q - k >= 0`` as ``k <= q``; ``k - q + 1023 >= 0`` as ``q - k < 1024``."""
    low = linear({axis: -n for axis, n in form.terms if n < 0})
    high = linear({axis: n for axis, n in form.terms if n > 0}, form.const)
    number = as_number(form)
    const = form.const
    if number is None and sign == "<=" and isinstance(const, int) and const > 0 and low.terms and high.terms:
        return f"{linear({axis: -n for axis, n in form.terms})} < {const + 1}"
    return f"{low} {sign} {high}"


def linear(terms: Mapping[str, int], const: Size = 0) -> Lin:
    """``const + sum(factor * axis)``; factors of 0 are left out."""
    return Lin(tuple(sorted((axis, n) for axis, n in terms.items() if n)), const)


def axis(name: str) -> Lin:
    """The index along an axis."""
    return Lin(((name, 1),))


def number(value: Size) -> Lin:
    """A size as an integer expression."""
    return Lin((), value)


def as_number(expr: Expr) -> Size | None:
    """The value of an integer that depends on no index, else None."""
    return expr.const if isinstance(expr, Lin) and not expr.terms else None


def plus(left: Lin, right: Lin, times: int = 1) -> Lin:
    """``left + times * right``."""
    terms = dict(left.terms)
    for name, n in right.terms:
        terms[name] = terms.get(name, 0) + times * n
    return linear(terms, left.const + times * right.const)


def scaled(form: Lin, times: int) -> Lin:
    """``times * form``."""
    return plus(ZERO, form, times)
