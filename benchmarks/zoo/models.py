"""Unmodified models of the libraries that people use, small, from their configs, with seeded random weights.

The weights are drawn so that scores have a spread of about one: with the usual tiny initialisation attention is nearly
uniform, and a wrong scale or a lost mask would hardly show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.mixed import mixed

BATCH = 2
IMAGE = {"image_size": 224, "patch_size": 16}
Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model ready to be called.

    Attributes:
        model: on its device, in its dtype.
        inputs: keyword arguments of one call.
        pick: the tensor to judge, out of what the call returns.
    """

    model: nn.Module
    inputs: Inputs
    pick: Callable[[Any], Tensor]

    def in_dtype(self, dtype: torch.dtype) -> Subject:
        """A copy that computes the same in another dtype, from the very same weights and inputs."""
        return Subject(_cast_weights(copy.deepcopy(self.model), dtype), _cast(self.inputs, dtype), self.pick)


def build(name: str, device: torch.device, dtype: torch.dtype, training: bool) -> Subject:
    """The model called ``name`` (see `MODELS`) and inputs for it. No dropout: its bits differ between kernels."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, inputs, pick = MODELS[name](generator)
    _randomise(model, generator)
    model = _cast_weights(model.train(training), dtype).to(device)
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return Subject(model, _cast(moved, dtype), pick)


def _randomise(model: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(noise * (weight.numel() / weight.shape[0]) ** -0.5)
            else:
                weight.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))


def _cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Parameters only: buffers such as the frequencies of rotary embeddings stay in fp32, as the libraries do.

    So does what a model names in ``kept_in_fp32``.
    """
    kept = getattr(model, "kept_in_fp32", ())
    for name, weight in model.named_parameters():
        if not name.startswith(kept):
            weight.data = weight.data.to(dtype)
    return model


def _cast(inputs: Mapping[str, Any], dtype: torch.dtype) -> Inputs:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {key: cast(value) for key, value in inputs.items()}


def bert(generator: torch.Generator, padded: bool) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1000,
        hidden_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    length = 256
    inputs: Inputs = {"input_ids": torch.randint(1000, (BATCH, length), generator=generator)}
    if padded:
        inputs["attention_mask"] = _padding(length)
    return BertModel(config, add_pooling_layer=False), inputs, lambda out: out.last_hidden_state


def _padding(length: int) -> Tensor:
    """What a tokenizer says of two texts, one of which is shorter."""
    return (torch.arange(length) < torch.tensor([length - 57, length])[:, None]).long()


def llama(generator: torch.Generator, padded: bool) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
    )
    inputs: Inputs = {"input_ids": torch.randint(1000, (BATCH, 512), generator=generator), "use_cache": False}
    if padded:
        inputs["attention_mask"] = _padding(512)
    return LlamaModel(config), inputs, lambda out: out.last_hidden_state


def vit(generator: torch.Generator) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=1024,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **IMAGE,
    )
    model = ViTModel(config, add_pooling_layer=False)
    return model, {"pixel_values": _image(generator)}, lambda out: out.last_hidden_state


def timm_vit(generator: torch.Generator) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=224, patch_size=16, embed_dim=384, depth=3, num_heads=6, num_classes=100)
    return model, {"x": _image(generator)}, lambda out: out


def torchvision_vit(generator: torch.Generator) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(num_layers=3, num_heads=6, hidden_dim=384, mlp_dim=1024, num_classes=100, **IMAGE)
    return model, {"x": _image(generator)}, lambda out: out


def flux(generator: torch.Generator) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=128,
        num_attention_heads=4,
        joint_attention_dim=256,
        pooled_projection_dim=128,
        axes_dims_rope=(16, 56, 56),
    )
    side, text = 16, 64
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((torch.zeros(side, side), rows, columns), dim=-1).reshape(-1, 3)
    inputs = {
        "hidden_states": torch.randn(BATCH, side * side, 64, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, text, 256, generator=generator),
        "pooled_projections": torch.randn(BATCH, 128, generator=generator),
        "timestep": torch.tensor([0.25, 0.5]),  # times 1000 it is exact in bf16
        "img_ids": places,
        "txt_ids": torch.zeros(text, 3),
        "return_dict": False,
    }
    return model, inputs, lambda out: out[0]


def sdxl(generator: torch.Generator) -> tuple[nn.Module, Inputs, Callable[[Any], Tensor]]:
    """SDXL's own transformer block: 640 channels, heads of 64, self attention, then 77 text tokens."""
    from diffusers import Transformer2DModel

    model = Transformer2DModel(
        num_attention_heads=10,
        attention_head_dim=64,
        in_channels=640,
        num_layers=2,
        cross_attention_dim=512,
        use_linear_projection=True,
    )
    inputs = {
        "hidden_states": torch.randn(BATCH, 640, 32, 32, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, 77, 512, generator=generator),
        "return_dict": False,
    }
    return model, inputs, lambda out: out[0]


def _image(generator: torch.Generator) -> Tensor:
    return torch.randn(BATCH, 3, 224, 224, generator=generator)


MODELS: dict[str, Callable[[torch.Generator], tuple[nn.Module, Inputs, Callable[[Any], Tensor]]]] = {
    "bert_padded": partial(bert, padded=True),
    "llama": partial(llama, padded=False),
    "llama_padded": partial(llama, padded=True),
    "vit": vit,
    "flux": flux,
    "sdxl": sdxl,
    "timm_vit": timm_vit,
    "torchvision_vit": torchvision_vit,
    "bert": partial(bert, padded=False),
    "mixed": partial(mixed, batch=BATCH),
}
