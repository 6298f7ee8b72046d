"""Masks read at other places: stepped slices, rows and columns that an input names, indices that count from the end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.compiled import decisions, run
from tests.helpers.masks_read import understood

S = F.scaled_dot_product_attention
N = 12
Maker = Callable[..., Tensor]
POSITIONS = torch.tensor([3, 0, 11, -1, -12, 5, 5, 7, -4, 2, 9, 6])  # some count from the end
Q = torch.randn(2, 3, N, 16)


def ones(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def every_second(n: int = N, k: int = N) -> Tensor:
    mask = torch.zeros(n, k, dtype=torch.bool)
    mask[:, ::2] = True
    return mask


def stepped(n: int = N, k: int = N) -> Tensor:
    mask = ones(n, k).tril()
    mask[1:-2:3, -9::4] = True
    mask[:, 1] = True
    return mask


def nested(n: int = N, k: int = N) -> Tensor:
    mask = ones(n, k).tril()
    mask[::2][1::2, 1::3] = False
    mask[:, 0] = True
    return mask


def beside(pos: Tensor) -> Tensor:
    """Rows of a tensor that was put together and turned around."""
    return torch.cat([ones(N, 4).tril(), ones(N, 6).triu(-1)], dim=1).flip(0)[pos]


def padded(pos: Tensor) -> Tensor:
    return F.pad(ones(N - 3, N).tril(), (0, 0, 3, 0), value=True)[pos]


def numbered(pos: Tensor) -> Tensor:
    return torch.arange(N)[None] <= torch.arange(N)[pos][:, None]


SLICED: dict[str, tuple[Maker, str]] = {
    "every second key": (every_second, "function"),
    "every second query": (lambda: every_second().mT | torch.eye(N, dtype=torch.bool), "function"),
    "steps from the end": (stepped, "function"),
    "steps of steps": (nested, "function"),
    "every second of a triangle": (lambda: ones(N, 2 * N).tril()[:, ::2], "function"),
    "of a triangle twice as large": (lambda: ones(2 * N, 2 * N).tril()[::2, ::2], "causal"),
    "a start before the first": (lambda: ones(N, N).tril()[-100:, -50:], "causal"),
    "eye": (lambda: torch.eye(N, dtype=torch.bool), "function"),
    "eye and a row": (lambda: torch.eye(N).bool() | (torch.arange(N) == 0), "function"),
    "clamped": (lambda: (torch.arange(N)[:, None] - torch.arange(N)).clamp(-2, 2).abs() < 2, "window(1, 1)"),
}
ROWS: dict[str, tuple[Maker, str]] = {
    "rows of a triangle": (lambda pos: ones(N, N).tril()[pos], "function"),
    "rows behind other dims": (lambda pos: ones(2 * N, 2 * N).tril()[None, None, pos][..., :N], "function"),
    "columns": (lambda pos: ones(N, N).triu()[:, pos] | ones(N, N).tril(), "function"),
    "rows in int32": (lambda pos: ones(N, N).tril()[pos.int()], "function"),
    "index_select": (lambda pos: ones(N, N).tril().index_select(0, pos % N), "function"),
    "gather": (lambda pos: ones(N, N).tril().gather(0, (pos % N)[:, None].expand(N, N)), "function"),
    "rows of what was put together": (lambda pos: torch.cat([beside(pos), ones(N, 2)], 1), "function"),
    "rows of what was padded": (padded, "function"),
    "rows of what was rolled": (lambda pos: ones(N, N).tril().roll(2, 0)[pos] | (torch.arange(N) == 0), "function"),
    "numbers of rows": (numbered, "function"),
    "rows of eye": (lambda pos: torch.eye(N).bool()[pos], "function"),
    "every second row": (lambda pos: ones(2 * N, N).tril()[::2][pos], "function"),
    "a repeated triangle": (lambda pos: ones(4, N).tril(1).repeat(3, 1)[pos], "function"),
}


def attend(make: Maker) -> Maker:
    return lambda q, *rest: S(q, q, q, make(*rest))


@pytest.mark.parametrize("name", (*SLICED, *ROWS))
def test_what_is_read_elsewhere_is_proved_and_right(name: str) -> None:
    make, wanted = {**SLICED, **ROWS}[name]
    given_ = (Q, POSITIONS) if name in ROWS else (Q,)
    (found,) = understood(attend(make), *given_)
    assert str(found.call.mask) == wanted, found.call.mask.stop
    got = run(attend(make), *given_, kernel="flex")
    torch.testing.assert_close(got, attend(make)(*given_))
    (decision,) = decisions()
    assert decision.kernel == "flex"


@pytest.mark.slow
@pytest.mark.parametrize("name", ("rows of a triangle", "rows behind other dims", "numbers of rows"))
def test_in_inductors_code(name: str) -> None:
    function = attend(ROWS[name][0])
    torch.testing.assert_close(run(function, Q, POSITIONS, kernel="flex", compiler="inductor"), function(Q, POSITIONS))


@pytest.mark.parametrize("kernel", ("flex", "native_flash", "native_math"))
def test_every_second_key(kernel: str) -> None:
    torch.testing.assert_close(run(attend(every_second), Q, kernel=kernel), attend(every_second)(Q))


def test_sizes_that_are_symbols() -> None:
    def fn(q: Tensor, k: Tensor) -> Tensor:
        mask = torch.zeros(q.shape[2], k.shape[2], dtype=torch.bool)
        mask[:, ::2] = True
        return S(q, k, k, mask)

    def from_a_symbol(q: Tensor, k: Tensor) -> Tensor:
        mask = ones(q.shape[2], k.shape[2]).tril()
        mask[:, q.shape[2] - k.shape[2] :: 2] = True
        return S(q, k, k, mask)

    for function in (fn, from_a_symbol):
        torch._dynamo.reset()
        for n in (20, 9, 16, 1):
            q, k = torch.randn(1, 2, 16, 32), torch.randn(1, 2, n, 32)
            torch.testing.assert_close(run(function, q, k, kernel="flex", dynamic=True), function(q, k))
    (found,) = understood(fn, torch.randn(1, 2, 16, 32), torch.randn(1, 2, 20, 32), dynamic=True)
    assert str(found.call.mask) == "function", found.call.mask.stop


class Cached(nn.Module):
    """GPT-fast: the mask is a buffer, and each step names the rows that it wants."""

    causal: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", ones(N, N).tril())

    def forward(self, q: Tensor, k: Tensor, pos: Tensor) -> Tensor:
        return S(q, k, k, self.causal[None, None, pos])


def test_rows_of_a_buffer() -> None:
    model, k = Cached(), torch.randn(2, 3, N, 16)
    options = {"attnpass.kernel": "flex", "attnpass.compiler": "eager"}
    compiled = torch.compile(model, backend="attnpass", options=options)
    for pos in (torch.tensor([4, 0]), torch.tensor([-1, 3]), torch.tensor([0, 11])):
        q = torch.randn(2, 3, 2, 16)
        torch.testing.assert_close(compiled(q, k, pos), model(q, k, pos))
    masks = {str(decision.call.mask) for decision in decisions()}
    assert masks == {"function"}, masks
    model.causal.fill_(True)  # another mask: the buffer is not trusted any more
    torch.testing.assert_close(compiled(q, k, pos), model(q, k, pos))


def written_between(q: Tensor, pos: Tensor) -> Tensor:
    mask = ones(N, N).tril()[pos]
    pos.fill_(0)
    return S(q, q, q, mask)


def by_truth(q: Tensor, pos: Tensor) -> Tensor:
    return S(q, q, q, ones(2 * N, N).tril()[(pos > -100).repeat(2) & (torch.arange(2 * N) % 2 == 0)])


def two_inputs(q: Tensor, pos: Tensor) -> Tensor:
    return S(q, q, q, ones(N, N).tril()[pos][:, pos] | torch.eye(N).bool())


def in_front(q: Tensor, pos: Tensor) -> Tensor:
    """Arrays that are no neighbours: their dimensions come in front."""
    mask = ones(N, 1, N).tril().expand(N, 3, N)[pos[:, None], :, torch.arange(N)]
    return S(q, q, q, mask.permute(2, 0, 1))


@pytest.mark.parametrize("function", (written_between, by_truth, two_inputs, in_front))
def test_what_looks_alike_is_right(function: Maker) -> None:
    wanted = function(Q, POSITIONS.clone())
    torch.testing.assert_close(run(function, Q, POSITIONS.clone(), kernel="flex"), wanted)


def test_an_index_outside_is_no_less_an_error_where_pytorch_says_so() -> None:
    """What raises is not what kernels compute: the program is broken before and after."""
    with pytest.raises((IndexError, RuntimeError)):
        S(Q, Q, Q, ones(N, N).tril()[POSITIONS + 30])


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_slices_and_rows(data: st.DataObject) -> None:
    """A triangle that is sliced, written to and read by rows, at random, against PyTorch."""
    numbers = st.integers(-N - 2, N + 2)
    pieces = [slice(data.draw(numbers), None, data.draw(st.integers(1, 4))) for _ in range(4)]
    rows = torch.tensor(data.draw(st.lists(st.integers(-N, N - 1), min_size=N, max_size=N)))
    value, low = data.draw(st.booleans()), data.draw(st.integers(-3, 3))

    def masked(q: Tensor, rows: Tensor) -> Tensor:
        mask = ones(N, N).tril(low)
        mask[pieces[0], pieces[1]] = value
        mask[pieces[2]][:, pieces[3]] = not value
        return S(q, q, q, mask[rows])

    torch._dynamo.reset()
    got = run(masked, Q, rows, kernel="flex", dynamic=False)
    torch.testing.assert_close(got, masked(Q, rows))
    assert decisions()[-1].call.mask.stop == ""
