"""PyTorch's own layers: encoders with their fast path, decoders, multi-head attention with and without weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnpass
from tests.helpers.compiled import decisions, run

E, H, S, B = 32, 4, 6, 3
CAUSAL = nn.Transformer.generate_square_subsequent_mask(S)


def padding(empty: bool = False) -> Tensor:
    hidden = torch.zeros(B, S, dtype=torch.bool)
    hidden[0, 4:] = hidden[2, 2:] = True
    hidden[1] = empty
    return hidden


MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "padding": lambda: {"src_key_padding_mask": padding()},
    "an example of padding": lambda: {"src_key_padding_mask": padding(empty=True)},
    "causal": lambda: {"mask": CAUSAL, "is_causal": True},
    "bool": lambda: {"mask": torch.rand(S, S) > 0.5, "is_causal": False},
    "padding of floats": lambda: {"src_key_padding_mask": padding().float() * torch.finfo(torch.float32).min},
}


def encoder(**how: Any) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(E, H, 64, batch_first=True, norm_first=how.pop("norm_first", False))
    return nn.TransformerEncoder(layer, 2, **how).eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", (True, False), ids=("nested", "padded"))
@pytest.mark.parametrize("mask", MASKS)
def test_the_fast_path_of_an_encoder(mask: str, nested: bool) -> None:
    """As it is without attnpass. In eager a nested tensor makes the padded positions 0, which Dynamo does not."""
    model, given, x = encoder(enable_nested_tensor=nested), MASKS[mask](), torch.randn(B, S, E)
    with torch.no_grad():
        got = run(lambda x: model(x, **given), x)
        torch._dynamo.reset()
        wanted = torch.compile(lambda x: model(x, **given), backend="eager")(x)
        torch.testing.assert_close(got, wanted, equal_nan=True, atol=2e-6, rtol=2e-5)
        if not (nested and "padding" in mask):
            torch.testing.assert_close(got, model(x, **given), equal_nan=True, atol=2e-6, rtol=2e-5)
    assert [decision.rewritten for decision in decisions()] == [True, True]
    assert not attnpass.last_report().near_misses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("mask", ("padding", "causal", "any numbers"))
def test_the_fast_path_of_a_layer(mask: str, dtype: torch.dtype) -> None:
    """Where a mask is not 0 a key is hidden there, also by a number that is no mask: 0.5 as much as -inf."""
    layer = nn.TransformerEncoderLayer(E, H, 64, batch_first=True, norm_first=True, dtype=dtype).eval()
    numbers = torch.randn(S, S, dtype=dtype).relu()
    numbers[:, 0] = 0
    given: dict[str, Any] = {
        "padding": {"src_key_padding_mask": padding()},
        "causal": {"src_mask": CAUSAL.to(dtype)},
        "any numbers": {"src_mask": numbers},
    }[mask]
    x = torch.randn(B, S, E, dtype=dtype)
    with torch.no_grad():
        got, wanted = run(lambda x: layer(x, **given), x), layer(x, **given)
    tolerance = 2e-6 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(got, wanted, atol=tolerance, rtol=tolerance)
    assert [decision.rewritten for decision in decisions()] == [True]


@pytest.mark.parametrize("said", (None, True, False))
def test_a_mask_is_compiled_where_the_program_says_whether_it_is_causal(said: bool | None) -> None:
    """As the docs say: else PyTorch looks at its values, Dynamo breaks the graph there, and nothing is compiled."""
    model, x = encoder().train(False), torch.randn(B, S, E)
    with torch.no_grad():
        torch.testing.assert_close(run(lambda x: model(x, CAUSAL, is_causal=said), x), model(x, CAUSAL, is_causal=said))
    assert len(decisions()) == (0 if said is None else 2)


def test_an_encoder_that_trains() -> None:
    model, x = encoder().train(), torch.randn(B, S, E)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    got, wanted = run(lambda x: model(x, CAUSAL, is_causal=True), x), model(x, CAUSAL, is_causal=True)
    torch.testing.assert_close(got, wanted)
    leaves = list(model.parameters())
    pairs = [torch.autograd.grad(out.square().sum(), leaves) for out in (got, wanted)]
    torch.testing.assert_close(*pairs)
    assert [decision.rewritten for decision in decisions()] == [True, True]


@pytest.mark.parametrize("grad", (False, True))
def test_a_decoder(grad: bool) -> None:
    """Its own attention is causal, the one over the memory has no mask."""
    layer = nn.TransformerDecoderLayer(E, H, 64, batch_first=True).eval()
    model, x, memory = nn.TransformerDecoder(layer, 2), torch.randn(B, S, E), torch.randn(B, 5, E)
    with torch.set_grad_enabled(grad):
        got = run(lambda x, m: model(x, m, CAUSAL, tgt_is_causal=True), x, memory)
        torch.testing.assert_close(got, model(x, memory, CAUSAL, tgt_is_causal=True))
    assert [decision.kernel for decision in decisions()] == ["native_flash"] * 4
    assert [decision.call.kind.value for decision in decisions()] == ["self", "cross"] * 2


@pytest.mark.parametrize("masked", (False, True), ids=("all keys", "padding"))
@pytest.mark.parametrize("each_head", (False, True), ids=("averaged", "each head"))
@pytest.mark.parametrize("read", (False, True), ids=("unread", "read"))
def test_weights_of_multi_head_attention(each_head: bool, read: bool, masked: bool) -> None:
    """Weights that somebody reads are computed, and one sentence says what to switch."""
    layer, x = nn.MultiheadAttention(E, H, batch_first=True).eval(), torch.randn(B, S, E)
    given = {"key_padding_mask": padding()} if masked else {}

    def program(x: Tensor) -> tuple[Tensor, ...]:
        both = layer(x, x, x, average_attn_weights=not each_head, **given)
        return tuple(both) if read else (both[0],)

    with torch.no_grad():
        torch.testing.assert_close(run(program, x), program(x))
    assert [decision.rewritten for decision in decisions()] == ([] if read else [True])
    reasons = [miss.reason for miss in attnpass.last_report().near_misses]
    assert len(reasons) == read
    assert all(reason.endswith("with need_weights=False the layer does not compute them") for reason in reasons)
