"""Every model type of the installed transformers, made small by its own configuration. Not all can be."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.zoo.stranger import Ready, Stranger, padding

LAYERS, HEADS, KV_HEADS, HEAD, WORDS, LENGTH = 2, 4, 2, 16, 128, 24
SIZES = (
    (
        64,
        (
            "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim hidden_dim "
            "encoder_hidden_size decoder_hidden_size projection_dim adapter_hidden_size d_embed proj_dim "
            "max_position_embeddings n_positions max_source_positions max_target_positions attention_hidden_size"
        ),
    ),
    (
        96,
        (
            "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner d_inner_hid "
            "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size mlp_hidden_size"
        ),
    ),
    (
        LAYERS,
        (
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
            "num_encoder_layers depth num_blocks num_block n_block"
        ),
    ),
    (
        HEADS,
        (
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "num_experts num_local_experts n_routed_experts"
        ),
    ),
    (KV_HEADS, "num_key_value_heads n_head_kv num_kv_heads num_experts_per_tok"),
    (
        HEAD,
        "head_dim d_kv d_head attention_head_dim qk_nope_head_dim v_head_dim kv_channels rotary_dim",
    ),
    (8, "qk_rope_head_dim patch_size sliding_window num_mel_bins num_queries num_query_tokens"),
    (32, "kv_lora_rank q_lora_rank image_size attention_window_size"),
    (WORDS, "vocab_size"),
)
SMALL = {name: size for size, names in SIZES for name in names.split()}
NOT_GIVEN = ("model_type", "transformers_version", "architectures")
DROPOUT = ("dropout", "drop_rate", "pdrop", "layerdrop", "drop_path", "dropout_rate", "attn_drop")


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a configuration, small, those of parts of it too."""
    made = {}
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(value, dict) or not isinstance(name, str):
            made[name] = shrunk(value) if isinstance(value, dict) else value
        elif name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            made[name] = min(value, SMALL[name]) if value > 0 else value
        elif name.endswith("_token_id") and isinstance(value, int):
            made[name] = value if value < 4 else 3
        elif name in ("layer_types", "mlp_layer_types") and isinstance(value, list):
            made[name] = value[:LAYERS]
        elif number and any(word in name for word in DROPOUT):
            made[name] = 0.0
        else:
            made[name] = value
    return made


def build(model_type: str, attention: str) -> Ready:
    import transformers

    usual = transformers.CONFIG_MAPPING[model_type]()
    given = {name: value for name, value in shrunk(usual.to_dict()).items() if name not in NOT_GIVEN}
    config = type(usual)(**given)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if hasattr(config, "use_mamba_kernels"):
        config.use_mamba_kernels = False
    config._attn_implementation = attention
    model = transformers.AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32)
    weights = sum(weight.numel() for weight in model.parameters())
    if weights > 200_000_000:
        raise ValueError(f"it has {weights / 1e6:.0f} million weights still")
    return Ready(model, (), inputs(model, config))


def inputs(model: Any, config: Any) -> dict[str, Any]:
    """What its main input is, and what a decoder needs beside it."""
    name = model.main_input_name
    text = getattr(config, "text_config", config)
    words = min(getattr(text, "vocab_size", WORDS) or WORDS, WORDS)
    tokens = torch.randint(4, words, (2, LENGTH))
    if name == "pixel_values":
        given = _picture(getattr(config, "vision_config", config))
    elif name == "input_values":
        given = {name: torch.randn(1, 4000)}
    elif name == "input_features":
        given = {
            name: torch.randn(1, getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 32))
        }
    else:
        given = {name: tokens, "attention_mask": padding(2, LENGTH, 5).long()}
    if name == "input_ids" and hasattr(config, "vision_config") and "clip" in config.model_type:
        given |= _picture(config.vision_config)
    if getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = tokens[: given[name].shape[0], :9]
    return given


def _picture(vision: Any) -> dict[str, Any]:
    size = getattr(vision, "image_size", 32) or 32
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    return {"pixel_values": torch.randn(2, getattr(vision, "num_channels", 3) or 3, *sides)}


def transformers_models() -> Iterator[Stranger]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for model_type in MODEL_MAPPING_NAMES:
        if model_type in transformers.CONFIG_MAPPING:
            for attention in ("sdpa", "eager"):
                yield Stranger("transformers", f"{model_type}, {attention}", partial(build, model_type, attention))
