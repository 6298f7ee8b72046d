"""Models that segment, describe, restore or match pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, ready, tokens
from benchmarks.zoo.strangers.parts import block


def sam_image() -> Ready:
    model = get("segment_anything.modeling.ImageEncoderViT")(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=2,
        out_chans=16,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
        rel_pos_zero_init=False,
    )
    return ready(model, floats(1, 3, 64, 64))


def two_way(package: str) -> Ready:
    model = get(f"{package}.TwoWayTransformer")(2, 32, 2, 64)
    return ready(model, floats(1, 32, 4, 4), floats(1, 32, 4, 4), floats(1, 5, 32))


def sam_memory() -> Ready:
    model = get("sam2.modeling.sam.transformer.RoPEAttention")(32, 2, feat_sizes=(4, 4))
    return ready(model, floats(1, 16, 32), floats(1, 16, 32), floats(1, 16, 32))


def open_clip(custom: bool) -> Ready:
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
    text = {"context_length": 16, "vocab_size": TOKENS, "width": 32, "heads": 2, "layers": 2}
    model = get("open_clip.model.CLIP")(32, vision, text)
    return ready(model, floats(2, 3, 32, 32), tokens(2, 16))


def coca() -> Ready:
    vision = {
        "image_size": 32,
        "patch_size": 8,
        "width": 32,
        "layers": 1,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    text = {
        "context_length": 16,
        "vocab_size": TOKENS,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    }
    deep = {"context_length": 16, "vocab_size": TOKENS, "width": 32, "heads": 2, "layers": 1}
    return ready(get("open_clip.coca_model.CoCa")(32, deep, text, vision), floats(2, 3, 32, 32), tokens(2, 16))


def spandrel(name: str, *args: Any, **kwargs: Any) -> Ready:
    return ready(get(f"spandrel.architectures.{name}.__arch.{args[0]}")(**kwargs), floats(1, 3, 32, 32))


PICTURES = (
    Stranger("segment-anything", "image encoder", sam_image),
    Stranger("segment-anything", "two-way", partial(two_way, "segment_anything.modeling.transformer")),
    Stranger("sam2", "two-way", partial(two_way, "sam2.modeling.sam.transformer")),
    Stranger("sam2", "memory attention", sam_memory),
    Stranger("open-clip-torch", "CLIP", partial(open_clip, False)),
    Stranger("open-clip-torch", "CoCa", coca),
    Stranger(
        "dinov2",
        "ViT",
        lambda: block(
            "dinov2.models.vision_transformer.DinoVisionTransformer",
            (1, 3, 56, 56),
            img_size=56,
            patch_size=14,
            embed_dim=32,
            depth=2,
            num_heads=2,
            block_chunks=0,
        ),
    ),
    Stranger(
        "hiera-transformer",
        "Hiera",
        lambda: block(
            "hiera.hiera.Hiera",
            (1, 3, 64, 64),
            input_size=(64, 64),
            embed_dim=16,
            num_heads=1,
            stages=(1, 1, 1, 1),
            mask_unit_size=(4, 4),
            q_stride=(2, 2),
        ),
    ),
    Stranger(
        "pytorch-pretrained-vit",
        "ViT",
        lambda: block(
            "pytorch_pretrained_vit.ViT",
            (1, 3, 32, 32),
            image_size=32,
            patches=8,
            dim=32,
            ff_dim=64,
            num_heads=2,
            num_layers=2,
            num_classes=4,
        ),
    ),
    Stranger(
        "self-attention-cv",
        "TransUNet",
        lambda: block(
            "self_attention_cv.transunet.TransUnet",
            (1, 3, 128, 128),
            in_channels=3,
            img_dim=128,
            vit_blocks=1,
            vit_dim_linear_mhsa_block=64,
            classes=2,
            vit_heads=4,
        ),
    ),
    Stranger(
        "self-attention-cv",
        "axial",
        lambda: block("self_attention_cv.AxialAttentionBlock", (1, 16, 16, 16), in_channels=16, dim=16, heads=2),
    ),
    Stranger(
        "vformer",
        "Swin",
        lambda: block(
            "vformer.models.SwinTransformer",
            (1, 3, 64, 64),
            img_size=64,
            patch_size=4,
            in_channels=3,
            n_classes=4,
            embedding_dim=16,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
    ),
    Stranger(
        "spandrel",
        "SwinIR",
        lambda: spandrel(
            "SwinIR",
            "SwinIR.SwinIR",
            img_size=32,
            embed_dim=24,
            depths=(2,),
            num_heads=(2,),
            window_size=8,
            mlp_ratio=2.0,
        ),
    ),
    Stranger(
        "spandrel",
        "HAT",
        lambda: spandrel(
            "HAT",
            "HAT.HAT",
            img_size=32,
            embed_dim=24,
            depths=(2,),
            num_heads=(2,),
            window_size=8,
            mlp_ratio=2.0,
            upscale=2,
            upsampler="pixelshuffle",
        ),
    ),
    Stranger(
        "spandrel",
        "DAT",
        lambda: spandrel(
            "DAT", "DAT.DAT", img_size=32, embed_dim=24, depth=(2,), num_heads=(2,), split_size=(8, 8), upscale=2
        ),
    ),
    Stranger(
        "kornia",
        "LoFTR attention",
        lambda: block(
            "kornia.feature.loftr.loftr_module.linear_attention.FullAttention",
            (1, 16, 2, 16),
            (1, 16, 2, 16),
            (1, 16, 2, 16),
        ),
    ),
    Stranger(
        "kornia",
        "LightGlue",
        lambda: ready(
            get("kornia.feature.lightglue.SelfBlock")(32, 2, True), floats(1, 16, 32), floats(2, 1, 1, 16, 16)
        ),
    ),
)
