"""Conditions as models write them: rules on positions, and tests of data, joined by logic."""

from __future__ import annotations

from tests.fuzz.scope import Scope

COMPARE = ("<=", "<", ">=", ">", "==", "!=")
LOGIC = (
    ("{0} & {1}", "torch.logical_and({0}, {1})", "{0} * {1}", "{0}.bitwise_and({1})", "{0}.mul({1})"),
    ("{0} | {1}", "torch.logical_or({0}, {1})", "{0}.logical_or({1})", "torch.bitwise_or({0}, {1})"),
    ("~{0}", "torch.logical_not({0})", "{0}.logical_not() & {1}", "{0} == False", "{0} ^ {1}"),
    ("torch.where({0}, {1}, ~{0})", "torch.where({0}, {1}, False)", "{0}.where({1}, ~{1})"),
    ("{0} ^ {1}", "{0} != {1}", "{0} == {1}", "{0} <= {1}", "torch.maximum({0}, {1})"),
)


def condition(s: Scope, depth: int) -> str:
    """A bool tensor that broadcasts to (B, H, Sq, Sk), or may after some views."""
    if depth == 0 or s.chance(0.2):
        return s.must((rule if s.chance(0.65) else _data)(s))
    left, right = condition(s, depth - 1), condition(s, depth - 1)
    return s.new(s.one(s.one((*LOGIC, *LOGIC[:2]))).format(left, right)) or left


def _position(s: Scope, axis: str) -> str:
    """Positions along q or k as models make them, shaped to broadcast."""
    n = {"q": "Sq", "k": "Sk"}[axis]
    shift = s.one(("", "", "", " + 1", " - 2", " + Sk - Sq", " * 2"))
    row = s.one(
        (
            f"torch.arange({n}){shift}",
            f"torch.arange({n}, dtype=torch.{s.one(('int32', 'float32', 'uint8', 'int8', 'int16'))}){shift}",
            f"torch.arange(1, {n} + 1){shift}",
            f"torch.arange({n} - 1, -1, -1){shift}",
            f"torch.ones({n}, dtype=torch.long).cumsum(-1){shift}",
            f"(pad.cumsum(-1) - 1)[:, None, None]{shift}" if axis == "k" else f"torch.arange({n})",
        )
    )
    if "pad" in row:
        return f"({row})"
    return f"({row})" + s.one({"q": ("[:, None]", "[None, None, :, None]", ".view(-1, 1)"), "k": ("[None]", "")}[axis])


def rule(s: Scope) -> str:
    n, c = s.one((-2, -1, 0, 0, 1, 2, 3)), s.one((1, 2, 3, 4))
    q, k = _position(s, "q"), _position(s, "k")
    name, dtype = s.one(("tril", "triu")), s.one(("bool", "bool", "float32", "int64", "uint8"))
    compare = s.one(COMPARE)
    ones = f"torch.ones({s.one(('Sq, Sk', '1, 1, Sq, Sk', 'B, 1, Sq, Sk', '(Sq, Sk)'))}, dtype=torch.{dtype})"
    tail = "" if dtype == "bool" else s.one((".bool()", " != 0", " > 0", " == 1", ".to(torch.bool)"))
    return s.one(
        (
            f"{q} {compare} {k}",
            f"{q} >= {k} + {n}",
            f"({q} - {k}).abs() {s.one(('<=', '<', '>'))} {c}",
            f"({q} // {c}) {s.one(('==', '>=', '<='))} ({k} // {c})",
            f"({q} - {k}) % {c} == {s.one((0, 0, 1))}",
            f"({ones}.{name}({n})){tail}",
            f"(torch.{name}({ones}, diagonal={n})){tail}",
            f"torch.zeros(Sq, Sk, dtype=torch.bool){s.one(('', '.logical_not()'))}",
            f"torch.full((Sq, Sk), {s.one((True, False))})",
            f"torch.eye(Sq, Sk, dtype=torch.bool){s.one(('', '.logical_not()'))}",
            f"torch.full((Sq, Sk), INF).{name}({n}) {s.one(('== 0', '!= 0', '< -1', '> -1'))}",
            f"{k} {compare} {c}",
            f"({q} - {k} >= {n}) & ({q} - {k} < {c})",
        )
    )


def _data(s: Scope) -> str:
    slots = s.one(("[:, None, None]", "[:, None, None, :]", ".view(B, 1, 1, Sk)", ".unsqueeze(1).unsqueeze(2)"))
    test = s.one(("pad.bool()", "pad != 0", "pad == 1", "pad == 0", "pad.to(torch.bool)", "pad > 0", "pad.gt(0)"))
    compare = s.one(COMPARE)
    return s.one(
        (
            f"({test}){slots}",
            f"({test}){slots}",
            "bits",
            "bits.clone()",
            f"ids[:, None, :Sq, None] {compare} ids[:, None, None, :Sk]",
            f"ids[:, None, None, :Sk] {compare} {s.one((0, 1, 2))}",
            f"torch.arange(Sk)[None, None, None] {compare} lens[:, None, None, None]",
            "pad[:, None, :, None].bool() & pad[:, None, None].bool()" if s.sizes.Sq == s.sizes.Sk else "bits",
            "pad.bool()[torch.arange(B)[:, None, None, None], torch.arange(Sk)[None, None, None]]",
        )
    )
