"""Biases that are tables: proved to be read by position, right in every kernel, and what only looks like them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnpass.index.expr import Load
from attnpass.index.logic import loads_of
from tests.helpers.compiled import assert_near, decisions, run
from tests.helpers.masks_read import understood

S = F.scaled_dot_product_attention
B, H, N = 2, 4, 12
LOW = torch.finfo(torch.float32).min
Maker = Callable[[Tensor], Tensor]


def learned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape).to(dtype))


TABLE, SQUARE, SLOPES, HIDDEN = learned(2 * N, H), learned(H, N, N), learned(H, 1, 1), learned(2 * N, 3)
PROJECTION = learned(H, 3)
INDEX = torch.randint(0, 2 * N, (N, N))


def distance() -> Tensor:
    i = torch.arange(N)
    return i[:, None] - i


def heads_first(bias: Tensor) -> Tensor:
    return bias.permute(2, 0, 1)[None]


def bucket(gap: Tensor) -> Tensor:
    """T5's: near ones one by one, far ones on a logarithmic scale."""
    sign, gap = (gap > 0).long() * 8, gap.abs()
    far = 4 + (torch.log(gap.float() / 4) / math.log(4) * 4).long()
    return sign + torch.where(gap < 4, gap, torch.min(far, torch.full_like(far, 7)))


def built() -> Tensor:
    """An index that is put together for each score."""
    index = torch.zeros(N, N, dtype=torch.long)
    index[1:, 1:] = (distance()[1:, 1:] + N).clamp(0, 2 * N - 4)
    index[0, 0:], index[0:, 0] = 2 * N - 3, 2 * N - 2
    return index


TABLES: dict[str, Maker] = {
    "by distance": lambda q: heads_first(TABLE[distance() + N]),
    "by distance, counted from the end": lambda q: heads_first(TABLE[distance()]),
    "by a clamped distance": lambda q: heads_first(TABLE[distance().clamp(-3, 3) + 3]),
    "embedding": lambda q: heads_first(F.embedding(distance() + N, TABLE)),
    "index_select": lambda q: heads_first(TABLE.index_select(0, (distance() + N).view(-1)).view(N, N, H)),
    "gather": lambda q: TABLE.T.gather(1, (distance() + N).view(1, -1).expand(H, -1)).view(H, N, N)[None],
    "Swin": lambda q: heads_first(TABLE[INDEX.view(-1)].view(N, N, -1)),
    "Swin v2": lambda q: heads_first(16 * torch.sigmoid(F.linear(HIDDEN, PROJECTION)[INDEX.view(-1)].view(N, N, H))),
    "T5": lambda q: heads_first(F.embedding(bucket(distance()), TABLE)),
    "BEiT": lambda q: heads_first(torch.cat([TABLE[:5] * 2, TABLE[5:]])[built().view(-1)].view(N, N, -1)),
    "ALiBi": lambda q: SLOPES * -distance().abs(),
    "in q's dtype": lambda q: heads_first(TABLE[distance() + N]).to(q.dtype),
    "scaled": lambda q: SQUARE * 0.5,
    "negative": lambda q: -heads_first(TABLE[distance() + N]),
    "beside causal": lambda q: heads_first(TABLE[distance() + N]) + torch.full((N, N), LOW).triu(1),
    "causal, scaled": lambda q: (heads_first(TABLE[distance() + N]) + torch.full((N, N), -math.inf).triu(1)) * 2.0,
}


def attend(make: Maker) -> Maker:
    return lambda q: S(q, q, q, make(q).to(q.dtype))


