"""The expression: one element of a mask as a function of the indices (b, h, q, k). Immutable, printable, shared.

Booleans, integers and floats are told apart by class, never by value. Integers that depend on indices only are linear
forms (`Lin`), so that ``k <= q``, ``q >= k`` and ``~(k > q)`` are one and the same expression: ``q - k >= 0``. Whatever
is read from a tensor stays a `Load` of the graph's node, and arithmetic on loads stays as the program wrote it, because
moving a term across a comparison may overflow. The functions in lower case build expressions and simplify on the way;
what needs the sizes of the axes is in `attnpass.index.simplify`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from attnpass.graph.symbolic import Size, shown
from attnpass.index.interned import Expr as Expr
from attnpass.index.interned import in_order

B, H, Q, K = AXES = ("b", "h", "q", "k")


def size_key(size: Size) -> Any:
    """What makes two sizes the same: the number, or the symbol's own expression."""
    return size if isinstance(size, int) else size.node.expr


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Lin(Expr):
    """``const + sum(factor * axis)``: an integer. Axes are sorted and no factor is 0."""

    terms: tuple[tuple[str, int], ...] = ()
    const: Size = 0

    def __post_init__(self) -> None:
        if type(self.const) is not int:  # True, or the symbolic s0 - s0
            number = self.const if isinstance(self.const, int) else self.const.node.maybe_as_int()
            object.__setattr__(self, "const", self.const if number is None else int(number))

    def key(self) -> Any:
        if isinstance(self.const, int):
            return self.terms, self.const
        program = id(getattr(self.const.node, "shape_env", None))  # its s0 is not another's
        return self.terms, size_key(self.const), program

    def factor(self, axis: str) -> int:
        return dict(self.terms).get(axis, 0)

    def spelled(self) -> str:
        terms = sorted(self.terms, key=lambda term: term[1] < 0)  # "q - k", not "- k + q"
        words = [f"{'-' if n < 0 else '+'} {axis if abs(n) == 1 else f'{abs(n)} * {axis}'}" for axis, n in terms]
        if not (isinstance(self.const, int) and self.const == 0) or not words:
            negative = isinstance(self.const, int) and self.const < 0
            words.append(f"- {-self.const}" if negative else f"+ {shown(self.const)}")
        return " ".join(words).removeprefix("+ ")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Bool(Expr):
    """True or False."""

    value: bool

    def spelled(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Float(Expr):
    """A floating-point number of a dtype, already rounded to it. Never NaN; -0.0 is another one than 0.0."""

    value: float
    dtype: torch.dtype

    def key(self) -> Any:
        return self.value, math.copysign(1.0, self.value), self.dtype

    def spelled(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Load(Expr):
    """``node[index]``: an element that is read when the program runs."""

    node: Any  # the value of a Reading; a node of the program once that is looked up
    index: tuple[Expr, ...]
    dtype: torch.dtype

    def parts(self) -> tuple[Expr, ...]:
        return self.index

    def spelled(self) -> str:
        return f"{self.node.name}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Apply(Expr):
    """Arithmetic or a comparison on what is not linear: ``op`` is a name of `OPERATORS`, or a function of one operand.

    Arithmetic is done in ``dtype``, and every operand fits into that. A comparison compares what the operands are, not
    what they would be in some common dtype.
    """

    op: str
    args: tuple[Expr, ...]
    dtype: torch.dtype

    def parts(self) -> tuple[Expr, ...]:
        return self.args

    def spelled(self) -> str:
        if len(self.args) == 1:
            return f"{str(self.dtype).removeprefix('torch.') if self.op == 'cast' else self.op}({self.args[0]})"
        left, right = (f"({arg})" if self._is_bracketed(arg) else str(arg) for arg in self.args)
        return f"{left} {OPERATORS[self.op]} {right}"

    def _is_bracketed(self, arg: Expr) -> bool:
        """``(k - 1) // 4``, but ``k - 1 < q``."""
        binds = self.op not in COMPARISONS
        return isinstance(arg, Apply) or (binds and isinstance(arg, Lin) and " " in arg.spelled())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rule(Expr):
    """A claim about indices alone."""

    form: Lin
    is_rule = True

    def parts(self) -> tuple[Expr, ...]:
        return (self.form,)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NonNeg(Rule):
    """``form >= 0``."""

    def spelled(self) -> str:
        return _comparison(self.form, "<=")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Zero(Rule):
    """``form == 0``."""

    def spelled(self) -> str:
        return _comparison(self.form, "==")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Not(Expr):
    """The opposite of a truth value."""

    arg: Expr

    def parts(self) -> tuple[Expr, ...]:
        return (self.arg,)

    def spelled(self) -> str:
        inner = f"({self.arg})" if not isinstance(self.arg, Load) else str(self.arg)
        return f"not {inner}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Join(Expr):
    """Several truth values as one."""

    args: frozenset[Expr]

    def parts(self) -> frozenset[Expr]:
        return self.args

    def joined(self, word: str, bracketed: type[Expr]) -> str:
        return word.join(f"({arg})" if isinstance(arg, bracketed) else str(arg) for arg in in_order(self.args))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class And(Join):
    """All of them hold. Made by `all_of`."""

    def spelled(self) -> str:
        return self.joined(" and ", Or)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Or(Join):
    """One of them holds. Made by `any_of`."""

    def spelled(self) -> str:
        return self.joined(" or ", And)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Where(Expr):
    """``yes`` where ``test`` holds, else ``no``; integers or floats, both of the same dtype."""

    test: Expr
    yes: Expr
    no: Expr

    def parts(self) -> tuple[Expr, ...]:
        return self.test, self.yes, self.no

    def spelled(self) -> str:
        return f"({self.yes} if {self.test} else {self.no})"


TRUE, FALSE, ZERO = Bool(True), Bool(False), Lin()
COMPARISONS = frozenset({"eq", "lt", "le"})
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%", "eq": "==", "lt": "<", "le": "<="}


def _comparison(form: Lin, sign: str) -> str:
    """``q - k >= 0`` as ``k <= q``; ``k - q + 1023 >= 0`` as ``q - k < 1024``."""
    low = linear({axis: -n for axis, n in form.terms if n < 0})
    high = linear({axis: n for axis, n in form.terms if n > 0}, form.const)
    const = form.const
    if sign == "<=" and isinstance(const, int) and const > 0 and low.terms and high.terms:
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
