"""Which wish list is for which calls: the grammar of ``ATTNPASS_KERNEL``, in one place.

    policy     = clause { ";" clause }
    clause     = [ condition { "&" condition } "=" ] kernel { "," kernel }
    condition  = [ "!" ] ( fact | size comparison number | module )
    fact       = "self" | "cross" | "prefill" | "decode" | ...         (`attnpass.settings.conditions.FACTS`)
    size       = "head_dim" | "Sq" | "Sk"
    comparison = "==" | "!=" | "<" | "<=" | ">" | ">="
    module     = a shell pattern for the call's module path; it holds a "." or one of "*?["

- Clauses with conditions are tried in the order written; the first whose conditions all hold gives the wish list.
- The clause without a condition, at most one, is for the calls that no condition matches, wherever it stands. Without
  one, ``auto`` is.
- A call whose kernel the program names itself is left, unless a clause with the condition ``chosen`` matches it.
- What the graph does not show is neither true nor false: such a clause is skipped, and the report says so.
- Spaces do not count, nor do empty clauses. The ``=`` behind the conditions is the first that is part of no comparison.

A plain list such as ``sage,flash3`` is a policy of one clause without a condition. Nothing here knows a kernel, a graph
or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from attnpass.errors import closest, did_you_mean
from attnpass.ir.call import AttentionCall
from attnpass.settings.conditions import CHOSEN, FACTS, SIZES, Holds, Unknown, compare

DEFAULT = ("auto",)
LEGAL = (
    f"Legal conditions: {', '.join(FACTS)}; {', '.join(SIZES)} compared with a number, such as head_dim<=128; a module "
    "path with a . or a *, such as blocks.0.* or *attn; ! in front of any of them; several joined with &"
)
_SEPARATOR = re.compile(r"(?<![<>=!])=(?!=)")
_COMPARISON = re.compile(r"^(\w+)\s*(==|!=|<=|>=|<|>)\s*(.*)$")
_NO_KERNEL = re.compile(r"[<>=!&*]")


class PolicyError(ValueError):
    """The text is no policy; the message names the clause and what is legal."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing asked of a call.

    Attributes:
        name: a fact, a size or a module pattern.
        comparison: for a size, how it is compared with ``number``.
        number: for a size.
        negated: must it not hold?
    """

    name: str
    comparison: str = ""
    number: int = 0
    negated: bool = False

    @property
    def is_glob(self) -> bool:
        return any(sign in self.name for sign in ".*?[")

    def ask(self, call: AttentionCall) -> Holds:
        """Does it hold for ``call``?"""
        answer: Holds
        if self.comparison:
            answer = compare(call, self.name, self.comparison, self.number)
        else:
            answer = fnmatchcase(call.module, self.name) if self.is_glob else FACTS[self.name].ask(call)
        return answer if isinstance(answer, Unknown) else answer != self.negated

    def __str__(self) -> str:
        number = f"{self.comparison}{self.number}" if self.comparison else ""
        return f"{'!' * self.negated}{self.name}{number}"


@dataclass(frozen=True, slots=True)
class Clause:
    """The wish list for the calls that all of the conditions hold for."""

    conditions: tuple[Condition, ...]
    wishes: tuple[str, ...]

    @property
    def is_for_chosen(self) -> bool:
        return any(condition.name == CHOSEN and not condition.negated for condition in self.conditions)

    def __str__(self) -> str:
        return f"{'&'.join(map(str, self.conditions))}={','.join(self.wishes)}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy says about one call.

    Attributes:
        wishes: the wish list; empty where the policy says nothing of the call, which is left alone.
        clause: the clause that it comes from, as text; "" for a plain list, where there is nothing to tell.
        skipped: earlier clauses of which the graph does not show whether they hold, each with the reason.
    """

    wishes: tuple[str, ...]
    clause: str = ""
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """Clauses in order, and the wish list for all other calls.

    >>> policy = parse("cross = native_cudnn; sage,flash3; head_dim>128=flex")
    >>> print(policy)
    sage,flash3; cross=native_cudnn; head_dim>128=flex
    """

    clauses: tuple[Clause, ...] = ()
    default: tuple[str, ...] = DEFAULT

    def choose(self, call: AttentionCall) -> Choice:
        """The wish list for ``call``. Adds no guard."""
        skipped: list[str] = []
        for clause in self.clauses:
            if call.chosen and not clause.is_for_chosen:
                continue
            answers = [condition.ask(call) for condition in clause.conditions]
            unknown = dict.fromkeys(answer.reason for answer in answers if isinstance(answer, Unknown))
            if False in answers:
                continue
            if not unknown:
                return Choice(clause.wishes, str(clause), tuple(skipped))
            skipped.append(f"{clause}: {'; '.join(unknown)}")
        if call.chosen:
            return Choice((), skipped=tuple(skipped))
        return Choice(self.default, ",".join(self.default) if self.clauses else "", tuple(skipped))

    def wish_lists(self) -> list[tuple[str, tuple[str, ...]]]:
        """Every wish list with the text of its clause; the text is "" in a plain list."""
        default = ",".join(self.default) if self.clauses else ""
        return [(default, self.default), *((str(clause), clause.wishes) for clause in self.clauses)]

    @property
    def wishes(self) -> tuple[str, ...]:
        """The kernels that any clause names, each once."""
        return tuple(dict.fromkeys(name for _, wishes in self.wish_lists() for name in wishes))

    def unmatched(self, modules: Sequence[str]) -> tuple[str, ...]:
        """The module patterns that match none of ``modules``: perhaps a typing mistake."""
        globs = dict.fromkeys(c.name for clause in self.clauses for c in clause.conditions if c.is_glob)
        return tuple(glob for glob in globs if not any(fnmatchcase(module, glob) for module in modules))

    def __str__(self) -> str:
        default = [] if self.clauses and self.default == DEFAULT else [",".join(self.default)]
        return "; ".join([*default, *map(str, self.clauses)])


