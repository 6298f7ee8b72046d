"""A proved mask that is read as a tensor is read once where batch elements or heads have the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule

from tests.helpers.compiled import assert_near, kernels_used, qkv, run

B, H, S, D = 2, 4, 48, 16
TABLE, PER_ITEM = torch.randn(2 * S, H), torch.randn(B, 2 * S, H)
PADDING = torch.arange(S) < torch.tensor([[S], [S // 2]])


def by_table(table: Tensor) -> Tensor:
    i = torch.arange(S)
    return table[i[:, None] - i + S].permute(2, 0, 1)[None]


def as_t5(table: Tensor, _: Tensor, padding: Tensor) -> Tensor:
    return by_table(table) + torch.zeros(padding.shape[0], 1, 1, S)


def padded(table: Tensor, _: Tensor, padding: Tensor) -> Tensor:
    return by_table(table) + torch.zeros(B, 1, 1, S).masked_fill(~padding[:, None, None], float("-inf"))


def of_each_item(_: Tensor, tables: Tensor, padding: Tensor) -> Tensor:
    return torch.cat([by_table(tables[b]) for b in range(B)])


def window(_: Tensor, __: Tensor, padding: Tensor) -> Tensor:
    return torch.ones(S, S, dtype=torch.bool).tril(3).expand(B, H, S, S)


Mask = Callable[[Tensor, Tensor, Tensor], Tensor]
SEEN: list[tuple[int, ...]] = []
MATH = torch.ops.aten._scaled_dot_product_attention_math.default


@torch._dynamo.register_backend
def spy(gm: GraphModule, _: Any) -> GraphModule:
    """Runs the graph as it is, and keeps the shapes of the masks that kernels read."""
    SEEN.extend(tuple(node.args[3].meta["example_value"].shape) for node in gm.graph.nodes if node.target == MATH)
    return gm


@pytest.mark.parametrize(
    ("mask", "read"),
    [(as_t5, (1, H)), (padded, (B, H)), (of_each_item, (B, H)), (window, (1, 1))],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
def test_what_a_kernel_reads(mask: Mask, read: tuple[int, int]) -> None:
    SEEN.clear()

    def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, tables: Tensor, padding: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask(table, tables, padding))

    operands = [*qkv(B, H, S, D, dtype=torch.float32), TABLE, PER_ITEM, PADDING]
    with torch.no_grad():
        got = run(attention, *operands, kernel="native_math", compiler=spy.__name__)
        assert kernels_used() == ["native_math"]
        assert_near(got, attention(*operands))
    assert [(*read, S, S)] == SEEN
