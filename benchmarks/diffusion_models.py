"""Diffusers' models with the attention of real sizes, few layers and random weights, for `benchmarks.diffusion`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subjects import Inputs, flux, flux_inputs, normal


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A model and what it is called with.

    Attributes:
        make: builds it.
        inputs: builds the keyword arguments of a call on a device.
        method: what is called.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[str], Inputs]
    method: str = "forward"


def _of(name: str, **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import diffusers

        model: nn.Module = getattr(diffusers, name)(**config)
        return model

    return make


def _shown(device: str, length: int, *shown: int) -> Tensor:
    """Padding on the right, (B, length), bool."""
    return torch.arange(length, device=device) < torch.tensor(shown, device=device)[:, None]


def _time(device: str, batch: int = 1) -> Tensor:
    return torch.full((batch,), 500, device=device)


SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 4), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def _sdxl_inputs(device: str) -> Inputs:
    more = {"text_embeds": normal(device, 2, 1280), "time_ids": normal(device, 2, 6)}
    return {
        "sample": normal(device, 2, 4, 128, 128),
        "timestep": _time(device, 2),
        "encoder_hidden_states": normal(device, 2, 77, 2048),
        "added_cond_kwargs": more,
        "return_dict": False,
    }


VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
}  # fmt: skip


def _sd3_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 2, 16, 128, 128),
        "encoder_hidden_states": normal(device, 2, 333, 4096),
        "pooled_projections": normal(device, 2, 2048),
        "timestep": _time(device, 2),
        "return_dict": False,
    }


def _qwen_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 2, 4096, 64),
        "encoder_hidden_states": normal(device, 2, 512, 3584),
        "encoder_hidden_states_mask": _shown(device, 512, 500, 120),
        "timestep": normal(device, 2),
        "img_shapes": [[(1, 64, 64)]] * 2,
        "return_dict": False,
    }


def _hunyuan_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 1, 16, 9, 80, 100),  # 9 x 40 x 50 tokens
        "timestep": _time(device),
        "encoder_hidden_states": normal(device, 1, 256, 4096),
        "encoder_attention_mask": _shown(device, 256, 90),
        "pooled_projections": normal(device, 1, 768),
        "guidance": torch.tensor([6000.0], device=device, dtype=torch.bfloat16),
        "return_dict": False,
    }


def _wan_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 1, 16, 21, 60, 104),  # 21 x 30 x 52 tokens
        "encoder_hidden_states": normal(device, 1, 512, 4096),
        "timestep": _time(device),
        "return_dict": False,
    }


def _ltx_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 1, 4992, 128),
        "encoder_hidden_states": normal(device, 1, 256, 4096),
        "timestep": _time(device),
        "encoder_attention_mask": _shown(device, 256, 90).long(),
        "num_frames": 13,
        "height": 16,
        "width": 24,
        "return_dict": False,
    }


def _cogvideox_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 1, 13, 16, 60, 90),  # 13 x 30 x 45 tokens
        "encoder_hidden_states": normal(device, 1, 226, 4096),
        "timestep": _time(device),
        "return_dict": False,
    }


def _pixart_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 2, 4, 128, 128),
        "encoder_hidden_states": normal(device, 2, 300, 4096),
        "timestep": _time(device, 2),
        "added_cond_kwargs": {
            "resolution": torch.tensor([[1024.0, 1024.0]] * 2, device=device, dtype=torch.bfloat16),
            "aspect_ratio": torch.ones(2, 1, device=device, dtype=torch.bfloat16),
        },
        "encoder_attention_mask": _shown(device, 300, 90, 30).long(),
        "return_dict": False,
    }


PIXART = {"num_layers": 4, "caption_channels": 4096, "use_additional_conditions": True}
SD3 = {"num_layers": 4, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192}
MODELS = {
    "sdxl": Diffusion(_of("UNet2DConditionModel", **SDXL), _sdxl_inputs),
    "vae": Diffusion(
        _of("AutoencoderKL", **VAE),
        lambda device: {"z": normal(device, 1, 16, 128, 128), "return_dict": False},
        "decode",
    ),
    "flux": Diffusion(lambda: flux(""), flux_inputs),
    "sd3": Diffusion(_of("SD3Transformer2DModel", **SD3), _sd3_inputs),
    "qwen_image": Diffusion(_of("QwenImageTransformer2DModel", num_layers=4), _qwen_inputs),
    "hunyuan_video": Diffusion(
        _of("HunyuanVideoTransformer3DModel", num_layers=2, num_single_layers=2),
        _hunyuan_inputs,
    ),
    "wan": Diffusion(
        _of("WanTransformer3DModel", num_attention_heads=40, ffn_dim=13824, num_layers=2),
        _wan_inputs,
    ),
    "ltx": Diffusion(_of("LTXVideoTransformer3DModel", num_layers=4), _ltx_inputs),
    "cogvideox": Diffusion(_of("CogVideoXTransformer3DModel", num_layers=2), _cogvideox_inputs),
    "pixart": Diffusion(_of("PixArtTransformer2DModel", **PIXART), _pixart_inputs),
}
