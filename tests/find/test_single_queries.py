"""One query, without a dimension of its own: pooling by attention, decoding, memories that are asked once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, einsum

from tests.helpers.forms import Program, found, left

B, H, S, D = 2, 4, 24, 16


def qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((B, H, D), (B, H, S, D), (B, H, S, D))]


def pooled(scores: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,bhnd->bhd", scores.softmax(-1), v)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled(einsum("bhd,bhnd->bhn", q, k) * 0.25, v)


def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled(einsum("bhd,bhnd->bhn", q, k).masked_fill(torch.arange(S) > 17, -math.inf), v)


def with_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.arange(H * S).view(H, S).sin().to(q.dtype)
    return pooled(einsum("bhd,bhnd->bhn", q, k) + bias, v)


def by_a_vector(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,bnd->bhd", einsum("d,bhnd->bhn", q[0, 0], k).softmax(-1), v[:, 0])


def multiplied(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (((k @ q[..., None]).squeeze(-1) * 0.25).softmax(-1)[:, :, None] @ v).squeeze(2)


def one_value(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,nd->bhd", einsum("bhd,bhnd->bhn", q, k).softmax(-1), v[0, 0])


PROGRAMS = (plain, padded, with_bias, by_a_vector, multiplied, one_value)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_query_without_a_dimension(program: Program, dtype: torch.dtype) -> None:
    report = found(program, *qkv(dtype))
    assert report.decisions[0].call.Sq == 1


def test_heads_that_share_their_keys_are_the_queries() -> None:
    def shared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return einsum("bhn,bnd->bhd", einsum("bhd,bnd->bhn", q, k[:, 0]).softmax(-1), v[:, 0])

    assert found(shared, *qkv()).decisions[0].call.Sq == H


def over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,bhnd->bhd", einsum("bhd,bhnd->bhn", q, k).softmax(1), v)


def of_the_keys_alone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled(einsum("bhnd,bhnd->bhn", k, v), v)


def each_key_by_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,bhnd->bhnd", einsum("bhd,bhnd->bhn", q, k).softmax(-1), v)


def summed_over_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return einsum("bhn,bhnd->bnd", einsum("bhd,bhnd->bhn", q, k).softmax(-1), v)


def values_for_each_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return pooled(einsum("bhd,nd->bhn", q, k[0, 0]), v)


NEAR = {
    over_heads: "the softmax does not run over the keys",
    of_the_keys_alone: "the softmax does not run over the keys",
    each_key_by_itself: "does not sum over the keys that the softmax runs over",
    summed_over_heads: "does not sum over the keys that the softmax runs over",
    values_for_each_query: "V differs along its rows",
}


@pytest.mark.parametrize("program", NEAR, ids=lambda program: program.__name__)
def test_look_alikes(program: Program) -> None:
    left(program, NEAR[program], *qkv())
