"""transformers' ``generate`` with a compiled forward: the same tokens as eager, whatever holds the keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.compiled import decisions, kernels_used
from tests.models.tiny_models import MODELS, VOCAB

OPTIONS = {"attnpass.kernel": "native_flash", "attnpass.compiler": "aot_eager"}
LENGTH = 6
CACHES = {
    "static": ({"tensor", "key_padding"}, {"cache_implementation": "static"}),
    "dynamic": ({"causal & key_padding", "key_padding"}, {}),
}


def prompts() -> dict[str, Tensor]:
    """Two of them, the second padded on the left."""
    torch.manual_seed(0)
    ids = torch.randint(5, VOCAB, (2, 12))
    ids[1, :5] = 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def llama() -> Any:
    """The tiny Llama, with its head."""
    from transformers import AutoModelForCausalLM

    body, _ = MODELS["llama"]("sdpa")
    return AutoModelForCausalLM.from_config(body.config, attn_implementation="sdpa").eval()


def generated(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        tokens: Tensor = model.generate(
            **prompts(), use_cache=True, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False, **options
        )
    return tokens


@pytest.mark.parametrize("cache", CACHES)
def test_same_tokens_as_eager(cache: str) -> None:
    masks, options = CACHES[cache]
    model = llama()
    wanted = generated(model, **options)
    model.forward = torch.compile(model.forward, backend="attnpass", options=OPTIONS)
    assert torch.equal(generated(model, **options), wanted)
    assert {str(decision.call.mask) for decision in decisions()} == masks
    assert set(kernels_used()) == {"native_flash"}


def test_by_a_compile_config() -> None:
    """How transformers lets users name a backend; on a CPU it compiles only if told to."""
    from transformers import CompileConfig

    model = llama()
    wanted = generated(model, cache_implementation="static")
    config = CompileConfig(backend="attnpass", mode=None, options=OPTIONS)
    config._compile_all_devices = True
    assert torch.equal(generated(model, cache_implementation="static", compile_config=config), wanted)
    assert set(kernels_used()) == {"native_flash"}
