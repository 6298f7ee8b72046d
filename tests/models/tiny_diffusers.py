"""Models of diffusers with random weights, tiny. Made from their configurations.

``MODELS[name]`` is a `Tiny`: it gives a model in eval mode and its inputs, and says which masks its calls have. The
second prompt of a batch is shorter than the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

B, TEXT = 2, 7
NONE, PADDED = "none", "key_padding"


@dataclass(frozen=True)
class Tiny:
    """One model.

    Attributes:
        title: its class in diffusers.
        config: what the class is made from.
        inputs: what its forward is given; `torch.manual_seed` decides the values.
        masks: the masks of its attention calls, each with their number.
        stops: what the report says about the masks that stay tensors.
    """

    title: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    masks: dict[str, int] = field(default_factory=dict)
    stops: str = ""

    def make(self) -> tuple[nn.Module, dict[str, Any]]:
        import diffusers

        torch.manual_seed(0)
        model = getattr(diffusers, self.title)(**self.config).eval()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)  # gates that begin at zero would hide their branch
        return model, self.inputs() | {"return_dict": False}


def _image(channels: int = 4, side: int = 8) -> Tensor:
    return torch.randn(B, channels, side, side)


def _text(width: int) -> Tensor:
    return torch.randn(B, TEXT, width)


def _shorter(dtype: torch.dtype = torch.float32) -> Tensor:
    mask = torch.ones(B, TEXT, dtype=dtype)
    mask[1, 4:] = 0
    return mask


def _times() -> Tensor:
    return torch.tensor([3, 4])


def _flux() -> dict[str, Any]:
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(TEXT, 3)}
    prompt = {"encoder_hidden_states": _text(32), "pooled_projections": torch.randn(B, 32)}
    return {"hidden_states": torch.randn(B, 16, 4), "timestep": torch.tensor([0.25, 0.5]), **prompt, **places}


def _chroma() -> dict[str, Any]:
    mask = torch.cat((_shorter(torch.bool), torch.ones(B, 16, dtype=torch.bool)), dim=1)
    return {name: value for name, value in _flux().items() if name != "pooled_projections"} | {"attention_mask": mask}


FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}

MODELS: dict[str, Tiny] = {
    "flux": Tiny("FluxTransformer2DModel", FLUX | {"pooled_projection_dim": 32}, _flux, {NONE: 4}),
    "chroma": Tiny(
        "ChromaTransformer2DModel",
        FLUX | {"approximator_hidden_dim": 32, "approximator_layers": 1, "approximator_num_channels": 16},
        _chroma,
        {f"{PADDED} & query_padding": 4},
    ),
    "sdxl": Tiny(
        "UNet2DConditionModel",
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        lambda: {"sample": _image(), "timestep": torch.tensor(3), "encoder_hidden_states": _text(32)},
        {NONE: 8},
    ),
    "vae": Tiny(
        "AutoencoderKL",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 8,
        },
        lambda: {"sample": _image(3)},
        {NONE: 2},
    ),
    "sd3": Tiny(
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 32,
            "out_channels": 4,
        },
        lambda: {
            "hidden_states": _image(),
            "encoder_hidden_states": _text(32),
            "pooled_projections": torch.randn(B, 32),
            "timestep": _times(),
        },
        {NONE: 2},
    ),
    "wan": Tiny(
        "WanTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 32,
            "ffn_dim": 32,
            "num_layers": 2,
        },
        lambda: {
            "hidden_states": torch.randn(B, 4, 2, 8, 8),
            "timestep": _times(),
            "encoder_hidden_states": _text(16),
        },
        {NONE: 4},
    ),
    "hunyuan_video": Tiny(
        "HunyuanVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "patch_size": 1,
            "text_embed_dim": 16,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
        },
        lambda: {
            "hidden_states": torch.randn(B, 4, 1, 4, 4),
            "timestep": _times(),
            "encoder_hidden_states": _text(16),
            "encoder_attention_mask": _shorter(),
            "pooled_projections": torch.randn(B, 8),
            "guidance": torch.full((B,), 6000.0),
        },
        {PADDED: 2, "function": 1},  # the prompt's refiner: both tokens are there, or the key is the first
    ),
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 3,
            "num_kv_heads": 1,
            "multiple_of": 2,
            "scaling_factor": 1.0,
            "axes_dim_rope": (4, 2, 2),
            "cap_feat_dim": 16,
        },
        lambda: {
            "hidden_states": _image(),
            "encoder_hidden_states": _text(16),
            "timestep": torch.rand(B),
            "encoder_attention_mask": _shorter(torch.bool),
        },
        {PADDED: 3, NONE: 1},
    ),
    "pixart": Tiny(
        "PixArtTransformer2DModel",
        {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 3,
            "caption_channels": 32,
            "cross_attention_dim": 24,
        },
        lambda: {
            "hidden_states": _image(),
            "encoder_hidden_states": _text(32),
            "timestep": _times(),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
            "encoder_attention_mask": _shorter(),
        },
        {NONE: 2, "bias": 2},
        stops="-10000",
    ),
}
