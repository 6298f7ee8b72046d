"""What masks are proved to mean: the spellings of real models, and their near misses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnpass.index.expr import Expr, K, NonNeg, Q, linear
from attnpass.index.logic import all_of, any_of, loads_of
from tests.helpers.compiled import decisions, run
from tests.helpers.masks_read import understood

S = F.scaled_dot_product_attention
LOW = torch.finfo(torch.float32).min
Maker = Callable[[int, int], Tensor]


def positions(n: int, k: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n)[:, None], torch.arange(k)[None, :]


def counted(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.long).cumsum(0) - 1


def mapped(n: int, k: int) -> Tensor:
    inner = torch.vmap(lambda q, k: q >= k, in_dims=(None, 0))
    return torch.vmap(inner, in_dims=(0, None))(torch.arange(n), torch.arange(k))


def in_place(n: int, k: int) -> Tensor:
    mask = torch.zeros(n, k)
    mask.masked_fill_(torch.ones(n, k, dtype=torch.bool).tril().logical_not(), float("-inf"))
    return mask


def assigned(n: int, k: int) -> Tensor:
    mask = torch.full((n, k), LOW)
    mask = torch.triu(mask, diagonal=1)
    whole = torch.zeros(2, 1, n, k)
    whole[:, :, :, :k] = mask
    return whole


CAUSAL: dict[str, Maker] = {
    "arange": lambda n, k: positions(n, k)[1] <= positions(n, k)[0],
    "the other way round": lambda n, k: ~(positions(n, k)[1] > positions(n, k)[0]),
    "tril": lambda n, k: torch.ones(n, k, dtype=torch.bool).tril(),
    "tril of floats": lambda n, k: torch.tril(torch.ones(n, k)) == 1,
    "tril, masked_fill": lambda n, k: torch.zeros(n, k).masked_fill(torch.tril(torch.ones(n, k)) == 0, float("-inf")),
    "triu of -inf": lambda n, k: torch.triu(torch.full((n, k), float("-inf")), diagonal=1),
    "inverted times finfo.min": lambda n, k: (1.0 - torch.ones(n, k).tril()) * torch.finfo(torch.float32).min,
    "where": lambda n, k: torch.where(torch.ones(n, k, dtype=torch.bool).tril(), 0.0, LOW),
    "vmap": mapped,
    "in place": in_place,
    "assigned to a slice": assigned,
    "cumsum positions": lambda n, k: (
        (torch.ones(k, dtype=torch.long).cumsum(0) - 1)[None]
        <= (torch.ones(n, dtype=torch.long).cumsum(0) - 1)[:, None]
    ),
    "distance": lambda n, k: (positions(n, k)[0] - positions(n, k)[1]) >= 0,
    "T of the other triangle": lambda n, k: torch.ones(k, n, dtype=torch.bool).triu().T,
    "mT": lambda n, k: torch.ones(1, k, n, dtype=torch.bool).triu().mT,
    "T, as PyTorch 2.14 traces it": lambda n, k: torch.ops.aten.numpy_T(torch.ones(k, n, dtype=torch.bool).triu()),
    "mT, as PyTorch 2.14 traces it": lambda n, k: torch.ops.aten.mT(torch.ones(1, k, n, dtype=torch.bool).triu()),
    "PyTorch's own": lambda n, k: nn.Transformer.generate_square_subsequent_mask(n),
}
OTHERS: dict[str, tuple[Maker, str]] = {
    "window": (lambda n, k: _near(n, k, 8), "causal & window(7)"),
    "both sides": (lambda n, k: (positions(n, k)[0] - positions(n, k)[1]).abs() < 4, "window(3, 3)"),
    "strictly below": (lambda n, k: positions(n, k)[1] < positions(n, k)[0], "causal(-1)"),
    "one too many": (lambda n, k: torch.ones(n, k, dtype=torch.bool).tril(1), "causal(1)"),
    "transposed": (lambda n, k: torch.ones(n, k, dtype=torch.bool).triu(), "window(0)"),
    "chunks": (lambda n, k: _chunks(n, k), "causal & same_segment"),
    "prefix": (lambda n, k: (positions(n, k)[1] <= positions(n, k)[0]) | (positions(n, k)[1] < 5), "function"),
    "all": (lambda n, k: torch.ones(n, k, dtype=torch.bool), "none"),
    "a window that holds everything": (lambda n, k: _near(n, k, 1000), "causal"),
}


def _near(n: int, k: int, width: int) -> Tensor:
    q, keys = positions(n, k)
    return (keys <= q) & (q - keys < width)


def _chunks(n: int, k: int) -> Tensor:
    q, keys = positions(n, k)
    return (keys <= q) & (q // 8 == keys // 8)


def masks_of(make: Maker, Sq: int = 24, Sk: int = 24, dynamic: bool = False) -> str:
    q, k = torch.randn(2, 3, Sq, 16), torch.randn(2, 3, Sk, 16)
    (found,) = understood(lambda q, k: S(q, k, k, make(q.shape[2], k.shape[2])), q, k, dynamic=dynamic)
    return str(found.call.mask)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("dynamic", (False, True), ids=("static", "dynamic"))
def test_every_spelling_of_causal_is_causal(name: str, dynamic: bool) -> None:
    assert masks_of(CAUSAL[name], dynamic=dynamic) == "causal"


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_causal_is_called_what_it_is(name: str) -> None:
    make, wanted = OTHERS[name]
    assert masks_of(make) == wanted


@pytest.mark.parametrize("name", CAUSAL)
def test_one_bit_more_is_another_mask(name: str) -> None:
    """The same mask with a single element changed is never taken for it, and comes out right."""

    def changed(n: int, k: int) -> Tensor:
        mask = CAUSAL[name](n, k).clone()
        mask[..., 3:4, 7:8] = 0.0 if mask.is_floating_point() else True
        return mask

    assert masks_of(changed) not in ("causal", "none")
    q = torch.randn(2, 3, 24, 32)
    out = run(lambda q: S(q, q, q, changed(24, 24)), q)
    torch.testing.assert_close(out, S(q, q, q, changed(24, 24)))


@pytest.mark.parametrize("offset", (0, 8))
def test_queries_behind_a_cache_are_bottom_right(offset: int) -> None:
    def cached(q: Tensor, k: Tensor) -> Tensor:
        rows = torch.arange(q.shape[2]) + offset
        return S(q, k, k, torch.arange(k.shape[2])[None] <= rows[:, None])

    q, k = torch.randn(1, 2, 24 - offset, 32), torch.randn(1, 2, 24, 32)
    (found,) = understood(cached, q, k)
    assert str(found.call.mask) == ("causal" if offset == 0 else f"causal({offset})")
    assert not found.call.mask.rows_may_be_empty
    torch.testing.assert_close(run(cached, q, k, kernel="flex"), cached(q, k))


def test_one_query_behind_a_cache_sees_everything() -> None:
    q, k = torch.randn(1, 2, 1, 16), torch.randn(1, 2, 24, 16)
    assert masks_of(lambda n, m: torch.arange(m)[None] <= torch.arange(n)[:, None] + 23, 1, 24) == "none"
    assert masks_of(lambda n, m: torch.arange(m)[None] <= torch.arange(n)[:, None] + 22, 1, 24) != "none"
    assert q.shape[3] == k.shape[3]


def padded(q: Tensor, padding: Tensor) -> Tensor:
    n = q.shape[2]
    causal = torch.arange(n)[None] <= torch.arange(n)[:, None]
    return S(q, q, q, causal & padding.bool()[:, None, None, :])


def test_padding_is_a_term_and_rows_may_be_empty() -> None:
    padding = torch.ones(2, 24, dtype=torch.long)
    padding[0, :6] = 0
    (found,) = understood(padded, torch.randn(2, 3, 24, 32), padding)
    assert str(found.call.mask) == "causal & key_padding"
    assert found.call.mask.rows_may_be_empty
    assert found.call.mask.meaning == "k <= q and not (l_padding_[b, k] == 0)"


@pytest.mark.parametrize("low", (float("-inf"), LOW))
def test_flex_keeps_what_a_row_without_keys_gives(low: float) -> None:
    """0 behind -inf, an average of all values behind a large finite number, as SDPA has it."""

    def fn(q: Tensor, padding: Tensor) -> Tensor:
        n = q.shape[2]
        causal = torch.arange(n)[None] <= torch.arange(n)[:, None]
        return S(q, q, q, torch.where(causal & padding[:, None, None], 0.0, low))

    padding = torch.ones(2, 24, dtype=torch.bool)
    padding[0, :6] = False
    q = torch.randn(2, 3, 24, 32)
    out = run(fn, q, padding, kernel="flex")
    torch.testing.assert_close(out, fn(q, padding))
    (decision,) = decisions()
    assert (decision.kernel, str(decision.call.mask)) == ("flex", "causal & key_padding")


def test_documents_are_segments() -> None:
    def packed(q: Tensor, ids: Tensor) -> Tensor:
        n = q.shape[2]
        causal = torch.arange(n)[None] <= torch.arange(n)[:, None]
        return S(q, q, q, causal & (ids[:, None, :, None] == ids[:, None, None, :]))

    ids = torch.arange(24).expand(2, -1) // 7
    (found,) = understood(packed, torch.randn(2, 3, 24, 32), ids)
    assert str(found.call.mask) == "causal & same_segment"
    assert not found.call.mask.rows_may_be_empty  # every query is in its own segment


def test_a_bias_is_told_from_a_mask() -> None:
    def biased(q: Tensor, bias: Tensor) -> Tensor:
        n = q.shape[2]
        causal = torch.arange(n)[None] <= torch.arange(n)[:, None]
        return S(q, q, q, bias + torch.where(causal, 0.0, LOW))

    q, bias = torch.randn(2, 3, 24, 32), torch.randn(1, 3, 24, 24)
    (found,) = understood(biased, q, bias)
    assert str(found.call.mask) == "tensor"
    assert "beside a bias that may be as low" in found.call.mask.stop
    bias[..., :2] = LOW  # then the first two rows see all keys alike
    torch.testing.assert_close(run(biased, q, bias, kernel="flex"), biased(q, bias))
    learned = torch.nn.Parameter(torch.randn(1, 3, 24, 24))
    (found,) = understood(lambda q: biased(q, learned), q)
    assert str(found.call.mask) == "causal & bias"
    with torch.no_grad():
        torch.testing.assert_close(run(lambda q: biased(q, learned), q, kernel="flex"), biased(q, learned))


def test_a_number_that_hides_only_in_part_is_a_bias() -> None:
    assert masks_of(lambda n, k: torch.zeros(n, k).masked_fill(~CAUSAL["tril"](n, k), -1e4)) == "bias"


def test_the_node_that_stopped_the_proof_is_named() -> None:
    def fn(q: Tensor, x: Tensor) -> Tensor:
        strange = torch.sin(x)
        return S(q, q, q, strange[:, None] > 0)

    (found,) = understood(fn, torch.randn(2, 3, 8, 16), torch.randn(2, 8, 8))
    stop = found.call.mask.stop
    assert "sin has no meaning here" in stop and "test_masks.py" in stop and str(found.call.mask) == "tensor"


def test_what_may_be_nan_does_not_equal_itself() -> None:
    """Neither as it is read, nor chosen between: ``x == x`` is how programs ask for NaN."""
    from attnpass.index.bounds import Bounds
    from attnpass.index.expr import TRUE, Apply, Float, K, Load, Where, axis, number, plus
    from attnpass.index.logic import is_positive
    from attnpass.index.simplify import simplified

    node = torch.fx.Graph().placeholder("x")
    read = Load(node, (axis(K),), torch.float32)
    behind_three = is_positive(plus(axis(K), number(-3)))
    either = Where(behind_three, read, Float(0.0, torch.float32))
    for value in (read, either):
        assert simplified(Apply("eq", (value, value), torch.bool), Bounds()) != TRUE
    count = Load(node, (axis(K),), torch.int64)
    assert simplified(Apply("eq", (count, count), torch.bool), Bounds()) == TRUE


def test_a_mask_that_is_nested_deeply_is_written_once() -> None:
    """Not twice at each level: that would take 2 ** 60 times."""
    mask: Expr = NonNeg(linear({Q: 1, K: -1}))
    for bound in range(1, 61):
        mask = any_of([all_of([mask, NonNeg(linear({K: -1}, bound))]), NonNeg(linear({Q: -1}, bound))])
    assert str(mask).count(" or ") == 60
    assert loads_of(mask) == []
