"""Models that look at images, videos and points."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.zoo.stranger import Ready, Stranger, floats, get, method, ready

SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 10, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
VIT: dict[str, dict[str, Any]] = {
    "ViT": {"dim_head": 16},
    "simple_vit.SimpleViT": {"dim_head": 16},
    "deepvit.DeepViT": {"dim_head": 16},
    "vit_for_small_dataset.ViT": {"dim_head": 16},
    "parallel_vit.ViT": {"dim_head": 16},
    "learnable_memory_vit.ViT": {"dim_head": 16},
    "simple_vit_with_qk_norm.SimpleViT": {"dim_head": 16},
    "simple_vit_with_value_residual.SimpleViT": {"dim_head": 16},
    "normalized_vit.nViT": {"dim_head": 16},
    "cait.CaiT": {"dim_head": 16, "cls_depth": 1},
    "xcit.XCiT": {"dim_head": 16, "cls_depth": 1},
    "look_vit.LookViT": {"cross_attn_heads": 2, "cross_attn_dim_head": 16, "dim_head": 16},
    "cct.CCT": {},
    "na_vit_nested_tensor.NaViT": {},
}


def vit(name: str) -> Ready:
    sizes = {**SMALL, **VIT[name]}
    if name == "look_vit.LookViT":
        sizes = {**sizes, "mlp_factor": 2, "highres_patch_size": 4}
        sizes.pop("mlp_dim")
    if name == "cct.CCT":
        sizes = {
            "img_size": 32,
            "embedding_dim": 32,
            "num_layers": 2,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 10,
        }
    return ready(get(f"vit_pytorch.{name}")(**sizes), floats(2, 3, 32, 32))


def of_vit(name: str, shape: tuple[int, ...] = (2, 3, 32, 32), **sizes: Any) -> Ready:
    return ready(get(f"vit_pytorch.{name}")(**sizes), floats(*shape))


STAGES = {"image_size": 64, "num_classes": 10, "dim": (16, 32), "heads": (1, 2), "depth": (1, 1), "mlp_mult": 2}
MORE_VIT: dict[str, Callable[[], Ready]] = {
    "levit.LeViT": partial(
        of_vit,
        "levit.LeViT",
        (2, 3, 64, 64),
        image_size=64,
        num_classes=10,
        stages=2,
        dim=(16, 32),
        depth=1,
        heads=(2, 4),
        mlp_mult=2,
        dim_key=8,
        dim_value=8,
    ),
    "cvt.CvT": partial(
        of_vit,
        "cvt.CvT",
        (2, 3, 64, 64),
        num_classes=10,
        s1_emb_dim=16,
        s1_heads=1,
        s1_depth=1,
        s2_emb_dim=32,
        s2_heads=2,
        s2_depth=1,
        s3_emb_dim=32,
        s3_heads=2,
        s3_depth=1,
    ),
    "twins_svt.TwinsSVT": partial(
        of_vit,
        "twins_svt.TwinsSVT",
        (2, 3, 224, 224),
        num_classes=10,
        s1_emb_dim=16,
        s1_depth=1,
        s2_emb_dim=16,
        s2_depth=1,
        s3_emb_dim=16,
        s3_depth=1,
        s4_emb_dim=16,
        s4_depth=1,
        peg_kernel_size=3,
        s1_local_patch_size=7,
    ),
    "regionvit.RegionViT": partial(
        of_vit,
        "regionvit.RegionViT",
        (1, 3, 224, 224),
        dim=(16, 16, 16, 32),
        depth=(1, 1, 1, 1),
        window_size=7,
        num_classes=10,
        tokenize_local_3_conv=False,
    ),
    "cross_vit.CrossViT": partial(
        of_vit,
        "cross_vit.CrossViT",
        (2, 3, 64, 64),
        image_size=64,
        num_classes=10,
        depth=1,
        sm_dim=16,
        sm_patch_size=16,
        sm_enc_depth=1,
        sm_enc_heads=2,
        sm_enc_mlp_dim=32,
        sm_enc_dim_head=16,
        lg_dim=32,
        lg_patch_size=32,
        lg_enc_depth=1,
        lg_enc_heads=2,
        lg_enc_mlp_dim=32,
        lg_enc_dim_head=16,
        cross_attn_depth=1,
        cross_attn_heads=2,
        cross_attn_dim_head=16,
    ),
    "max_vit.MaxViT": partial(
        of_vit,
        "max_vit.MaxViT",
        (1, 3, 64, 64),
        num_classes=10,
        dim_conv_stem=16,
        dim=16,
        dim_head=8,
        depth=(1, 1),
        window_size=4,
    ),
    "mobile_vit.MobileViT": partial(
        of_vit,
        "mobile_vit.MobileViT",
        (1, 3, 256, 256),
        image_size=(256, 256),
        dims=[16, 16, 16],
        channels=[8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 16],
        num_classes=10,
    ),
    "nest.NesT": partial(
        of_vit,
        "nest.NesT",
        (1, 3, 64, 64),
        image_size=64,
        patch_size=4,
        dim=16,
        heads=2,
        num_hierarchies=2,
        block_repeats=(1, 1),
        num_classes=10,
    ),
    "scalable_vit.ScalableViT": partial(
        of_vit,
        "scalable_vit.ScalableViT",
        (1, 3, 256, 256),
        num_classes=10,
        dim=16,
        heads=(1, 1, 1, 2),
        depth=(1, 1, 1, 1),
        ssa_dim_key=(8, 8, 8, 8),
        reduction_factor=(8, 4, 2, 1),
        window_size=(64, 32, None, None),
    ),
    "sep_vit.SepViT": partial(
        of_vit,
        "sep_vit.SepViT",
        (1, 3, 224, 224),
        num_classes=10,
        dim=16,
        dim_head=8,
        heads=(1, 1, 2, 2),
        depth=(1, 1, 1, 1),
        window_size=7,
    ),
    "t2t.T2TViT": partial(
        of_vit,
        "t2t.T2TViT",
        (1, 3, 64, 64),
        dim=32,
        image_size=64,
        depth=1,
        heads=2,
        mlp_dim=64,
        num_classes=10,
        t2t_layers=((7, 4), (3, 2), (3, 2)),
    ),
    "pit.PiT": partial(
        of_vit,
        "pit.PiT",
        (2, 3, 56, 56),
        image_size=56,
        patch_size=14,
        dim=32,
        num_classes=10,
        depth=(1, 1),
        heads=2,
        mlp_dim=64,
    ),
    "ats_vit.ViT": partial(of_vit, "ats_vit.ViT", **SMALL, max_tokens_per_depth=(8, 6), dim_head=16),
    "vit_3d.ViT": partial(
        of_vit,
        "vit_3d.ViT",
        (2, 3, 4, 32, 32),
        image_size=32,
        frames=4,
        image_patch_size=8,
        frame_patch_size=2,
        num_classes=10,
        dim=32,
        depth=2,
        heads=2,
        mlp_dim=64,
    ),
    "simple_vit_1d.SimpleViT": partial(
        of_vit,
        "simple_vit_1d.SimpleViT",
        (2, 3, 64),
        seq_len=64,
        patch_size=8,
        num_classes=10,
        dim=32,
        depth=2,
        heads=2,
        mlp_dim=64,
    ),
}


def timm(name: str, size: int = 64, **sizes: Any) -> Ready:
    model = get("timm.create_model")(name, pretrained=False, num_classes=10, **sizes)
    return ready(model, floats(1, 3, size, size))


TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "beit_base_patch16_224": {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 4},
    "eva02_tiny_patch14_224": {"img_size": 56, "size": 56, "depth": 2},
    "cait_xxs24_224": {"img_size": 64, "depth": 2},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56,
        "size": 56,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 2),
    },
    "swinv2_tiny_window8_256": {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)},
    "crossvit_9_240": {"size": 240},
    "coat_lite_tiny": {"img_size": 64, "serial_depths": (1, 1, 1, 1)},
    "convit_tiny": {"img_size": 64, "depth": 4, "local_up_to_layer": 2},
    "levit_128s": {"size": 224},
    "tnt_s_patch16_224": {"img_size": 64, "depth": 2},
    "twins_pcpvt_small": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "davit_tiny": {"size": 224, "depths": (1, 1, 1, 1)},
    "efficientformer_l1": {"size": 224},
    "efficientvit_m0": {"size": 224},
    "fastvit_sa12": {"size": 256},
    "halonet26t": {"size": 256},
    "botnet26t_256": {"size": 256},
    "samvit_base_patch16": {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 4, "global_attn_indexes": (1,)},
    "hiera_tiny_224": {"size": 224, "stages": (1, 1, 1, 1)},
    "vit_relpos_small_patch16_224": {"img_size": 64, "depth": 2},
    "naflexvit_base_patch16_gap": {"depth": 2, "embed_dim": 64, "num_heads": 4},
    "tiny_vit_5m_224": {"size": 224},
}


def torchvision(name: str, size: int = 224, **sizes: Any) -> Ready:
    return ready(get(f"torchvision.models.{name}")(**sizes), floats(1, 3, size, size))


def vformer(name: str, *args: Any, size: int = 64, **kwargs: Any) -> Ready:
    return ready(get(f"vformer.models.{name}")(*args, **kwargs), floats(1, 3, size, size))


IMAGES = (
    *(Stranger("vit-pytorch", name, partial(vit, name)) for name in VIT),
    *(Stranger("vit-pytorch", name, make) for name, make in MORE_VIT.items()),
    *(Stranger("timm", name, partial(timm, name, **sizes)) for name, sizes in TIMM.items()),
    Stranger("torchvision", "vit_b_16", partial(torchvision, "vit_b_16")),
)
__all__ = ["IMAGES", "method", "vformer"]