def rows(grad: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(B, H, N, 16, dtype=dtype, requires_grad=grad)


def whole(load: Load) -> bool:
    return {"h", "q", "k"} <= set(map(str, load.index))


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_and_not_what_was_made_of_them(name: str) -> None:
    make, q = TABLES[name], rows()
    (found,) = understood(attend(make), q)
    mask, meaning = found.call.mask, found.meaning
    assert str(mask) == ("causal & bias" if "causal" in name else "bias"), mask.stop
    assert meaning is not None and meaning.bias is not None and not mask.rows_may_be_empty
    floats = [load for load in loads_of(meaning.bias) if load.dtype.is_floating_point]
    assert floats and any(map(whole, floats)) == (name == "scaled")
    with torch.no_grad():
        for kernel in ("flex", "native_math"):
            torch._dynamo.reset()
            assert_near(run(attend(make), q, kernel=kernel), attend(make)(q))
            assert decisions()[-1].kernel == kernel


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("name", ("by distance", "T5", "Swin v2", "in q's dtype", "beside causal"))
def test_in_low_precision(name: str, dtype: torch.dtype) -> None:
    q = rows(dtype=dtype)
    with torch.no_grad():
        wanted = attend(TABLES[name])(q.double())
        mine, native = run(attend(TABLES[name]), q, kernel="flex"), attend(TABLES[name])(q)
    assert decisions()[-1].kernel == "flex"
    error = (native.double() - wanted).abs().max()
    assert (mine.double() - wanted).abs().max() <= 2 * error + torch.finfo(dtype).eps


@pytest.mark.parametrize("name", TABLES)
def test_gradients_reach_what_learns(name: str) -> None:
    parameters, q = (TABLE, SQUARE, SLOPES, HIDDEN, PROJECTION), rows(grad=True)
    (found,) = understood(attend(TABLES[name]), q)
    assert found.call.mask.bias is not None and found.call.mask.bias.requires_grad, found.call.mask.stop

    def gradients(out: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad(out.square().sum(), (q, *parameters), allow_unused=True))

    wanted = gradients(attend(TABLES[name])(q))
    got = gradients(run(attend(TABLES[name]), q, kernel="flex,native_math"))
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert_near(mine, theirs, steps=64)


def by_hand(q: Tensor) -> Tensor:
    return ((q @ q.mT + SQUARE) * 0.25).softmax(-1) @ q


def by_hand_scaled_mask(q: Tensor) -> Tensor:
    return ((q @ q.mT + torch.full((N, N), -math.inf).triu(1) + SQUARE) * 0.25).softmax(-1) @ q


@pytest.mark.parametrize(("function", "mask"), ((by_hand, "bias"), (by_hand_scaled_mask, "causal & bias")))
def test_scaled_with_the_scores(function: Maker, mask: str) -> None:
    q = rows()
    (found,) = understood(function, q)
    assert str(found.call.mask) == mask, found.call.mask.stop
    with torch.no_grad():
        assert_near(run(function, q, kernel="flex"), function(q))


class Embedded(torch.nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(2 * N, H, **options)  # type: ignore[arg-type]

    def forward(self, q: Tensor) -> Tensor:
        return S(q, q, q, heads_first(self.table(distance() + N)))


@pytest.mark.parametrize("options", ({"padding_idx": N}, {"scale_grad_by_freq": True}))
def test_an_embedding_with_gradients_of_its_own(options: dict[str, object]) -> None:
    model, q = Embedded(**options), rows(grad=True)
    (found,) = understood(model, q)
    assert "padding_idx" in found.call.mask.stop
    wanted = torch.autograd.grad(model(q).square().sum(), model.table.weight)
    got = torch.autograd.grad(run(model, q, kernel="flex,native_math").square().sum(), model.table.weight)
    torch.testing.assert_close(got, wanted)


def detached(q: Tensor) -> Tensor:
    return S(q, q, q, heads_first(TABLE.detach()[distance() + N]) + SQUARE)


def without_gradients(q: Tensor) -> Tensor:
    with torch.no_grad():
        bias = heads_first(TABLE[distance() + N])
    return S(q, q, q, bias)


def detached_at_the_end(q: Tensor) -> Tensor:
    return S(q, q, q, heads_first(TABLE[distance() + N]).detach())


@pytest.mark.parametrize("function", (detached, without_gradients, detached_at_the_end))
def test_no_gradient_where_the_program_stops_it(function: Maker) -> None:
    q = rows(grad=True)
    (found,) = understood(function, q)
    assert "no gradient passes" in found.call.mask.stop
    out = run(function, q, kernel="flex,native_math")
    torch.testing.assert_close(out, function(q))
    assert torch.autograd.grad(out.sum(), TABLE, allow_unused=True) == (None,)
    with torch.no_grad():
        (found,) = understood(function, rows())
    assert str(found.call.mask) == "bias"


def written_between(q: Tensor, table: Tensor) -> Tensor:
    bias = heads_first(table[distance() + N])
    table.zero_()
    return S(q, q, q, bias)


def index_written_between(q: Tensor, table: Tensor) -> Tensor:
    index = (table[:, 0] > 0).long()
    bias = heads_first(table[index[:N, None] + index[:N]])
    index.add_(1)
    return S(q, q, q, bias)


def other_axis(q: Tensor, table: Tensor) -> Tensor:
    return S(q, q, q, table[distance() + N].permute(2, 1, 0)[None])


def of_keys(q: Tensor, table: Tensor) -> Tensor:
    return S(q, q, q, table[torch.arange(N)].mT[None, :, None, :])


def of_queries_and_keys(q: Tensor, table: Tensor) -> Tensor:
    i = torch.arange(N)
    return S(q, q, q, heads_first(table[i][:, None] + table[i + 1][None]))


def dropped(q: Tensor, table: Tensor) -> Tensor:
    return S(q, q, q, F.dropout(heads_first(table[distance() + N]), 1.0))


def chosen(q: Tensor, table: Tensor) -> Tensor:
    bias = heads_first(table[distance() + N])
    return S(q, q, q, torch.where(bias > 0, bias, bias * 3))


def scaled_by(factor: float, low: float = LOW) -> Callable[[Tensor, Tensor], Tensor]:
    """A mask that hides no more: times 0 or less, or too little."""
    hidden = torch.full((N, N), low).triu(1)
    return lambda q, table: S(q, q, q, (heads_first(table[distance() + N]) + hidden) * factor)


LOOKALIKES = (written_between, index_written_between, other_axis, of_keys, of_queries_and_keys, dropped, chosen)
SCALED = (scaled_by(0.0), scaled_by(-1.0), scaled_by(1e-31, -1e31))


@pytest.mark.parametrize("function", (*LOOKALIKES, *SCALED))
def test_what_looks_alike_is_right(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    q, table = rows(), torch.randn(2 * N, H)
    wanted = function(q, table.clone())
    torch.testing.assert_close(run(function, q, table.clone(), kernel="flex"), wanted)


@pytest.mark.parametrize("low", (-40000.0, -65504.0))
def test_sums_that_leave_the_range_of_fp16(low: float) -> None:
    """-inf there, and a hidden row with it; no kernel that adds in fp32 would know."""

    def doubled(q: Tensor, one: Tensor, other: Tensor) -> Tensor:
        return S(q, q, q, one * 2.0 + other)

    q = rows(dtype=torch.float16)
    one, other = torch.zeros(1, 1, N, N, dtype=torch.float16), torch.zeros(N, N, dtype=torch.float16)
    one[..., 3, :], other[5] = low, low
    (found,) = understood(doubled, q, one, other)
    assert "in fp16" in found.call.mask.stop
    assert_near(run(doubled, q, one, other, kernel="flex"), doubled(q, one, other))


def test_an_index_on_another_device() -> None:
    """PyTorch takes it, as it takes any index on the CPU; a kernel could not read it."""

    def by_index(q: Tensor, table: Tensor) -> Tensor:
        return S(q, q, q, heads_first(table[INDEX]))

    q, table = rows(), torch.randn(2 * N, H)
    (found,) = understood(by_index, q, table)
    assert str(found.call.mask) == "bias"
    (found,) = understood(by_index, q.to("meta"), table.to("meta"))
    assert "not on meta" in found.call.mask.stop


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_tables(data: st.DataObject) -> None:
    """A table read at a random form of q and k, by a random way, against PyTorch."""
    a, b, c, low, high = (data.draw(st.integers(-3, 3)) for _ in range(5))
    step, way = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 3))
    i = torch.arange(N)

    def biased(q: Tensor, table: Tensor) -> Tensor:
        index = (a * i[:, None] + b * i + c).clamp(min(low, high) - 5, max(low, high) + 5)
        index = index if way == 0 else index % (2 * N) if way == 1 else index // step
        bias = table[index] if way < 3 else F.embedding(index % (2 * N), table)
        return S(q, q, q, heads_first(bias)[:, data_heads] * 0.5)

    data_heads = data.draw(st.sampled_from((slice(None), slice(0, 1), slice(3, None))))
    q, table = rows(), torch.nn.Parameter(torch.randn(2 * N, H))
    torch._dynamo.reset()
    with torch.no_grad():
        assert_near(run(biased, q, table, kernel="flex", dynamic=False), biased(q, table))
    assert decisions()[-1].call.mask.stop == ""
