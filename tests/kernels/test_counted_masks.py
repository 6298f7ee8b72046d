"""FlexAttention and mask tensors of which nothing is known: their blocks are counted, and full ones are not read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

import attnpass
from tests.helpers.compiled import assert_near, decisions, kernels_used, qkv, run

S = 512  # four blocks of 128
PLACE = torch.arange(S)
CAUSAL = PLACE[:, None] >= PLACE
MASKS: dict[str, tuple[Tensor, list[int], list[int]]] = {  # the mask; partial and full blocks of each row of blocks
    "causal": (CAUSAL, [1, 1, 1, 1], [0, 1, 2, 3]),
    "window": (CAUSAL & (PLACE[:, None] - PLACE < 128), [1, 2, 2, 2], [0, 0, 0, 0]),
    "documents": (PLACE[:, None] // 256 == PLACE // 256, [0, 0, 0, 0], [2, 2, 2, 2]),
    "padding": ((PLACE < 300).expand(S, S), [1, 1, 1, 1], [2, 2, 2, 2]),
    "nothing hidden": (torch.ones(S, S, dtype=torch.bool), [0, 0, 0, 0], [4, 4, 4, 4]),
    "one key each": (PLACE[:, None] == PLACE, [1, 1, 1, 1], [0, 0, 0, 0]),
    "rows without keys": (CAUSAL & (PLACE >= 200)[:, None], [0, 2, 1, 1], [0, 0, 2, 3]),
}


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def block_counts(module: GraphModule, *inputs: Tensor) -> list[list[int]]:
    """How many blocks are partial and how many full, in each row of blocks, as the rewritten graph computes it."""
    (call,) = (n for n in module.graph.nodes if n.target is torch.ops.higher_order.flex_attention)
    partial, _, full, _ = call.args[4][2:6]  # behind the lengths: how many and which, partial and full
    found: dict[Node, Tensor] = {}

    class Kept(Interpreter):
        def run_node(self, n: Node) -> Any:
            if n is call:
                raise StopIteration
            found[n] = super().run_node(n)
            return found[n]

    with pytest.raises(StopIteration):
        Kept(module).run(*inputs)
    return [found[entry][0, 0].tolist() for entry in (partial, full)]


@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_those_of_the_mask(name: str) -> None:
    mask, partial, full = MASKS[name]
    inputs = (*qkv(B=1, H=2, Hkv=2, Sq=S, Sk=S), mask)

    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return attend(q, k, v, mask)

    exported = torch.export.export(Model(), inputs)
    module, report = attnpass.rewrite(exported, options={"attnpass.kernel": "flex"})
    assert report.rewritten == 1
    assert block_counts(module, *inputs) == [partial, full]


@pytest.mark.parametrize("shape", ((S, S), (1, 1, S, S), (2, 1, S, S), (1, 4, S, S), (2, 4, S, S)), ids=str)
def test_masks_of_every_shape(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) > 0.3
    mask[..., 256:, :100] = False
    mask[..., 5, :] = False
    operands = (*qkv(Sq=S, Sk=S), mask)
    assert_near(run(attend, *operands, kernel="flex"), attend(*operands))
    assert kernels_used() == ["flex"]


def test_layers_that_share_a_mask_share_its_blocks() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(attend(q, k, v, mask), k, v, mask)

    run(model, *qkv(Sq=S, Sk=S), CAUSAL, kernel="flex", options={"attnpass.log": "debug"})
    code = attnpass.reports()[-1].code_after
    assert len(decisions()) == 2 and code.count("higher_order.flex_attention(") == 2
    assert code.count("fixed_layouts.default(") == 1  # the lists


def test_layers_compiled_one_by_one() -> None:
    """Regional compilation: to each layer the mask is an input."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def layer(project: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return x + attend(project(x), x, x, mask)

    compiled = torch.compile(
        layer, backend="attnpass", options={"attnpass.kernel": "flex", "attnpass.compiler": "aot_eager"}
    )
    x = torch.randn(2, 4, S, 16)
    mask = (CAUSAL & (PLACE < 400))[None, None]
    with torch.no_grad():
        got = expected = x
        for project in layers:
            got, expected = compiled(project, got, mask), layer(project, expected, mask)
    assert_near(got, expected)
    assert set(kernels_used()) == {"flex"}


def test_symbolic_sizes() -> None:
    """One compilation for every batch and length, also those that are no multiple of a block."""
    compiled = torch.compile(
        attend, backend="attnpass", options={"attnpass.kernel": "flex", "attnpass.compiler": "aot_eager"}
    )
    for B, length in ((2, 300), (3, 257), (2, 128), (4, 511)):
        operands = (*qkv(B=B, Sq=length, Sk=length, Hkv=4), torch.rand(B, 1, length, length) > 0.4)
        for x in operands:
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(x, 2)
        torch._dynamo.mark_dynamic(operands[3], 3)
        with torch.no_grad():
            assert_near(compiled(*operands), attend(*operands))
    assert kernels_used() == ["flex"]
