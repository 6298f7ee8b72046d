"""Nothing takes more than about linear time in the program, counted in steps and parts, never in seconds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attnpass.index import arrays, bounds
from attnpass.index.arrays import Array, Like
from attnpass.index.bounds import Bounds
from attnpass.index.evaluate import Values, as_tensor, evaluate
from attnpass.index.expr import (
    TRUE,
    Expr,
    K,
    Load,
    Q,
    axis,
    linear,
    number,
    plus,
)
from attnpass.index.interned import LONGEST
from attnpass.index.logic import (
    all_of,
    any_of,
    axes_of,
    is_positive,
    is_zero,
    loads_of,
    negated,
    substituted,
    walk,
    written_out,
)
from attnpass.index.rules.joins import Span, _cat
from attnpass.index.rules.joins import assigned as assigned_to
from attnpass.index.rules.pointwise import band, chosen, elementwise
from attnpass.index.rules.views import _roll
from attnpass.index.scalars import StopError, constant
from attnpass.index.simplify import MOST_WRITTEN_OUT, conjuncts, simpler, simplified
from attnpass.understand import prove
from attnpass.understand.prove import taken_apart

S = 256
SHAPE = (S, S)
INT, BOOL, FLOAT = (Like(SHAPE, dtype) for dtype in (torch.int64, torch.bool, torch.float32))
ROWS = Like((S, 1), torch.int64).made_of(lambda i: i[0])
COLUMNS = Like((1, S), torch.int64).made_of(lambda i: i[1])
CPU = torch.device("cpu")
NODE = torch.fx.Graph().placeholder("x")


def read(like: Like) -> Array:
    return like.made_of(lambda i: Load(NODE, i, like.dtype))


def triangle() -> Array:
    return band(BOOL.made_of(lambda _: TRUE), BOOL, 0, lower=True)


def column(i: int) -> Array:
    return elementwise("eq", operator.eq, BOOL, (COLUMNS, i))


def chained(name: str, function: Callable[..., Tensor]) -> Callable[[int], Array]:
    def make(n: int) -> Array:
        mask = triangle()
        for i in range(n):
            mask = elementwise(name, function, BOOL, (mask, column(i)))
        return mask

    return make


def assigned(n: int) -> Array:
    mask = FLOAT.made_of(lambda _: constant(float("-inf"), torch.float32))
    for i in range(n):
        first = max(0, i - 3)
        length = i + 1 - first
        zeros = Like((length,), torch.float32).made_of(lambda _: constant(0.0, torch.float32))
        mask = assigned_to(FLOAT, mask, zeros, [Span(0, i, i + 1), Span(0, first, i + 1, length)])
    return mask


def rolled(n: int) -> Array:
    mask = read(BOOL)
    for i in range(n):
        mask = _roll(BOOL, mask, (3 + i,), (-1,))
    return mask


def clamped(n: int) -> Array:
    x = elementwise("add", operator.add, INT, (ROWS, 0))
    for i in range(n):
        x = elementwise("maximum", torch.maximum, INT, (x, elementwise("sub", operator.sub, INT, (COLUMNS, i))))
        x = elementwise("minimum", torch.minimum, INT, (x, Like((), torch.int64).made_of(lambda _, i=i: number(S - i))))  # type: ignore[misc]
    return elementwise("le", operator.le, BOOL, (x, COLUMNS))


def folded(n: int) -> Array:
    x = elementwise("sub", operator.sub, INT, (ROWS, COLUMNS))
    for _ in range(n):
        x = elementwise("abs", operator.abs, INT, (elementwise("sub", operator.sub, INT, (x, 1)),))
    return elementwise("le", operator.le, BOOL, (x, 3))


def nested(n: int) -> Array:
    x: Array = FLOAT.made_of(lambda _: constant(0.0, torch.float32))
    for i in range(n):
        x = chosen(
            elementwise("eq", operator.eq, BOOL, (ROWS, i)), 0.0, chosen(triangle(), x, float("-inf"), FLOAT), FLOAT
        )
    return x


def joined(n: int) -> Array:
    part = Like((S, 1), torch.bool)
    return _cat(BOOL, [read(part) if i % 2 else part.made_of(lambda _: TRUE) for i in range(n)], -1)


def mixed(n: int) -> Array:
    mask = triangle()
    for i in range(n):
        test = elementwise("gt", operator.gt, BOOL, (read(FLOAT), float(i)))
        mask = elementwise(*(("and", operator.and_) if i % 2 else ("or", operator.or_)), BOOL, (mask, test))
    return mask


SHAPES: dict[str, Callable[[int], Array]] = {
    "and": chained("and", operator.and_),
    "or": chained("or", operator.or_),
    "xor": chained("xor", operator.xor),
    "assigned": assigned,
    "clamped": clamped,
    "nested": nested,
    "joined": joined,
    "mixed": mixed,
}


@dataclass
class Cost:
    """What reading a mask took: elements made, parts of the mask, parts simplified, parts of the result."""

    steps: int
    parts: int
    simplified: int
    result: int


def cost(array: Array) -> Cost:
    expr = array.at((axis(Q), axis(K)))
    steps = arrays.steps()
    inside = Bounds.of({Q: S, K: S})
    allowed = taken_apart(expr).allowed
    result = simpler(allowed, inside)
    assert len(str(result)) <= LONGEST + 4
    return Cost(steps, len(list(walk(allowed))), inside.work.spent - bounds.CREDIT, len(list(walk(result))))


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_program_is_about_twice_the_work(shape: str) -> None:
    one, two = cost(SHAPES[shape](80)), cost(SHAPES[shape](160))
    for name in ("steps", "parts", "simplified", "result"):
        assert getattr(two, name) <= 2.5 * max(getattr(one, name), 0) + bounds.CREDIT, f"{name}: {one}, {two}"


@pytest.mark.parametrize("n", (3, 40, 400))
def test_absolute_values_inside_one_another_are_followed_or_not(n: int) -> None:
    """Into 16 alternatives, and no further."""
    array = folded(n)
    if n > 4:
        with pytest.raises(StopError, match="abs of"):
            array.at((axis(Q), axis(K)))
    else:
        assert axes_of(array.at((axis(Q), axis(K)))) == {Q, K}
    assert arrays.steps() <= 4 * n + 4


@pytest.mark.parametrize("shape", ("and", "or", "xor", "mixed"))
def test_three_hundred_in_a_row_are_followed(shape: str) -> None:
    array = SHAPES[shape](300)
    expr = array.at((axis(Q), axis(K)))
    opposite = elementwise("not", operator.invert, BOOL, (array,)).at((axis(Q), axis(K)))
    places = {Q: torch.arange(12)[:, None], K: torch.arange(12)[None]}
    values = Values(places, {NODE: torch.randn(S, S)}, {}, device=CPU)
    assert torch.equal(evaluate(expr, values), ~evaluate(opposite, values))
    result = simpler(expr, Bounds.of({Q: S, K: S}))
    read_again = as_tensor(evaluate(result, values), torch.bool, CPU).expand(12, 12)
    assert torch.equal(evaluate(expr, values), read_again)


def test_a_flat_conjunction_is_taken_apart_whole() -> None:
    parts = [negated(is_zero(plus(axis(K), number(-i)))) for i in range(300)]
    mask: Expr = TRUE
    for part in parts:
        mask = all_of((mask, part))
    assert set(conjuncts(simpler(mask, Bounds()))) == set(parts)


@pytest.mark.parametrize("n", (32, 64, 1000))
def test_rolls_end_in_a_reason(n: int) -> None:
    """Each asks two places of the one before: as far as the budget goes, and no further."""
    array = rolled(n)
    try:
        assert loads_of(array.at((axis(Q), axis(K))))
        assert n == 32
    except StopError as stop:
        assert "too large to be followed" in str(stop)
    assert arrays.steps() <= arrays.MOST_STEPS + 1


@pytest.mark.parametrize(("make", "n"), [(SHAPES["xor"], 30), (SHAPES["xor"], 200)])
def test_what_a_compiler_would_write_out_again_and_again_is_not_followed(make: Callable[[int], Array], n: int) -> None:
    allowed = taken_apart(make(n).at((axis(Q), axis(K)))).allowed
    with pytest.raises(StopError, match=r"a mask too large to be followed: .* parts"):
        simplified(allowed, Bounds.of({Q: S, K: S}))


@pytest.mark.parametrize(("shape", "n"), [("and", 300), ("or", 300), ("mixed", 200), ("joined", 64), ("nested", 64)])
def test_what_is_long_but_not_shared_is_followed(shape: str, n: int) -> None:
    allowed = taken_apart(SHAPES[shape](n).at((axis(Q), axis(K)))).allowed
    assert written_out(simplified(allowed, Bounds.of({Q: S, K: S}))) <= MOST_WRITTEN_OUT


def test_what_is_too_large_is_not_asked_twice() -> None:
    array = rolled(200)
    for _ in range(2):
        with pytest.raises(StopError, match="too large to be followed: more than"):
            array.at((axis(Q), axis(K)))
    before = arrays.steps()
    with pytest.raises(StopError):
        array.at((axis(Q), axis(K)))
    assert arrays.steps() == before


def test_an_expression_of_too_many_parts_is_not_followed() -> None:
    part = Like((S, 1), torch.bool)
    wide = _cat(BOOL, [part.made_of(lambda j, i=i: Load(NODE, (*j, number(i)), torch.bool)) for i in range(2000)], -1)  # type: ignore[misc]
    with pytest.raises(StopError, match="parts"):
        wide.at((axis(Q), axis(K)))


def test_few_keys_are_tried_as_one_that_every_query_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    n, tried = 100, list[Expr]()

    def counted(expr: Expr, *rest: object) -> Expr:
        tried.append(expr)
        return substituted(expr, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(prove, "substituted", counted)
    bound = [is_positive(plus(number(3 * i + 5), axis(K), -1)) for i in range(n)]
    loads = [Load(NODE, (axis(Q), linear({K: 1}, i)), torch.bool) for i in range(n)]
    some = all_of(any_of(pair) for pair in zip(bound, loads, strict=True))
    sizes = {"b": 1, "h": 1, Q: S, K: 4 * S}
    assert not prove._rows_may_be_empty(some, Bounds.of(sizes), sizes)
    last = any_of((Load(NODE, (axis(K), axis(Q)), torch.bool), all_of((loads[0], loads[1], loads[2]))))
    assert prove._rows_may_be_empty(all_of((some, last)), Bounds.of(sizes), sizes)
    assert len(tried) <= (prove.MOST_WITNESSES + 1) * (n + 1)
