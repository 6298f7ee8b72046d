"""A sum of two products of queries and keys: one product of longer heads (latent attention), or a bias as before."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.compiled import run
from tests.helpers.forms import Program, check, found

B, H, S, D, R = 2, 4, 6, 16, 8


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


HEADS, ROPE, SHARED = (B, H, S, D), (B, H, S, R), (B, 1, S, R)


def one_product(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return ((q @ k.mT + q2 @ k2.mT) * 0.1).softmax(-1) @ v


def rope_first(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    scores = q2 @ k2.mT
    scores += q @ k.mT
    hidden = torch.ones(S, S, dtype=torch.bool).triu(1)
    return (scores / math.sqrt(D + R)).masked_fill(hidden, -math.inf).softmax(-1) @ v


def scaled_apart(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return ((q * 0.5) @ k.mT * 0.5 - (q2 @ (k2 / 3.0).mT) * 0.7).softmax(-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    q, k, v, q2, k2 = (x.transpose(1, 2) for x in (q, k, v, q2, k2))
    scores = torch.einsum("bshd,bthd->bsht", q, k) + torch.einsum("bshr,btr->bsht", q2, k2[:, :, 0])
    return torch.einsum("bsht,bthd->bshd", (scores * 0.2).softmax(-1), v)


def folded(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    k2 = k2.expand(B, H, S, R)
    q, k, v, q2, k2 = (x.flatten(0, 1) for x in (q, k, v, q2, k2))
    scores = torch.bmm(q, k.mT) + torch.bmm(q2, k2.mT)
    return torch.bmm((scores * 0.2).softmax(-1), v).view(B, H, S, D)


def one_folded(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    first = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).view(B, H, S, S)
    return (first + q2 @ k2.mT).softmax(-1) @ v


def three(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return (q @ k.mT + q2 @ k2.mT + (q2 @ k2.mT) * 0.5).softmax(-1) @ v


def turned(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return (q @ k.mT + (k2 @ q2.mT).mT).softmax(-1) @ v


def capped_and_tempered(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return ((q @ k.mT + q2 @ k2.mT) * q2[:1, :, :1, :1].sigmoid()).softmax(-1) @ v


PROGRAMS: list[Program] = [one_product, rope_first, scaled_apart, einsum, folded, one_folded, three, turned]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("program", [*PROGRAMS, capped_and_tempered], ids=lambda program: program.__name__)
def test_two_products_are_one(program: Program, dtype: torch.dtype) -> None:
    report = found(program, *tensors(HEADS, HEADS, HEADS, ROPE, SHARED, dtype=dtype))
    (decision,) = report.decisions
    assert (D + 2 * R if program is three else D + R) == decision.call.D
    assert decision.call.mask.bias is None


def test_keys_of_each_head_beside_shared_ones() -> None:
    found(rope_first, *tensors((B, H, S, D), (B, 1, S, D), (B, 1, S, D), ROPE, ROPE))
    found(one_product, *tensors((B, H, S, D), (B, 1, S, D), (B, 1, S, D), ROPE, SHARED))


def test_absorbed_latent_attention() -> None:
    """The latent vector is key and value of all heads."""

    def program(q: Tensor, latent: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
        scores = torch.einsum("bshc,btc->bsht", q, latent) + torch.einsum("bshr,btr->bsht", q2, k2)
        return torch.einsum("bsht,btc->bshc", (scores * 0.1).softmax(-1), latent)

    report = found(program, *tensors((B, S, H, 32), (B, S, 32), (B, S, H, R), (B, S, R)))
    call = report.decisions[0].call
    assert (call.D, call.Dv, call.Hkv) == (32 + R, 32, 1)


def test_a_length_that_kernels_take() -> None:
    """Relative positions in three dimensions: zeros are added up to the next multiple of 8."""
    report = found(three, *tensors(HEADS, HEADS, HEADS, (B, H, S, 3), (B, 1, S, 3)))
    assert report.decisions[0].call.D == D + 2 * R


def test_queries_that_are_the_same_for_all() -> None:
    """Transformer-XL's content bias, u kT: its queries have no sequence."""

    def program(q: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
        return (q @ k.mT + u @ k.mT).softmax(-1) @ v

    found(program, *tensors(HEADS, HEADS, HEADS, (H, 1, D)))


def test_under_autocast() -> None:
    def program(*x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return one_product(*x).to(torch.bfloat16)

    given = [x.detach() for x in tensors(HEADS, HEADS, HEADS, ROPE, SHARED)]
    found(program, *given, kernel="native_flash")


def shared_by_two(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    bias = q2 @ k2.mT
    return (q @ k.mT + bias).softmax(-1) @ v + (k @ q.mT + bias).softmax(-1) @ v


def other_dimensions(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    """A relative position that differs over queries and keys both."""
    table = torch.randn(S, S, D, dtype=q.dtype)
    return (q @ k.mT + torch.einsum("bhqd,qkd->bhqk", q, table)).softmax(-1) @ v


def turned_the_wrong_way(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    """Queries meet the dimension of keys: what a kernel calls a bias."""
    return (q @ k.mT + q2 @ k2.mT + (q @ k.mT).mT.masked_fill(torch.eye(S) > 0, 0.0)).softmax(-1) @ v


def masked_before(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    hidden = torch.ones(S, S, dtype=torch.bool).triu(1)
    return ((q @ k.mT).masked_fill(hidden, -math.inf) + q2 @ k2.mT).softmax(-1) @ v


def tempered_before(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return (q @ k.mT * q2[:1, :, :1, :1].sigmoid() + q2 @ k2.mT).softmax(-1) @ v


def mixed_heads(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
    return (q @ k.mT + (q2 @ k2.mT).flip(1)).softmax(-1) @ v


BIASES: list[Program] = [other_dimensions, turned_the_wrong_way, masked_before, tempered_before, mixed_heads]


@pytest.mark.parametrize("program", BIASES, ids=lambda program: program.__name__)
def test_another_sum_is_right(program: Program) -> None:
    report = check(program, *tensors(HEADS, HEADS, HEADS, ROPE, SHARED))
    assert all(decision.call.D in (D, D + R) for decision in report.decisions)


def test_what_several_read_stays_a_bias() -> None:
    given = tensors(HEADS, HEADS, HEADS, ROPE, SHARED)
    report = check(shared_by_two, *given)
    assert [decision.call.D for decision in report.decisions] == [D, D]


def test_a_product_that_is_returned_stays() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
        more = q2 @ k2.mT
        return (q @ k.mT + more).softmax(-1) @ v, more

    given = tensors(HEADS, HEADS, HEADS, ROPE, SHARED)
    for mine, right in zip(run(program, *given, kernel="native_math"), program(*given), strict=True):
        torch.testing.assert_close(mine, right)


def test_keys_written_in_between() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, q2: Tensor, k2: Tensor) -> Tensor:
        k2 = k2 * 2
        scores = q @ k.mT + q2 @ k2.mT
        k2.zero_()
        return scores.softmax(-1) @ v

    given = [x.detach() for x in tensors(HEADS, HEADS, HEADS, ROPE, SHARED)]
    check(program, *given)
