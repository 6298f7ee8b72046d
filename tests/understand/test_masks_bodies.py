"""Masks that are handed into the bodies of higher-order ops: read through, if every place that runs a body agrees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.compiled import kernels_used, run
from tests.helpers.masks_read import understood

Q = torch.randn(2, 3, 24, 16)
Model = Callable[[Tensor], Tensor]


@torch.compiler.nested_compile_region
def layer(q: Tensor, mask: Tensor) -> Tensor:
    return q + F.scaled_dot_product_attention(q, q, q, mask)


def causal(offset: int = 0) -> Tensor:
    place = torch.arange(24)
    return place[None] <= place[:, None] + offset


def one_mask(q: Tensor) -> Tensor:
    mask = causal()
    for _ in range(3):
        q = layer(q, mask)
    return q


def two_masks(q: Tensor) -> Tensor:
    return layer(layer(q, causal()), causal(2))


def changed_in_between(q: Tensor) -> Tensor:
    mask = causal()
    q = layer(q, mask)
    mask.logical_not_()
    return layer(q, mask)


def in_a_branch(q: Tensor) -> Tensor:
    result: Tensor = torch.cond(q.sum() > 0, layer_of, lambda q, mask: q - 1, (q, causal()))
    return result


def layer_of(q: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, q, q, mask)


@pytest.mark.parametrize(
    ("model", "meanings"),
    [
        (one_mask, ["causal"]),  # Dynamo keeps one body for the three layers
        (two_masks, ["tensor"]),
        (changed_in_between, ["tensor"]),
        (in_a_branch, ["causal"]),
    ],
)
def test_what_is_handed_into_a_body(model: Model, meanings: list[str]) -> None:
    found: list[Any] = understood(model, Q)
    assert [str(each.call.mask) for each in found] == meanings
    with torch.no_grad():
        out = run(model, Q, kernel="native_flash")
        assert kernels_used() == ["native_flash"] * len(meanings)
        torch.testing.assert_close(out, model(Q))
