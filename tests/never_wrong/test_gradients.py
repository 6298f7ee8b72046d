"""Programs whose gradients a pass that reads names gets wrong; each stands for a kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.compiled import run
from tests.never_wrong.test_never_wrong import (
    INF,
    LOW,
    Model,
    S,
    by_hand,
    copy_made_contiguous,
    copy_of_a_cache,
    copy_with_repeated_heads,
    frozen_in_a_checkpoint,
    inputs,
    triangle,
)


def output_changed_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = by_hand(q, k, v)
    out += q
    return out


def numbers_written_beside_a_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.linspace(-1, 1, S)
    return (q @ k.mT + bias).masked_fill(~triangle().tril(-1), -1e30).softmax(-1) @ v


def numbers_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~triangle().tril(-1), LOW).softmax(-1) @ v


def numbers_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT + torch.zeros(S, S).masked_fill(~triangle().tril(-1), LOW)).softmax(-1) @ v


def projection_scaled_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return copy_made_contiguous(q, k, v)


def detached_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = (q.sum(-1, keepdim=True) * 2).detach()
    return (q @ k.mT + bias * k.detach().sum(-1)[:, :, None]).softmax(-1) @ v


def infinity_written_beside_a_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.linspace(-1, 1, S)
    return (q @ k.mT + bias).masked_fill(~triangle().tril(-1), INF).softmax(-1) @ v


def infinity_written_and_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.zeros(S).index_fill(0, torch.tensor([0, 1]), INF)
    return (q @ k.mT + bias).masked_fill(~triangle().tril(-1), INF).softmax(-1) @ v


def a_bias_learns_behind_infinity(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT).masked_fill(~triangle().tril(-1), INF)
    return (scores + q[..., :1] * v[..., 0][:, :, None]).softmax(-1) @ v


def operand_changed_behind(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k = k.flip(2)
    out = (q @ (k * 0.25).mT).softmax(-1) @ v
    k *= 2
    return out


def mask_changed_behind(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = (q.detach() > 0)[:, :1, :, :S]
    mask[..., 0] = True
    out = (q @ k.mT).masked_fill(~mask, LOW).softmax(-1) @ v
    mask.zero_()
    return out


def only_values_are_trained(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = q.detach() * 1, k.detach() * 1
    out = (q @ k.mT).softmax(-1) @ v
    q.zero_()
    k.zero_()
    return out


TRAINING: list[Model] = [
    *(output_changed_in_place, numbers_written_beside_a_bias, numbers_written, numbers_added),
    *(projection_scaled_in_place, copy_of_a_cache, copy_with_repeated_heads, detached_bias, frozen_in_a_checkpoint),
    *(infinity_written_beside_a_bias, infinity_written_and_added),
    a_bias_learns_behind_infinity,
    *(operand_changed_behind, mask_changed_behind, only_values_are_trained),
]


@pytest.mark.parametrize("kernel", ("native_math", "native_flash", "auto"))
@pytest.mark.parametrize("model", TRAINING, ids=lambda model: model.__name__)
def test_gradients(model: Model, kernel: str) -> None:
    ours, theirs = inputs(grad=True), inputs(grad=True)
    got, wanted = run(model, *ours, kernel=kernel), model(*theirs)
    for each in (got, wanted):
        each.square().sum().backward()
    torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours, theirs, strict=True):  # a gradient that is None to eager may be 0
        right = torch.zeros_like(other) if other.grad is None else other.grad
        mine = torch.zeros_like(one) if one.grad is None else one.grad
        torch.testing.assert_close(mine, right, equal_nan=True, rtol=1e-4, atol=1e-4)
