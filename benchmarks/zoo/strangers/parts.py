"""Parts that others build models of, most of them for images."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, ready, tokens


def block(path: str, *inputs: tuple[int, ...], **sizes: Any) -> Ready:
    return ready(get(path)(**sizes), *(floats(*shape) for shape in inputs))


HEADS = {"heads": 2, "dim_head": 16}


PARTS = (
    Stranger(
        "perceiver-pytorch",
        "Perceiver",
        lambda: block(
            "perceiver_pytorch.Perceiver",
            (2, 8, 8, 3),
            num_freq_bands=2,
            depth=1,
            max_freq=4.0,
            num_latents=8,
            latent_dim=32,
            latent_heads=2,
            cross_dim_head=16,
            latent_dim_head=16,
            num_classes=4,
        ),
    ),
    Stranger(
        "perceiver-pytorch",
        "Perceiver IO",
        lambda: ready(
            get("perceiver_pytorch.PerceiverIO")(
                dim=32,
                queries_dim=32,
                depth=1,
                num_latents=8,
                latent_dim=32,
                latent_heads=2,
                cross_dim_head=16,
                latent_dim_head=16,
            ),
            floats(2, 16, 32),
            queries=floats(4, 32),
        ),
    ),
    Stranger(
        "slot-attention",
        "slots",
        lambda: block("slot_attention.SlotAttention", (2, 16, 32), num_slots=4, dim=32, iters=2),
    ),
    Stranger(
        "slot-attention",
        "multi-head",
        lambda: block(
            "slot_attention.MultiHeadSlotAttention", (2, 16, 32), num_slots=4, dim=32, iters=1, heads=2, dim_head=16
        ),
    ),
    Stranger(
        "axial-attention", "attention", lambda: block("axial_attention.AxialAttention", (1, 8, 8, 32), dim=32, heads=2)
    ),
    Stranger(
        "bottleneck-transformer-pytorch",
        "BoTNet",
        lambda: block(
            "bottleneck_transformer_pytorch.BottleStack",
            (1, 16, 8, 8),
            dim=16,
            fmap_size=8,
            dim_out=32,
            num_layers=1,
            heads=2,
            dim_head=16,
            rel_pos_emb=True,
            downsample=False,
        ),
    ),
    Stranger(
        "deformable-attention",
        "2-D",
        lambda: block("deformable_attention.DeformableAttention2D", (1, 32, 16, 16), dim=32, **HEADS),
    ),
    Stranger(
        "gsa-pytorch",
        "GSA",
        lambda: block("gsa_pytorch.GSA", (1, 16, 8, 8), dim=16, dim_key=16, heads=2, rel_pos_length=8),
    ),
    Stranger(
        "segformer-pytorch",
        "Segformer",
        lambda: block(
            "segformer_pytorch.Segformer",
            (1, 3, 64, 64),
            dims=(16, 16, 32, 32),
            heads=(1, 2, 2, 2),
            num_layers=1,
            decoder_dim=16,
        ),
    ),
    Stranger(
        "stam-pytorch",
        "STAM",
        lambda: block(
            "stam_pytorch.STAM",
            (1, 4, 3, 32, 32),
            dim=32,
            image_size=32,
            patch_size=8,
            num_frames=4,
            num_classes=4,
            space_depth=1,
            space_heads=2,
            space_mlp_dim=64,
            time_depth=1,
            time_heads=2,
            time_mlp_dim=64,
            space_dim_head=16,
            time_dim_head=16,
        ),
    ),
    Stranger(
        "timesformer-pytorch",
        "TimeSformer",
        lambda: block(
            "timesformer_pytorch.TimeSformer",
            (1, 4, 3, 32, 32),
            dim=32,
            image_size=32,
            patch_size=8,
            num_frames=4,
            num_classes=4,
            depth=1,
            **HEADS,
        ),
    ),
    Stranger(
        "transformer-in-transformer",
        "TNT",
        lambda: block(
            "transformer_in_transformer.TNT",
            (1, 3, 32, 32),
            image_size=32,
            patch_dim=32,
            pixel_dim=8,
            patch_size=16,
            pixel_size=4,
            depth=1,
            num_classes=4,
            **HEADS,
        ),
    ),
    Stranger(
        "uniformer-pytorch",
        "UniFormer",
        lambda: block(
            "uniformer_pytorch.Uniformer",
            (1, 3, 4, 64, 64),
            num_classes=4,
            dims=(16, 16, 32, 32),
            depths=(1, 1, 1, 1),
            dim_head=16,
        ),
    ),
    Stranger(
        "swin-transformer-pytorch",
        "Swin",
        lambda: block(
            "swin_transformer_pytorch.SwinTransformer",
            (1, 3, 112, 112),
            hidden_dim=16,
            layers=(2, 2, 2, 2),
            heads=(1, 1, 2, 2),
            num_classes=4,
            head_dim=16,
            window_size=7,
            downscaling_factors=(4, 2, 2, 1),
            relative_pos_embedding=True,
        ),
    ),
    Stranger(
        "cross-transformers-pytorch",
        "CrossTransformer",
        lambda: ready(
            get("cross_transformers_pytorch.CrossTransformer")(dim=16, dim_key=16, dim_value=16),
            torch.nn.Conv2d(3, 16, 4, 4),
            floats(1, 3, 16, 16),
            floats(1, 2, 3, 3, 16, 16),
        ),
    ),
    Stranger(
        "x-clip",
        "CLIP",
        lambda: ready(
            get("x_clip.CLIP")(
                dim_text=32,
                dim_image=32,
                dim_latent=32,
                num_text_tokens=TOKENS,
                text_enc_depth=1,
                text_seq_len=16,
                text_heads=2,
                text_dim_head=16,
                visual_enc_depth=1,
                visual_heads=2,
                visual_dim_head=16,
                visual_image_size=32,
                visual_patch_size=8,
                visual_patch_dropout=0.0,
            ),
            tokens(2, 16),
            floats(2, 3, 32, 32),
        ),
    ),
)
