"""Expressions as a shared graph: equal ones are one object, so that ``==``, a hash and a memo take no time.

A program that reads a value twice would otherwise make a tree of twice the size, and 30 chained ``^`` one of 2 ** 30
leaves. What is known of an expression (its text, its opposite, its axes) is kept with it. Nothing in here recurses: a
chain of thousands of operations is deeper than Python's stack. The tables hold no expression alive.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from torch.fx import Node

LONGEST = 2000  # characters of a text; who reads more?
Value = TypeVar("Value")


class Interned(type):
    """Makes constructors give the object that exists already, if there is one."""

    table: WeakValueDictionary[Any, Any]

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cls.table = WeakValueDictionary()

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        found = cls.table.setdefault(made.key(), made)
        if found is made:
            object.__setattr__(made, "memo", {})
        return found


class Expr(metaclass=Interned):
    """One element as a function of the indices."""

    __slots__ = ("__weakref__", "memo")
    memo: dict[str, Any]
    __match_args__: tuple[str, ...] = ()  # the names of its fields, which dataclass writes here
    is_rule = False  # is it about indices alone?

    def key(self) -> Any:
        """What makes two of a class the same, with what they hold by its address.

        They hold it themselves. If the table did, too, an expression that is part of a cycle (its own opposite's
        opposite) would keep what is inside it alive until the garbage collector has come once for each level.
        """
        return tuple([_address(each) for each in self.fields()])

    def fields(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in self.__match_args__])

    def parts(self) -> Collection[Expr]:
        """The expressions that it is made of, in no order if they have none."""
        return ()

    def label(self) -> str:
        """What it is beside its parts."""
        return " ".join(str(each) for each in self.fields() if not isinstance(each, (Expr, tuple, frozenset)))

    def spelled(self) -> str:
        """How people read it; may ask for the texts of its parts."""
        raise NotImplementedError

    def __str__(self) -> str:
        text: str = remembered(self, "text", lambda part: shortened(part.spelled()))
        return text

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.fields()  # so that a copy, too, is the object that exists


def _address(value: Any) -> Any:
    if isinstance(value, (Expr, Node)):
        return id(value)
    return type(value)(map(id, value)) if isinstance(value, (tuple, frozenset)) else value


def shortened(text: str) -> str:
    """A text that is not much longer than `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def bottom_up(
    expr: Expr, done: Callable[[Expr], bool], parts: Callable[[Expr], Collection[Expr]] = lambda part: part.parts()
) -> Iterator[Expr]:
    """What is inside an expression and not ``done``, parts first; whoever iterates makes each of it done."""
    stack = [expr]
    while stack:
        if done(stack[-1]):
            stack.pop()
            continue
        missing = [part for part in parts(stack[-1]) if not done(part)]
        if missing:
            stack.extend(reversed(missing))
        else:
            yield stack.pop()


def remembered(
    expr: Expr,
    name: str,
    rule: Callable[[Any], Value],
    parts: Callable[[Expr], Collection[Expr]] = lambda part: part.parts(),
) -> Value:
    """``rule`` of an expression, which may ask for the same of its parts: each is computed once and kept."""
    if name not in expr.memo:
        for part in bottom_up(expr, lambda part: name in part.memo, parts):
            part.memo[name] = rule(part)
    value: Value = expr.memo[name]
    return value


def in_order(args: Iterable[Expr]) -> list[Expr]:
    """Rules about indices first, then by text: the order of every printed expression, the same in every process."""
    return sorted(args, key=_place)


def _place(expr: Expr) -> tuple[bool, str, bytes]:
    text = str(expr)
    return not expr.is_rule, text, digest(expr) if len(text) > LONGEST else b""


def digest(expr: Expr) -> bytes:
    """What tells two expressions apart whose texts were cut."""
    return remembered(expr, "digest", _digest)


def _digest(expr: Expr) -> bytes:
    parts = [digest(part) for part in expr.parts()]
    ordered = sorted(parts) if isinstance(expr.parts(), frozenset) else parts
    own = f"{type(expr).__name__} {expr.label()} {'' if parts else expr}"
    return blake2b(own.encode() + b"".join(ordered), digest_size=16).digest()
