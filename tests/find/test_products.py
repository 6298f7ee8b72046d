"""Products of queries and keys, and of weights and values, that are not written as matrix products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from tests.helpers.compiled import run
from tests.helpers.forms import Program, check, found, left

B, H, S, L, D = 2, 3, 5, 7, 16


def qkv(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(B, H, n, D, dtype=dtype, requires_grad=True) for n in (S, L, L)]


def one_head(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(n, D, dtype=dtype, requires_grad=True) for n in (S, L, L)]


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = ((q[..., :, None, :] * k[..., None, :, :]).sum(-1) * 0.25).softmax(-1)
    return (weights[..., None] * v[..., None, :, :]).sum(-2)


def summed_before(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k.unsqueeze(2) * q.unsqueeze(3)).sum(dim=4).softmax(-1) @ v


def summed_behind(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = F.dropout((q @ k.mT).softmax(-1), 0.1, False)
    return (v.unsqueeze(2) * weights.unsqueeze(-1)).sum(3)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("program", (summed, summed_before, summed_behind), ids=lambda program: program.__name__)
def test_products_that_are_summed_up(program: Program, dtype: torch.dtype) -> None:
    found(program, *qkv(dtype))


def inner(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.inner(q, k).softmax(-1) @ v


def tensordot(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.tensordot(q, k, dims=([1], [1])) * 0.25).softmax(-1)
    return torch.tensordot(weights, v, dims=([1], [0]))


def mm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.mm(torch.mm(q, k.t()).softmax(-1), v)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.linear(F.linear(q, k * 0.5).softmax(-1), (v * 1.0).T)


@pytest.mark.parametrize("program", (inner, tensordot, mm, linear), ids=lambda program: program.__name__)
def test_products_without_a_batch(program: Program) -> None:
    found(program, *one_head())


def test_a_linear_layer_of_a_batch() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (F.linear(q, k * 0.5).softmax(-1)) @ v

    found(program, torch.randn(B, S, D, requires_grad=True), *one_head()[1:])


def mean_in_place_of_sum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., :, None, :] * k[..., None, :, :]).mean(-1).softmax(-1) @ v


def distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (-(q[..., :, None, :] - k[..., None, :, :]).square().sum(-1)).softmax(-1) @ v


def three_factors(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., :, None, :] * k[..., None, :, :] * k[..., None, :, :]).sum(-1).softmax(-1) @ v


def over_the_wrong_dimension(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q[..., :, None, :] * k[..., None, :, :]).sum(-2).softmax(-1) @ v[..., :D, :].new_ones(B, H, D, D)


def products_read_twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    each = q[..., :, None, :] * k[..., None, :, :]
    return each.sum(-1).softmax(-1) @ v + each.mean()


def weights_over_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-2)
    return (weights[..., None] * v[..., None, :, :]).sum(-2)


PROGRAMS: list[Program] = [mean_in_place_of_sum, distances, three_factors, over_the_wrong_dimension]
PROGRAMS += [products_read_twice]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_another_sum_is_left_alone(program: Program) -> None:
    assert not [decision for decision in check(program, *qkv()).decisions if decision.rewritten]


def test_a_softmax_over_the_queries() -> None:
    left(weights_over_the_queries, "over the keys", *qkv())


def test_layers_are_no_products_of_queries_and_keys() -> None:
    """A router between two layers, as it is written and as `torch.mm`."""
    weights = torch.nn.Parameter(torch.randn(D, 8)), torch.nn.Parameter(torch.randn(8, D))

    def router(x: Tensor) -> Tensor:
        return F.linear(F.linear(x, weights[0].t()).softmax(-1), weights[1].t())

    def by_mm(x: Tensor) -> Tensor:
        return torch.mm(torch.mm(x, weights[0]).softmax(-1).square(), weights[1])

    for program in (router, by_mm):
        run(program, torch.randn(S, D), kernel="native_math")
        report = attnpass.last_report()
        assert not report.decisions
        assert not report.near_misses


def test_what_is_pooled_is_no_near_miss() -> None:
    """A weighted mean of tokens, and the loss of a classifier, have no second sequence."""

    def program(x: Tensor, w: Tensor, labels: Tensor) -> Tensor:
        pooled = ((x @ w).softmax(1) * x).sum(1)
        return -(labels * pooled.softmax(-1)).sum(-1)

    report = check(program, torch.randn(B, S, D), torch.randn(D, 1), torch.rand(B, D))
    assert not report.decisions
    assert not report.near_misses
