"""transformers' models: every mask that they build is proved, with and without padding, with static and dynamic sizes.

``ATTNPASS_EXAMPLES`` of 20,000 or more runs every model in every way; otherwise each model runs in two.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from tests.helpers.compiled import decisions, run
from tests.helpers.masks_read import understood
from tests.models.tiny_models import LAYERS, MODELS, B, S

WINDOWED = {"mistral", "gemma2", "gemma3"}
DECODERS = ("llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt2", "phi3", "opt", "bloom", "falcon", "gpt_neox")
DECODERS += ("starcoder2", "cohere")
NO_SDPA = {"gemma2", "bloom"}
BIASED = {"bloom", "t5"}
EVERYTHING = int(os.environ.get("ATTNPASS_EXAMPLES", "0")) >= 20_000
WAYS = [("none", False), ("right", False), ("left", False), ("none", True), ("right", True), ("left", True)]
counts: Counter[str] = Counter()


def masks(name: str, attention: str, padding: str, dynamic: bool) -> Counter[str]:
    model, given = MODELS[name](attention)
    inputs = dict(given)
    if "input_ids" in inputs:
        inputs.pop("attention_mask", None)
        if padding != "none":
            mask = torch.ones(B, S, dtype=torch.long)
            mask[1, slice(-5, None) if padding == "right" else slice(None, 5)] = 0
            inputs["attention_mask"] = mask
    with torch.no_grad():
        found = understood(model, dynamic=dynamic, **inputs)
    assert len(found) == LAYERS[name]
    return Counter(str(one.call.mask) for one in found)


def wanted(name: str, padding: str) -> set[str]:
    """The masks that a decoder's layers may have."""
    tail = ("" if padding == "none" else " & key_padding") + (" & bias" if name in BIASED else "")
    return {f"causal{tail}"} | ({f"causal & window(7){tail}"} if name in WINDOWED else set())


def ways(name: str, attention: str) -> list[tuple[str, bool]]:
    """With padding; without, of symbolic sizes, where the other attention of a model does not say the same."""
    if EVERYTHING:
        return WAYS
    return [WAYS[1], WAYS[3]] if attention == "sdpa" or name in NO_SDPA else [WAYS[1]]


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("name", DECODERS)
def test_masks_of_decoders_are_proved(name: str, attention: str) -> None:
    if attention == "sdpa" and name in NO_SDPA:
        pytest.skip("transformers has no SDPA form of it")
    for padding, dynamic in ways(name, attention):
        if dynamic and name == "bloom":
            continue  # batch and heads in one dimension, of symbolic size: its products cannot be followed
        found = masks(name, attention, padding, dynamic)
        assert set(found) <= wanted(name, padding), (padding, dynamic)
        counts["proved"] += found.total()


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("name", [name for name in MODELS if name not in DECODERS])
def test_masks_of_other_models_are_proved(name: str, attention: str) -> None:
    for padding, dynamic in ways(name, attention):
        found = masks(name, attention, padding, dynamic)
        if name == "t5" and padding == "none":
            found.pop("tensor", None)  # the encoder has a position bias and no mask: there is nothing to prove
        assert "tensor" not in found, (padding, dynamic, found)
        counts["proved"] += found.total()


def test_count_is_printed() -> None:
    print(f"\nmasks of transformers' models: {dict(counts)}")


@pytest.mark.parametrize(
    ("name", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("t5", "eager"), ("bart", "sdpa")]
)
def test_models_with_left_padding_are_right_with_computed_masks(name: str, attention: str) -> None:
    """FlexAttention computes what was proved; rows that see no key give what transformers' own code gives."""
    model, given = MODELS[name](attention)
    mask = torch.ones(B, S, dtype=torch.long)
    mask[1, :5] = 0
    inputs = {**given, "attention_mask": mask}
    with torch.no_grad():
        got, wanted = run(lambda: model(**inputs)[0], kernel="flex,native_flash"), model(**inputs)[0]
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)
    assert {decision.kernel for decision in decisions()} == {"flex"}