def parse(text: str) -> Policy:
    """Read a policy.

    Raises:
        PolicyError: with the clause at fault and what would be legal.
    """
    clauses: list[Clause] = []
    defaults: list[str] = []
    for piece in filter(None, map(str.strip, text.split(";"))):
        separator = _SEPARATOR.search(piece)
        if separator is None:
            defaults.append(piece)
            continue
        before, after = piece[: separator.start()].strip(), piece[separator.end() :].strip()
        conditions = tuple(_condition(part.strip(), piece, after) for part in before.split("&"))
        clauses.append(Clause(conditions, _wishes(after, piece)))
    if len(defaults) > 1:
        raise PolicyError(
            f"the clauses {defaults[0]!r} and {defaults[1]!r} both have no condition, at most one may; put the kernels "
            f"into one list, or a condition in front of one: cross={defaults[1]}"
        )
    _refuse_unreachable(clauses)
    if not clauses and not defaults:
        raise PolicyError("it names no kernel")
    return Policy(tuple(clauses), _wishes(defaults[0], defaults[0]) if defaults else DEFAULT)


def _condition(text: str, clause: str, after: str) -> Condition:
    """One condition of ``clause``; ``after`` is what stands behind the clause's ``=``."""
    name = text.removeprefix("!").strip()
    negated = text.startswith("!")
    compared = _COMPARISON.match(name)
    if compared:
        size, comparison, number = compared.groups()
        if size not in SIZES:
            raise PolicyError(
                f"in the clause {clause!r}: {size!r} is no size{did_you_mean(closest(size, SIZES))} {LEGAL}"
            )
        if not (number.isascii() and number.isdigit()):
            raise PolicyError(
                f"in the clause {clause!r}: {size} is compared with {number!r}, needs a number, 0 or more"
            )
        return Condition(size, comparison, int(number), negated)
    if name in SIZES:
        number = after.partition("=")[0].strip()
        example = f"{name}=={number}={after.partition('=')[2].strip()}" if number.isdigit() else f"{name}<=128={after}"
        raise PolicyError(f"in the clause {clause!r}: {name} needs a comparison, as in {example!r}")
    condition = Condition(name, negated=negated)
    if not name or (name not in FACTS and not condition.is_glob) or re.search(r"^!|[<>=,\s]", name):
        hint = did_you_mean(closest(name, [*FACTS, *SIZES]))
        raise PolicyError(f"in the clause {clause!r}: {text!r} is no condition{hint} {LEGAL}")
    return condition


def _wishes(text: str, clause: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise PolicyError(f"the clause {clause!r} names no kernel, needs at least one, such as {clause}auto")
    for name in names:
        if _NO_KERNEL.search(name):
            raise PolicyError(
                f"in the clause {clause!r}: {name!r} is no kernel; conditions stand in front of one =, clauses are "
                "separated by ;, as in cross&Sk<=77=native; sage"
            )
    return names


def _refuse_unreachable(clauses: Sequence[Clause]) -> None:
    """Two clauses with the same conditions: the second one would never be used."""
    seen: dict[frozenset[Condition], Clause] = {}
    for clause in clauses:
        first = seen.setdefault(frozenset(clause.conditions), clause)
        if first is not clause:
            raise PolicyError(
                f"the clause '{clause}' has the conditions of '{first}', which stands before it and always wins; join "
                "the two lists, or change the conditions"
            )
