"""Models of transformers with random weights, tiny: two layers, hidden size 64. Made from their configurations.

``MODELS[name](attn_implementation)`` gives a model in eval mode and its inputs. `LAYERS` says how many attention calls
a forward makes. The same name gives the same weights every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, dict[str, Any]]

B, S, VOCAB = 2, 32, 100
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
T5_SIZES: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCAB,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
ENCODER_DECODER: dict[str, Any] = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "dropout": 0.0,
}
CLIP_TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGE = {"image_size": 32, "patch_size": 8}


def _tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (B, S), generator=torch.Generator().manual_seed(seed))


def _padding() -> torch.Tensor:
    """The second sequence is shorter."""
    mask = torch.ones(B, S, dtype=torch.long)
    mask[1, -5:] = 0
    return mask


def _image() -> torch.Tensor:
    return torch.randn(B, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def _made(class_name: str, config_name: str, attn: str, sizes: dict[str, Any], inputs: dict[str, Any]) -> Made:
    import transformers

    config = getattr(transformers, config_name)(**sizes)
    config._attn_implementation = attn
    if hasattr(config, "use_cache"):
        config.use_cache = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, class_name)(config)
    return model.eval(), inputs


def _decoder(class_name: str, config_name: str, **sizes: Any) -> Callable[[str], Made]:
    return lambda attn: _made(class_name, config_name, attn, sizes, {"input_ids": _tokens()})


def _encoder(class_name: str, config_name: str, **sizes: Any) -> Callable[[str], Made]:
    def make(attn: str) -> Made:
        return _made(class_name, config_name, attn, sizes, {"input_ids": _tokens(), "attention_mask": _padding()})

    return make


def _vision(class_name: str, config_name: str, **sizes: Any) -> Callable[[str], Made]:
    return lambda attn: _made(class_name, config_name, attn, sizes, {"pixel_values": _image()})


def _translator(class_name: str, config_name: str, **sizes: Any) -> Callable[[str], Made]:
    def make(attn: str) -> Made:
        inputs = {"input_ids": _tokens(), "attention_mask": _padding(), "decoder_input_ids": _tokens(3)[:, :9]}
        return _made(class_name, config_name, attn, sizes, inputs)

    return make


def _whisper(attn: str) -> Made:
    sizes = {**ENCODER_DECODER, "num_mel_bins": 8, "max_source_positions": S, "max_target_positions": 32}
    features = torch.randn(B, 8, 2 * S, generator=torch.Generator().manual_seed(4))
    inputs = {"input_features": features, "decoder_input_ids": _tokens(3)[:, :9]}
    return _made("WhisperModel", "WhisperConfig", attn, sizes, inputs)


def _clip(attn: str) -> Made:
    text = {
        **CLIP_TOWER,
        "vocab_size": VOCAB,
        "max_position_embeddings": 32,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    sizes = {"text_config": text, "vision_config": {**CLIP_TOWER, **IMAGE}, "projection_dim": 32}
    inputs = {"input_ids": _tokens(), "attention_mask": _padding(), "pixel_values": _image()}
    return _made("CLIPModel", "CLIPConfig", attn, sizes, inputs)


SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCAB, **SPECIAL}
GPT2_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
BLOOM = {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}

MODELS: dict[str, Callable[[str], Made]] = {
    "llama": _decoder("LlamaModel", "LlamaConfig", **GQA),
    "mistral": _decoder("MistralModel", "MistralConfig", **GQA, sliding_window=8),
    "qwen3": _decoder("Qwen3Model", "Qwen3Config", **GQA, head_dim=16),
    "gemma2": _decoder("Gemma2Model", "Gemma2Config", **GQA, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3": _decoder("Gemma3TextModel", "Gemma3TextConfig", **GQA, head_dim=16, sliding_window=8),
    "gpt2": _decoder("GPT2Model", "GPT2Config", **GPT2, **GPT2_DROPOUT),
    "phi3": _decoder("Phi3Model", "Phi3Config", **GQA),
    "opt": _encoder("OPTModel", "OPTConfig", **SIZES, ffn_dim=96, word_embed_proj_dim=64, dropout=0.0),
    "bloom": _encoder("BloomModel", "BloomConfig", **BLOOM),
    "falcon": _decoder("FalconModel", "FalconConfig", **SIZES, multi_query=True),
    "gpt_neox": _decoder("GPTNeoXModel", "GPTNeoXConfig", **SIZES),
    "starcoder2": _decoder("Starcoder2Model", "Starcoder2Config", **GQA),
    "cohere": _decoder("CohereModel", "CohereConfig", **GQA),
    "whisper": _whisper,
    "bart": _translator("BartModel", "BartConfig", **ENCODER_DECODER, max_position_embeddings=64),
    "t5": _translator("T5Model", "T5Config", **T5_SIZES),
    "bert": _encoder("BertModel", "BertConfig", **SIZES, **NO_DROPOUT),
    "vit": _vision("ViTModel", "ViTConfig", **CLIP_TOWER, **IMAGE, **NO_DROPOUT),
    "clip": _clip,
}
ENCODER_DECODERS = ("whisper", "bart", "t5")
LAYERS: dict[str, int] = {name: 6 if name in ENCODER_DECODERS else 4 if name == "clip" else 2 for name in MODELS}
