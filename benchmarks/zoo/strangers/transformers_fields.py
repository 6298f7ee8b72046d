"""The names of the fields of transformers' configurations: which of them are sizes, and of what."""

from __future__ import annotations

import re
from typing import Any

WORDS = 256
ORDINARY = WORDS // 2  # the words from here on are special: no input has them by chance
FIXED = {  # what the way "fixed" sets, where the default is larger
    64: (
        "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim hidden_dim encoder_hidden_size "
        "decoder_hidden_size projection_dim adapter_hidden_size d_embed proj_dim attention_hidden_size"
    ),
    96: (
        "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_inner d_inner_hid "
        "moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size mlp_hidden_size"
    ),
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads",
    2: "num_key_value_heads n_head_kv num_kv_heads",
    16: "head_dim d_kv d_head attention_head_dim qk_nope_head_dim v_head_dim kv_channels rotary_dim",
    8: "qk_rope_head_dim",
    32: "kv_lora_rank q_lora_rank",
}
SMALL = {name: size for size, names in FIXED.items() for name in names.split()}
WIDE = re.compile(
    r"hidden_sizes?|d_model|n_embd|dim|embed_dims?|width|hidden_dim|encoder_embed_dim|emb_dim|embed_dim_per_stage"
)
SCALED = re.compile(
    r"(.*_)?(hidden_sizes?|intermediate_sizes?|intermediate_dim|dims?|channels?|width|lora_rank|d_model|n_embd|n_inner|d_inner|"
    r"d_ff|d_embed|embedding_size|units|output_size|input_size|feature_sizes?|proj_size|projection_size|channel_list|"
    r"hidden_size_.*|embed_dim_.*|d_latents|upsample_groups|mamba_headdim|.*_dim_per_.*)"
)
KEPT = re.compile(
    r".*head_dim|.*dim_head|head.*|in_channels|out_channels|feature_projection.*|num_.*|n_.*_head_dim|.*kernel.*|rotary_dim|conv_dim|audio_channels|d_kv|d_head|.*_conv_.*dim|patch_.*|query_dim"
)
HEADS = re.compile(
    r"(.*_)?(num_attention_heads|attention_heads|n_heads?|num_heads|num_key_value_heads|n_head_kv|num_kv_heads)(_.*)?"
)
DEPTH = re.compile(
    r"(.*_)?(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_decoder_layers|num_encoder_layers|depth|layers|"
    r"num_blocks?|n_block|num_spatial_layers|num_temporal_layers|num_auxiliary_layers|num_self_attends_per_block)"
)
NOT_DEPTH = re.compile(
    r".*(lstm|conv|adapter|extract|prediction|mtp|nextn|residual|postnet|predictor|dense|head|hypernet|shared).*"
)
MARKS = re.compile(r"(image|audio|video)_token_(id|index)")
AREAS = re.compile(r"mm_tokens_per_image|image_seq_length|num_image_tokens")
IMAGES = re.compile(r"(?!pretrain).*image_size|image_embedding_size|.*feat_sizes|.*feature_sizes")
STAGES = re.compile(r"depths|stage_numb_of_layers|stage_num_blocks")
EXPERTS = re.compile(r"(.*_)?(num_experts|num_local_experts|n_routed_experts|moe_num_experts)")
CHOSEN = re.compile(r"(.*_)?(num_experts_per_tok(en)?|moe_topk|moe_k|top_?k_experts)")
PLACES = re.compile(r".*(_indices|_indexes|_idxs|_idx|_layers|_blocks|_ids|_layer)")
DROPOUT = re.compile(r".*(dropout|drop_rate|pdrop|layerdrop|drop_path|attn_drop).*")
WORD = re.compile(r".*(token_id|token_index|_token_ids)")
ONE = {"n_group", "topk_group", "num_expert_group", "n_groups_of_experts"}
ALWAYS = {"use_cache": False, "use_mamba_kernels": False, "use_timm_backbone": False, "use_pretrained_backbone": False}
NOT_GIVEN = {"transformers_version", "architectures", "stage_names", "id2label", "label2id", "num_labels"}
THIN = {"hidden_dim": 2560, "depth_coefficient": 0.1, "image_size": 64}
SERIES = {"prediction_length": 8, "context_length": 16}
STARTS = {"vision_start_token_id": 200, "vision_end_token_id": 201, "audio_start_token_id": 202}
SPECIAL: dict[str, dict[str, Any]] = {  # by model type: what is missing in the default, and no rule can know
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "align": {"projection_dim": 640},
    "esm": {"pad_token_id": 1},
    "gemma3": {"mm_tokens_per_image": 4},
    "emu3": {"vocabulary_map": {"<image>": 8, "<|extra_200|>": 9}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 10000.0}},
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    **{name: dict(THIN) for name in ("efficientnet", "align_vision_model")},
    **{name: dict(SERIES) for name in ("autoformer", "informer", "time_series_transformer")},
    **{name: dict(STARTS) for name in ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")},
}
UNSET = {
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 96,
    "top_k_experts": 2,
    "vocab_size": WORDS,
}
LONGEST = {  # a buffer of its square, or a table, is made of some
    "max_position_embeddings": 512,
    "n_positions": 512,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "max_seq_len": 512,
    "sliding_window": 8,
    "num_frames": 4,
    "num_queries": 8,
    "num_query_tokens": 8,
}
