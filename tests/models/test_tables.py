"""transformers' models whose bias is read from a table (T5, Swin, BEiT), from their configs: inference and training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnpass.index.logic import loads_of
from tests.helpers.compiled import assert_near, decisions, run
from tests.helpers.masks_read import understood

pytest.importorskip("transformers")

Made = tuple[nn.Module, dict[str, Any]]
NONE = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}


def t5(**options: Any) -> Made:
    from transformers import T5Config, T5Model

    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5Model(T5Config(**sizes, dropout_rate=0.0, **options))
    tokens, padding = torch.randint(0, 64, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    padding[0, 15:] = 0
    given = {"input_ids": tokens, "attention_mask": padding, "decoder_input_ids": tokens[:, :12]}
    return model, {**given, "use_cache": False}


def swin() -> Made:
    from transformers import SwinConfig, SwinModel

    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 32, "depths": [2], "num_heads": [2], "window_size": 4}
    return SwinModel(SwinConfig(**sizes, **NONE)), {"pixel_values": torch.randn(2, 3, 16, 16)}


def beit() -> Made:
    from transformers import BeitConfig, BeitModel

    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BeitConfig(**sizes, intermediate_size=32, use_relative_position_bias=True, **NONE)
    return BeitModel(config, add_pooling_layer=False), {"pixel_values": torch.randn(2, 3, 16, 16)}


MODELS: dict[str, tuple[Callable[[], Made], Counter[str], str]] = {
    "T5": (t5, Counter({"key_padding & bias": 2, "causal & bias": 2, "key_padding": 2}), "relative_attention_bias"),
    "T5, one way": (
        lambda: t5(relative_attention_num_buckets=8, relative_attention_max_distance=10),
        Counter({"key_padding & bias": 2, "causal & bias": 2, "key_padding": 2}),
        "relative_attention_bias",
    ),
    "Swin": (swin, Counter({"bias": 2}), "relative_position_bias_table"),
    "BEiT": (beit, Counter({"bias": 2}), ""),  # the table is put together of two, so what it is read from is that
}


def last_state(output: Any) -> Tensor:
    state: Tensor = output.last_hidden_state
    return state


@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_what_is_read(name: str) -> None:
    make, masks, table = MODELS[name]
    model, given = make()
    with torch.no_grad():
        found = understood(model.eval(), **given)
    assert Counter(str(one.call.mask) for one in found) == masks
    for one in found:
        assert one.meaning is not None
        if one.meaning.bias is not None:
            floats = [load for load in loads_of(one.meaning.bias) if load.dtype.is_floating_point]
            # (rows, heads) in each case: never heads x queries x keys
            assert all(len(load.index) == 2 for load in floats if table in load.node.name), one.meaning.bias
            assert any(table in load.node.name for load in floats)


@pytest.mark.parametrize("kernel", ("flex", "native_math"))
@pytest.mark.parametrize("name", MODELS)
def test_inference(name: str, kernel: str) -> None:
    model, given = MODELS[name][0]()
    model.eval()
    with torch.no_grad():
        wanted, got = last_state(model(**given)), run(lambda: last_state(model(**given)), kernel=kernel)
    assert_near(got, wanted, steps=64)
    assert {decision.kernel for decision in decisions()} == {kernel}


@pytest.mark.parametrize("name", MODELS)
def test_training(name: str) -> None:
    """No kernel reads the table in training on the CPU: it is handed what the program made of it, gradients and all."""
    model, given = MODELS[name][0]()
    model.train()
    last_state(model(**given)).square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    run(lambda: last_state(model(**given)), kernel="flex,native_math").square().mean().backward()
    for parameter, value in model.named_parameters():
        theirs = wanted[parameter]
        assert (value.grad is None) == (theirs is None), parameter
        if theirs is not None and value.grad is not None:
            assert (value.grad - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-7, parameter
    assert {decision.kernel for decision in decisions()} == {"native_math"}
