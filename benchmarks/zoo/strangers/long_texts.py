"""Models whose attention is made cheaper: for long texts, with memories, in parts. Much of it no kernel computes."""

from __future__ import annotations

from typing import Any

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, method, padding, ready, tokens

LM = {"num_tokens": TOKENS, "dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "max_seq_len": 64}


def lm(path: str, *args: Any, **changed: Any) -> Ready:
    sizes = {key: value for key, value in {**LM, **changed}.items() if value is not None}
    return ready(get(path)(**sizes), *(args or (tokens(),)))


LONG_TEXTS = (
    Stranger("linformer", "LM", lambda: ready(get("linformer.LinformerLM")(TOKENS, 32, 32, 2, k=8, heads=2), tokens())),
    Stranger(
        "reformer-pytorch", "full attention", lambda: lm("reformer_pytorch.ReformerLM", use_full_attn=True, causal=True)
    ),
    Stranger(
        "reformer-pytorch", "LSH", lambda: lm("reformer_pytorch.ReformerLM", bucket_size=8, n_hashes=2, causal=True)
    ),
    Stranger(
        "routing-transformer",
        "LM",
        lambda: lm("routing_transformer.RoutingTransformerLM", window_size=8, local_attn_window_size=8, causal=True),
    ),
    Stranger("performer-pytorch", "LM", lambda: lm("performer_pytorch.PerformerLM", nb_features=16)),
    Stranger(
        "performer-pytorch",
        "local heads",
        lambda: lm("performer_pytorch.PerformerLM", nb_features=16, local_attn_heads=1, local_window_size=8),
    ),
    Stranger(
        "memory-efficient-attention-pytorch",
        "attention",
        lambda: ready(
            get("memory_efficient_attention_pytorch.Attention")(dim=32, heads=2, dim_head=16, causal=True),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "memory-efficient-attention-pytorch",
        "cosine",
        lambda: ready(
            get("memory_efficient_attention_pytorch.CosineSimAttention")(dim=32, seq_len=32, heads=2, dim_head=16),
            floats(2, 32, 32),
            mask=padding(),
        ),
    ),
    Stranger(
        "memory-efficient-attention-pytorch",
        "in chunks",
        lambda: ready(
            get("memory_efficient_attention_pytorch.Attention")(
                dim=32, heads=2, dim_head=16, memory_efficient=True, q_bucket_size=16, k_bucket_size=16
            ),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "local-attention", "transformer", lambda: lm("local_attention.LocalTransformer", local_attn_window_size=8)
    ),
    Stranger(
        "block-recurrent-transformer-pytorch",
        "transformer",
        lambda: lm(
            "block_recurrent_transformer_pytorch.BlockRecurrentTransformer",
            block_width=16,
            max_seq_len=32,
            num_state_vectors=8,
        ),
    ),
    Stranger(
        "recurrent-memory-transformer-pytorch",
        "transformer",
        lambda: lm(
            "recurrent_memory_transformer_pytorch.RecurrentMemoryTransformer",
            max_seq_len=None,
            seq_len=32,
            num_memory_tokens=4,
        ),
    ),
    Stranger(
        "memorizing-transformers-pytorch",
        "attention",
        lambda: ready(
            get("memorizing_transformers_pytorch.memorizing_transformers_pytorch.Attention")(
                dim=32, heads=2, dim_head=16
            ),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "compressive-transformer-pytorch",
        "transformer",
        lambda: lm(
            "compressive_transformer_pytorch.CompressiveTransformer",
            dim_head=None,
            max_seq_len=None,
            seq_len=32,
            mem_len=32,
            cmem_len=8,
        ),
    ),
    Stranger(
        "feedback-transformer-pytorch",
        "transformer",
        lambda: lm(
            "feedback_transformer_pytorch.FeedbackTransformer", tokens(2, 4), max_seq_len=None, mem_len=8, seq_len=2
        ),
    ),
    Stranger(
        "fast-transformer-pytorch",
        "transformer",
        lambda: ready(get("fast_transformer_pytorch.FastTransformer")(**LM), tokens(), mask=padding()),
    ),
    Stranger("h-transformer-1d", "transformer", lambda: lm("h_transformer_1d.HTransformer1D", block_size=8)),
    Stranger(
        "hourglass-transformer-pytorch",
        "LM",
        lambda: lm(
            "hourglass_transformer_pytorch.HourglassTransformerLM", depth=(1, 1, 1), dim_head=None, shorten_factor=2
        ),
    ),
    Stranger(
        "infini-transformer-pytorch",
        "transformer",
        lambda: lm("infini_transformer_pytorch.InfiniTransformer", max_seq_len=None),
    ),
    Stranger(
        "long-short-transformer",
        "transformer",
        lambda: lm("long_short_transformer.LongShortTransformer", window_size=8, segment_size=4, r=1),
    ),
    Stranger(
        "megabyte-pytorch",
        "transformer",
        lambda: lm("MEGABYTE_pytorch.MEGABYTE", depth=(1, 1), dim=(32, 16), max_seq_len=(8, 4), dim_head=16),
    ),
    Stranger(
        "multistream-transformers",
        "transformer",
        lambda: lm("multistream_transformers.MultistreamTransformer", num_streams=2),
    ),
    Stranger(
        "simple-hierarchical-transformer",
        "transformer",
        lambda: lm(
            "simple_hierarchical_transformer.HierarchicalTransformer",
            max_seq_len=None,
            seq_len=32,
            hierarchies=(1, 2),
            window_sizes=(8, None),
        ),
    ),
    Stranger(
        "sinkhorn-transformer",
        "LM",
        lambda: lm("sinkhorn_transformer.SinkhornTransformerLM", dim_head=16, bucket_size=8),
    ),
    Stranger(
        "tranception-pytorch", "transformer", lambda: lm("tranception_pytorch.Tranception", max_seq_len=None, heads=4)
    ),
    Stranger(
        "titans-pytorch",
        "memory as context",
        lambda: lm(
            "titans_pytorch.MemoryAsContextTransformer",
            max_seq_len=None,
            segment_len=8,
            num_persist_mem_tokens=2,
            num_longterm_mem_tokens=2,
            neural_memory_layers=(),
        ),
    ),
    Stranger(
        "native-sparse-attention-pytorch",
        "attention",
        lambda: ready(
            get("native_sparse_attention_pytorch.SparseAttention")(
                dim=32,
                dim_head=16,
                heads=2,
                sliding_window_size=4,
                compress_block_size=4,
                compress_block_sliding_stride=4,
                selection_block_size=4,
                num_selected_blocks=2,
            ),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "colt5-attention",
        "attention",
        lambda: ready(
            get("colt5_attention.ConditionalRoutedAttention")(
                dim=32,
                light_dim_head=16,
                light_heads=2,
                light_window_size=8,
                heavy_dim_head=16,
                heavy_heads=2,
                num_heavy_tokens_q=8,
                num_heavy_tokens_kv=8,
            ),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "flash-pytorch",
        "FLASH",
        lambda: ready(
            get("flash_pytorch.FLASHTransformer")(dim=32, num_tokens=TOKENS, depth=2, group_size=8, query_key_dim=16),
            tokens(),
        ),
    ),
    Stranger(
        "mega-pytorch",
        "Mega",
        lambda: ready(
            get("mega_pytorch.Mega")(
                dim=32, num_tokens=TOKENS, depth=2, ema_heads=4, attn_dim_qk=16, attn_dim_value=32
            ),
            tokens(),
        ),
    ),
    Stranger(
        "agent-attention-pytorch",
        "transformer",
        lambda: ready(
            get("agent_attention_pytorch.AgentTransformer")(dim=32, num_agent_tokens=4, depth=1, heads=2, dim_head=16),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "nystrom-attention",
        "Nyströmformer",
        lambda: ready(
            get("nystrom_attention.Nystromformer")(
                dim=32, depth=1, heads=2, dim_head=16, num_landmarks=8, pinv_iterations=2
            ),
            floats(2, 32, 32),
            mask=padding(),
        ),
    ),
    Stranger(
        "retro-pytorch",
        "RETRO",
        lambda: method(
            get("retro_pytorch.RETRO")(
                num_tokens=TOKENS,
                max_seq_len=32,
                enc_dim=32,
                enc_depth=1,
                dec_depth=2,
                dec_cross_attn_layers=(1, 2),
                heads=2,
                dec_dim=32,
                dim_head=48,
                chunk_size=8,
            ),
            "forward",
            tokens(2, 33),
            retrieved=tokens(2, 4, 2, 16),
        ),
    ),
    Stranger(
        "transfusion-pytorch",
        "transformer",
        lambda: ready(
            get("transfusion_pytorch.transfusion.Transformer")(dim=32, depth=2, dim_head=16, heads=2), floats(2, 32, 32)
        ),
    ),
    Stranger(
        "isab-pytorch",
        "ISAB",
        lambda: ready(
            get("isab_pytorch.ISAB")(dim=32, heads=2, num_latents=4, latent_self_attend=True),
            floats(2, 32, 32),
            mask=padding(),
        ),
    ),
    Stranger(
        "bidirectional-cross-attention",
        "transformer",
        lambda: ready(
            get("bidirectional_cross_attention.BidirectionalCrossAttentionTransformer")(
                dim=32, depth=1, context_dim=32, heads=2, dim_head=16
            ),
            floats(2, 16, 32),
            floats(2, 32, 32),
            mask=padding(2, 16),
            context_mask=padding(),
        ),
    ),
    Stranger(
        "htm-pytorch",
        "attention",
        lambda: ready(
            get("htm_pytorch.HTMAttention")(dim=32, heads=2, topk_mems=2, mem_chunk_size=8, dim_head=16),
            floats(2, 4, 32),
            floats(2, 32, 32),
        ),
    ),
    Stranger(
        "charformer-pytorch",
        "GBST",
        lambda: ready(
            get("charformer_pytorch.GBST")(num_tokens=TOKENS, dim=32, max_block_size=4, downsample_factor=4),
            tokens(),
            mask=padding(),
        ),
    ),
    Stranger(
        "aoa-pytorch",
        "attention on attention",
        lambda: ready(get("aoa_pytorch.AoA")(dim=32, heads=2, dim_head=16), floats(2, 32, 32)),
    ),
    Stranger(
        "area-attention",
        "multi-head",
        lambda: ready(
            get("area_attention.MultiHeadAreaAttention")(
                area_attention=get("area_attention.AreaAttention")(
                    key_query_size=32,
                    max_area_height=2,
                    max_area_width=2,
                    memory_height=4,
                    memory_width=4,
                    dropout_rate=0.0,
                ),
                num_heads=2,
                key_query_size=32,
                key_query_size_hidden=32,
                value_size=32,
                value_size_hidden=32,
            ),
            floats(2, 8, 32),
            floats(2, 16, 32),
            floats(2, 16, 32),
        ),
    ),
)
