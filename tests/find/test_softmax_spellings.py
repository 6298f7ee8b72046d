"""Softmax written out: exponentials over their sum, before the product with V or behind it, and logarithms of it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass.ir.mask import EmptyRows
from tests.helpers.compiled import run
from tests.helpers.forms import Program, check, found, left

B, H, S, D = 2, 4, 6, 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def qkv(dtype: torch.dtype = torch.float32, grad: bool = True) -> list[Tensor]:
    return [torch.randn(B, H, S, D, dtype=dtype, requires_grad=grad) for _ in range(3)]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(D)


def causal() -> Tensor:
    return torch.ones(S, S, dtype=torch.bool).tril()


def over_its_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def detached_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k).masked_fill(~causal(), -math.inf)
    e = torch.exp(s - s.max(dim=-1, keepdim=True).values.detach())
    e = e / e.sum(dim=-1).unsqueeze(-1)
    return F.dropout(e, 0.5, False) @ v


def behind_the_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def behind_a_turned_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return torch.einsum("bhqk,bhkd->bqhd", e, v) / e.sum(-1).transpose(1, 2)[..., None]


def without_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = torch.exp(scores(q, k).masked_fill(~causal(), torch.finfo(q.dtype).min))
    return (e / e.sum(-1, keepdim=True)) @ v


def logarithm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.log_softmax(scores(q, k), dim=-1).exp() @ v


def logsumexp(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k).masked_fill(~causal(), -math.inf)
    return (s - torch.logsumexp(s, dim=-1, keepdim=True)).exp() @ v


def logsumexp_beside(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s - s.logsumexp(-1)[..., None]).exp() @ v


PROGRAMS: list[Program] = [over_its_sum, detached_maximum, behind_the_product, behind_a_turned_product]
PROGRAMS += [without_maximum, logarithm, logsumexp, logsumexp_beside]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_softmax_written_out(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype))


def test_in_fp32_with_casts_around_it() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = scores(q, k).to(torch.float32) if q.dtype != torch.float64 else scores(q, k)
        e = (s - s.amax(-1, keepdim=True)).exp()
        return (e / e.sum(-1, keepdim=True)).to(v.dtype) @ v

    found(program, *qkv(torch.bfloat16))


@pytest.mark.parametrize("program", (behind_the_product, over_its_sum), ids=lambda program: program.__name__)
def test_symbolic_lengths(program: Program) -> None:
    found(program, *qkv(), dynamic=True)


def rows_without_keys(way: str, fill: float) -> Program:
    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = scores(q, k).masked_fill(~causal().tril(-1), fill)  # the first query sees no key
        if way == "logarithm":
            return s.log_softmax(-1).exp() @ v
        if way == "logsumexp":
            return (s - s.logsumexp(-1, keepdim=True)).exp() @ v
        e = s.exp() if way == "bare" else (s - s.amax(-1, keepdim=True)).exp()
        return (e @ v) / e.sum(-1, keepdim=True) if way == "behind" else (e / e.sum(-1, keepdim=True)) @ v

    return program


@pytest.mark.parametrize("kernel", ("native_math", "flex"))
@pytest.mark.parametrize("fill", (-math.inf, -1e9))
@pytest.mark.parametrize("way", ("shifted", "behind", "bare", "logarithm", "logsumexp"))
def test_what_a_row_without_keys_gives(way: str, fill: float, kernel: str) -> None:
    program = rows_without_keys(way, fill)
    if way == "logsumexp" and fill > -math.inf:
        left(program, "a finite number may hide a row", *qkv())
        return
    for grad in (False, True) if kernel == "native_math" else (False,):
        report = found(program, *qkv(grad=grad), kernel=kernel)
    nan = fill == -math.inf or way == "bare"
    assert report.decisions[0].call.mask.empty is (EmptyRows.NAN if nan else EmptyRows.AVERAGE)


def zeroed_by_a_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The first query sees no key: 0 / 0, times 0."""
    keep = causal().tril(-1)
    e = scores(q, k).masked_fill(~keep, -1e9).exp()
    return (e / e.sum(-1, keepdim=True) * keep) @ v


