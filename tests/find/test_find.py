"""find: every spelling of SDPA becomes a call with its place; what looks like attention is a near miss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnpass
from tests.helpers.compiled import NOT_ON_2_9, decisions, kernels_used, run

S = F.scaled_dot_product_attention
ATEN = torch.ops.aten.scaled_dot_product_attention

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "positional": lambda q: S(q, q, q, None, 0.0, True),
    "keywords": lambda q: S(query=q, key=q, value=q, is_causal=True),
    "mixed": lambda q: S(q, q, value=q, is_causal=True),
    "torch._C._nn": lambda q: torch._C._nn.scaled_dot_product_attention(q, q, q, is_causal=True),
    "aten packet": lambda q: ATEN(q, q, q, None, 0.0, True),
    "aten overload": lambda q: ATEN.default(q, q, q, is_causal=True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kernel", ("native_flash", "native_math"))
def test_each_spelling_is_found_and_right(spelling: str, kernel: str) -> None:
    q = torch.randn(2, 3, 12, 16)
    out = run(SPELLINGS[spelling], q, kernel=kernel, fullgraph=True)
    torch.testing.assert_close(out, S(q, q, q, is_causal=True))
    (decision,) = decisions()
    assert decision.kernel == kernel
    assert str(decision.call.mask) == "causal"
    assert str(decision.call.source).endswith(f"{__file__.rsplit('/', 1)[-1]}:{decision.call.source.line}")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q = self.proj(x)
        return S(q, q, q)


def test_module_path_and_source_line() -> None:
    model = nn.Sequential(Block(), nn.Sequential(Block()))
    run(model, torch.randn(1, 2, 8, 16))
    assert [d.call.module for d in decisions()] == ["0", "1.0"]
    assert all(d.call.source.function == "forward" for d in decisions())


def test_module_path_where_a_model_has_a_getattr_of_its_own() -> None:
    """As diffusers' models do: Dynamo then names children by ``__dict__['_modules']``."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])

        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name)

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](x))

    run(Model(), torch.randn(1, 2, 8, 16))
    assert [d.call.module for d in decisions()] == ["blocks.0", "blocks.1"]


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("layer", ("encoder", "decoder", "mha"))
@NOT_ON_2_9
def test_pytorchs_own_layers(layer: str, training: bool) -> None:
    x = torch.randn(2, 6, 32)
    if layer == "mha":
        attention = nn.MultiheadAttention(32, 4, batch_first=True).train(training)

        def fn(x: Tensor) -> Tensor:
            return attention(x, x, x, need_weights=False)[0]
    elif layer == "encoder":
        module = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).train(training)
        fn = module
    else:
        decoder = nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0, batch_first=True).train(training)

        def fn(x: Tensor) -> Tensor:
            return decoder(x, x)

    with torch.set_grad_enabled(training):
        torch.testing.assert_close(run(fn, x, fullgraph=True), fn(x))
    expected = 2 if layer == "decoder" else 1
    assert kernels_used() == ["native_flash"] * expected
    assert {d.call.pattern.value for d in decisions()} == {"multihead"}
    assert all(d.call.needs_grad is training for d in decisions())


def test_training_step_of_an_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    x = torch.randn(2, 6, 32)
    layer(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    run(layer, x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_used_attention_weights_are_a_near_miss() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    run(lambda x: sum(t.sum() for t in attention(x, x, x)), torch.randn(2, 6, 32))
    report = attnpass.last_report()
    assert not report.decisions
    assert "need_weights=True" in report.near_misses[0].reason


def test_unused_attention_weights_are_no_obstacle() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    x = torch.randn(2, 6, 32)
    torch.testing.assert_close(run(lambda x: attention(x, x, x)[0], x), attention(x, x, x)[0])
    assert kernels_used() == ["native_flash"]


def test_multi_head_attention_by_position() -> None:
    """The functional form with every argument by position: masks are read from the right places."""
    attention = nn.MultiheadAttention(32, 4)
    x = torch.randn(6, 2, 32)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    weights = (attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0)

    def fn(x: Tensor, padding: Tensor | None) -> Tensor:
        out = (attention.out_proj.weight, attention.out_proj.bias, True, padding, True)
        return F.multi_head_attention_forward(x, x, x, 32, 4, *weights, *out)[0]

    torch.testing.assert_close(run(fn, x, None), fn(x, None))
    assert kernels_used() == ["native_flash"]
    torch.testing.assert_close(run(fn, x, hidden), fn(x, hidden))
    assert decisions()[-1].call.pattern.value == "handwritten"  # as it is written for weights, which nobody reads
    hidden[0] = True
    torch.testing.assert_close(run(fn, x, hidden), fn(x, hidden), equal_nan=True)


def test_handwritten_attention_is_a_near_miss() -> None:
    def fn(q: Tensor) -> Tensor:
        return torch.softmax(q @ q.mT / 4 + 1, dim=-1) @ q

    run(fn, torch.randn(1, 2, 8, 16))
    (miss,) = attnpass.last_report().near_misses
    assert "written by hand" in miss.reason
    assert miss.source.file.endswith("test_find.py")


@pytest.mark.parametrize(
    "fn", (lambda q: torch.softmax(q, -1), lambda q: q @ q.mT, lambda q: torch.softmax(q @ q.mT, -1))
)
def test_what_is_no_attention_is_no_near_miss(fn: Callable[[Tensor], Tensor]) -> None:
    run(fn, torch.randn(1, 2, 8, 16))
    assert not attnpass.last_report().near_misses
