"""A model whose attention calls no single kernel takes all of: other dtypes, a mask, heads too large."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class TextToImage(nn.Module):
    """One step of a pipeline in one graph: a text encoder in fp32, masked cross-attention, a VAE with heads of 512."""

    kept_in_fp32 = ("text.",)

    def __init__(self) -> None:
        from diffusers import AutoencoderKL, Transformer2DModel
        from transformers import BertConfig, BertModel

        super().__init__()
        sizes = {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1024}
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        config = BertConfig(num_hidden_layers=2, num_attention_heads=8, **sizes, **no_dropout)
        self.text = BertModel(config, add_pooling_layer=False)
        self.denoiser = Transformer2DModel(
            num_attention_heads=10,
            attention_head_dim=64,
            in_channels=640,
            num_layers=2,
            cross_attention_dim=512,
            use_linear_projection=True,
        )
        self.project = nn.Conv2d(640, 4, kernel_size=1)
        self.vae = AutoencoderKL(latent_channels=4, block_out_channels=(512,), layers_per_block=1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, latents: Tensor) -> Tensor:
        text = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        noise = self.denoiser(
            latents,
            encoder_hidden_states=text.to(latents.dtype),
            encoder_attention_mask=attention_mask,
            return_dict=False,
        )[0]
        image: Tensor = self.vae.decode(self.project(noise), return_dict=False)[0]
        return image


def mixed(generator: torch.Generator, batch: int) -> tuple[nn.Module, dict[str, Any], Callable[[Any], Tensor]]:
    """The model, inputs of one call, and what of its result is judged."""
    length = 77
    lengths = torch.tensor([length - 30, length])
    inputs = {
        "input_ids": torch.randint(1000, (batch, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
        "latents": torch.randn(batch, 640, 32, 32, generator=generator),
    }
    return TextToImage(), inputs, lambda out: out