def zeroed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keep = causal().tril(-1)
    e = scores(q, k).masked_fill(~keep, -1e9).exp()
    return (e / e.sum(-1, keepdim=True)).masked_fill(~keep, 0.0) @ v


def without_nan(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).masked_fill(~causal().tril(-1), -1e9).exp()
    return (e / e.sum(-1, keepdim=True)).nan_to_num(0.0) @ v


def zeroed_before_the_division(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    hidden = ~causal().tril(-1)
    s = scores(q, k).masked_fill(hidden, -math.inf)
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e.masked_fill(hidden, 0.0) @ v) / e.sum(-1, keepdim=True)


@pytest.mark.parametrize("program", (zeroed_by_a_product, zeroed, without_nan), ids=lambda each: each.__name__)
def test_zeros_behind_exponentials(program: Program) -> None:
    report = found(program, *qkv())
    nan = program is zeroed_by_a_product
    assert report.decisions[0].call.mask.empty is (EmptyRows.NAN if nan else EmptyRows.ZERO)


def test_zeros_before_the_division() -> None:
    left(zeroed_before_the_division, "before they are divided by their sum", *qkv())


def test_large_scores() -> None:
    """Where exponentials overflow, eager gives NaN in fp32 and numbers in fp64: a kernel gives these."""
    q, k, v = qkv(grad=False)
    q *= 60
    got, right = run(without_maximum, q, k, v, kernel="native_math"), without_maximum(*(x.double() for x in (q, k, v)))
    assert without_maximum(q, k, v).isnan().any()
    assert right.isfinite().all()
    torch.testing.assert_close(got.double(), right, rtol=1e-3, atol=1e-3)


def with_an_epsilon(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / (e.sum(-1, keepdim=True) + 1e-3)) @ v


def over_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.sum(-2, keepdim=True)) @ v


def other_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The sums of the first head's rows, by broadcasting the wrong way."""
    e = scores(q, k).exp()
    return (e @ v) / e.sum(-1)[:, :, None, :1]


def turned_sums(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k[:, :, :H]).exp()
    return (e[:, :, :H] @ v[:, :, :H]) / e[:, :, :H].sum(-1, keepdim=True)


def heads_for_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As many heads as queries: the sums of one stand beside the other."""
    e = scores(q[:, :, :H], k).exp()
    return (e @ v) / e.sum(-1).transpose(1, 2)[..., None]


def beside_the_wrong_dimension(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e / e.sum(-1).unsqueeze(-2)) @ v


def another_maximum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = (s - s.amax(-2, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def never_divided(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e @ v) * 0.5 + e.sum(-1, keepdim=True)


def dropped_before_the_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = F.dropout(scores(q, k).exp(), 1e-9)
    return (e / e.sum(-1, keepdim=True)) @ v


def sums_read_elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    total = e.sum(-1, keepdim=True)
    return (e / total) @ v + total.mean()


def base_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp2()
    return (e / e.sum(-1, keepdim=True)) @ v


def another_logarithm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    return (s - (s * 2).logsumexp(-1, keepdim=True)).exp() @ v


def hidden_by_any_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = (scores(q, k) + (v[..., 0] * 0 + 1).log()[:, :, None]).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


LOOK_ALIKES: dict[Program, str] = {
    with_an_epsilon: "by something other than their sum",
    over_the_queries: "does not sum over the keys",
    other_rows: "other than the sum",
    heads_for_rows: "divides by the sums of other rows",
    another_maximum: "`amax` reads the attention scores",
    dropped_before_the_sum: "exp, normalised by hand",
    sums_read_elsewhere: "`mean` reads the attention",
    another_logarithm: "exp, normalised by hand",
    hidden_by_any_bias: "a bias may hide a row",
    beside_the_wrong_dimension: "by something other than their sum",
    never_divided: "only a division by their sum",
}


@pytest.mark.parametrize("program", LOOK_ALIKES, ids=lambda program: program.__name__)
def test_a_look_alike_is_left_alone(program: Program) -> None:
    left(program, LOOK_ALIKES[program], *qkv())


@pytest.mark.parametrize("program", (turned_sums, base_two), ids=lambda program: program.__name__)
def test_another_program_is_right(program: Program) -> None:
    check(program, *qkv())
