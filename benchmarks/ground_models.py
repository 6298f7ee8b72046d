"""Models for `benchmarks.ground`, from their configurations or written by hand, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.ground_calls import LAST, Built, Ground, shown
from benchmarks.ground_written import LatentAttention, RelativeAttention, Stack, XAttention
from benchmarks.subjects import llama, normal


def t5(device: str, batch: int, source: int, target: int, **config: Any) -> Built:
    """An encoder and a decoder whose attention has a bias for each head."""
    from transformers import T5Config, T5Model

    model: nn.Module = T5Model(T5Config(**config))
    ids = {"input_ids": (batch, source), "decoder_input_ids": (batch, target)}
    made = {name: torch.randint(0, 1000, shape, device=device) for name, shape in ids.items()}
    return model, {**made, "use_cache": False}


def vision(device: str, name: str, batch: int, **config: Any) -> Built:
    """A model of timm."""
    import timm

    model: nn.Module = timm.create_model(name, **config)
    side = model.pretrained_cfg["input_size"][-1]
    return model, {"x": normal(device, batch, 3, side, side)}


def padded_llama(device: str, batch: int, length: int, **config: Any) -> Built:
    """Llama with prompts of several lengths, padded on the left."""
    mask = shown(batch, length, left=True).long().to(device)
    ids = torch.randint(0, 1000, (batch, length), device=device)
    return llama("sdpa", **config), {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def whisper(device: str, batch: int, frames: int, **config: Any) -> Built:
    """The encoder of Whisper, its attention eager; two frames make a token."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    made = WhisperConfig(**config, max_source_positions=frames // 2, attn_implementation="eager")
    return WhisperEncoder(made), {"input_features": normal(device, batch, made.num_mel_bins, frames)}


def esm(device: str, batch: int, length: int, **config: Any) -> Built:
    """ESM-2, its attention eager, sequences padded on the right."""
    from transformers import EsmConfig, EsmModel

    sizes: dict[str, Any] = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "token_dropout": True}
    sizes |= {"position_embedding_type": "rotary", "attn_implementation": "eager", **config}
    mask = shown(batch, length).to(device)
    ids = torch.randint(4, 24, (batch, length), device=device).where(mask, 1)
    return EsmModel(EsmConfig(**sizes), add_pooling_layer=False), {"input_ids": ids, "attention_mask": mask.long()}


def x_transformer(device: str, shape: tuple[int, ...], layers: int, heads: int, alibi: bool = False) -> Built:
    """A decoder of x-transformers' kind on (B, S, width)."""
    width = shape[-1]
    return Stack(width, layers, lambda: XAttention(width, heads, alibi)), {"x": normal(device, *shape)}


class Conformer(nn.Module):
    """A `Stack` whose arguments have names."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.stack = Stack(width, layers, lambda: RelativeAttention(width, heads))

    def forward(self, x: torch.Tensor, places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.stack(x, places, mask)
        return out


def conformer(device: str, shape: tuple[int, ...], layers: int, heads: int) -> Built:
    """The attention of ESPnet's Conformer on (B, S, width), padded on the right."""
    B, S, width = shape
    mask = shown(B, S)[:, None].to(device)
    inputs = {"x": normal(device, *shape), "places": normal(device, 1, 2 * S - 1, width), "mask": mask}
    return Conformer(width, layers, heads), inputs


def latent(device: str, shape: tuple[int, ...], layers: int, heads: int, D: int) -> Built:
    """DeepSeek's attention on (B, S, width): values of head dim D, queries and keys of half as much more."""
    width = shape[-1]
    return Stack(width, layers, lambda: LatentAttention(width, heads, D, D // 2)), {"x": normal(device, *shape)}


T5 = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_heads": 16, "num_layers": 6, "num_decoder_layers": 6}
T5_SMALL = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
LLAMA_SMALL = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_SMALL |= {"num_key_value_heads": 2, "vocab_size": 1000}
WHISPER = {"d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 4}
WHISPER_SMALL = {"d_model": 64, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "encoder_layers": 2}
ESM = {"hidden_size": 1280, "num_attention_heads": 20, "intermediate_size": 5120, "num_hidden_layers": 6}
ESM_SMALL = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
DECODER: dict[str, Any] = {"shape": (4, 2048, 1024), "layers": 12, "heads": 16}
DECODER_SMALL: dict[str, Any] = {"shape": (2, 64, 64), "layers": 2, "heads": 4}
SWIN: dict[str, Any] = {"batch": 64, "depths": (2, 2, 6, 2)}  # of 2, 2, 18, 2
SWIN_SMALL = {"batch": 1, "depths": (1, 1, 1, 1)}

MODELS = {
    "t5": Ground(
        "bias",
        t5,
        {"batch": 4, "source": 2048, "target": 512, **T5},
        {"batch": 2, "source": 64, "target": 32, **T5_SMALL},
        kernels=("native_cudnn", "native_efficient"),
    ),
    "swin": Ground("bias", vision, {"name": "swin_base_patch4_window7_224", **SWIN}, SWIN_SMALL),
    "swin_v2": Ground("bias", vision, {"name": "swinv2_base_window8_256", **SWIN}, SWIN_SMALL),
    "beit": Ground(
        "bias", vision, {"name": "beit_base_patch16_224", "batch": 64, "depth": 6}, {"batch": 1, "depth": 2}
    ),
    "llama_left": Ground(
        "regional",
        padded_llama,
        {"batch": 4, "length": 4096},
        {"batch": 2, "length": 128, **LLAMA_SMALL},
        layers="model.layers",
        last=LAST,
    ),
    "x_transformer": Ground("written", x_transformer, DECODER, DECODER_SMALL),
    "x_transformer_train": Ground("written", x_transformer, DECODER, DECODER_SMALL, train=True),
    "x_transformer_alibi": Ground("written", x_transformer, {**DECODER, "alibi": True}, DECODER_SMALL),
    "whisper": Ground(
        "written",
        whisper,
        {"batch": 8, "frames": 3000, "num_mel_bins": 128, **WHISPER},
        {"batch": 2, "frames": 100, **WHISPER_SMALL},
    ),
    "esm": Ground("written", esm, {"batch": 16, "length": 512, **ESM}, {"batch": 2, "length": 64, **ESM_SMALL}),
    "conformer": Ground("written", conformer, {"shape": (8, 1500, 512), "layers": 4, "heads": 8}, DECODER_SMALL),
    "mla": Ground(
        "written",
        latent,
        {"shape": (2, 4096, 2048), "layers": 4, "heads": 16, "D": 128},
        {**DECODER_SMALL, "D": 32},
    ),
}
