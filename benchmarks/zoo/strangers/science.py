"""Models of proteins, molecules, graphs and points, and building blocks for images."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, method, padding, ready, tokens


def esm1(name: str) -> Ready:
    alphabet = get("esm.data.Alphabet").from_architecture("ESM-1b" if name == "ESM2" else "roberta_large")
    model = get("esm.model.esm2.ESM2")(num_layers=2, embed_dim=32, attention_heads=2, alphabet=alphabet)
    ids = torch.randint(4, 20, (2, 16))
    ids[1, 12:] = alphabet.padding_idx
    return ready(model, ids)


def msa() -> Ready:
    from argparse import Namespace

    alphabet = get("esm.data.Alphabet").from_architecture("msa_transformer")
    args = Namespace(
        embed_dim=32, layers=1, attention_heads=2, ffn_embed_dim=64, max_tokens=256, max_tokens_per_msa=256, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, max_positions=64, embed_positions_msa=True, logit_bias=True,
        embed_positions_msa_dim=32, arch="msa_transformer",
    )  # fmt: skip
    return ready(get("esm.model.msa_transformer.MSATransformer")(args, alphabet), torch.randint(4, 20, (1, 4, 12)))


def enformer() -> Ready:
    model = get("enformer_pytorch.Enformer").from_hparams(
        dim=192, depth=1, heads=2, output_heads={"human": 4}, target_length=8, use_checkpointing=False, attn_dim_key=16
    )
    return ready(model, torch.randint(0, 5, (1, 1024)))


def en_transformer() -> Ready:
    return ready(get("en_transformer.EnTransformer")(dim=32, depth=1, dim_head=64, heads=2), floats(1, 8, 32), floats(1, 8, 3))


def se3() -> Ready:
    model = get("se3_transformer_pytorch.SE3Transformer")(dim=8, heads=2, depth=1, dim_head=4, num_degrees=2, valid_radius=10)
    return ready(model, floats(1, 8, 8), floats(1, 8, 3), mask=torch.ones(1, 8, dtype=torch.bool), return_type=0)


def equiformer() -> Ready:
    model = get("equiformer_pytorch.Equiformer")(dim=8, heads=2, depth=1, dim_head=4, num_degrees=2, l2_dist_attention=False)
    return ready(model, floats(1, 8, 8), floats(1, 8, 3), mask=torch.ones(1, 8, dtype=torch.bool))


def ipa() -> Ready:
    model = get("invariant_point_attention.InvariantPointAttention")(dim=32, heads=2, require_pairwise_repr=False)
    return ready(
        model, floats(1, 16, 32), rotations=torch.eye(3).expand(1, 16, 3, 3).clone(), translations=floats(1, 16, 3),
        mask=padding(1, 16, 3),
    )  # fmt: skip


def graph() -> Ready:
    model = get("graph_transformer_pytorch.GraphTransformer")(dim=32, depth=1, dim_head=16, heads=2, edge_dim=8)
    return ready(model, floats(1, 16, 32), floats(1, 16, 16, 8), mask=padding(1, 16, 3))


def molecule() -> Ready:
    model = get("molecule_attention_transformer.MAT")(dim_in=16, model_dim=32, dim_out=4, depth=1, heads=2)
    return ready(
        model, floats(2, 12, 16), mask=padding(2, 12, 3), adjacency_mat=torch.randint(0, 2, (2, 12, 12)).bool(),
        distance_mat=torch.rand(2, 12, 12),
    )  # fmt: skip


def alphafold(name: str) -> Ready:
    if name == "attention":
        model = get("alphafold3_pytorch.attention.Attention")(dim=32, dim_head=16, heads=2)
        return ready(model, floats(2, 16, 32), mask=padding(2, 16, 3))
    model = get("alphafold3_pytorch.alphafold3.AttentionPairBias")(dim=32, heads=2, dim_pairwise=16, dim_head=16)
    return ready(model, floats(1, 16, 32), pairwise_repr=floats(1, 16, 16, 16), mask=padding(1, 16, 3))


def block(path: str, *inputs: tuple[int, ...], **sizes: Any) -> Ready:
    return ready(get(path)(**sizes), *(floats(*shape) for shape in inputs))


HEADS = {"heads": 2, "dim_head": 16}


def sam_image() -> Ready:
    model = get("segment_anything.modeling.ImageEncoderViT")(
        img_size=64, patch_size=16, embed_dim=32, depth=2, num_heads=2, out_chans=16, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1,), rel_pos_zero_init=False,
    )  # fmt: skip
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
    vision = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    text = {"context_length": 16, "vocab_size": TOKENS, "width": 32, "heads": 2, "layers": 1, "embed_cls": True, "output_tokens": True}
    deep = {"context_length": 16, "vocab_size": TOKENS, "width": 32, "heads": 2, "layers": 1}
    return ready(get("open_clip.coca_model.CoCa")(32, deep, text, vision), floats(2, 3, 32, 32), tokens(2, 16))


def spandrel(name: str, *args: Any, **kwargs: Any) -> Ready:
    return ready(get(f"spandrel.architectures.{name}.__arch.{args[0]}")(**kwargs), floats(1, 3, 32, 32))


SCIENCE = (
    Stranger("fair-esm", "ESM-2", partial(esm1, "ESM2")),
    Stranger("fair-esm", "MSA transformer", msa),
    Stranger("enformer-pytorch", "Enformer", enformer),
    Stranger("en-transformer", "En-Transformer", en_transformer),
    Stranger("se3-transformer-pytorch", "SE3-Transformer", se3),
    Stranger("equiformer-pytorch", "Equiformer", equiformer),
    Stranger("invariant-point-attention", "IPA", ipa),
    Stranger("graph-transformer-pytorch", "transformer", graph),
    Stranger("molecule-attention-transformer", "MAT", molecule),
    Stranger("alphafold3-pytorch", "attention", partial(alphafold, "attention")),
    Stranger("alphafold3-pytorch", "pair bias", partial(alphafold, "pair")),
    Stranger("point-transformer-pytorch", "vector attention", lambda: block("point_transformer_pytorch.PointTransformerLayer", (1, 16, 32), (1, 16, 3), dim=32)),
    Stranger("egnn-pytorch", "global attention", lambda: method(get("egnn_pytorch.egnn_pytorch.GlobalLinearAttention")(dim=32, **HEADS), "forward", floats(1, 16, 32), floats(1, 4, 32))),
    Stranger("perceiver-pytorch", "Perceiver", lambda: block("perceiver_pytorch.Perceiver", (2, 8, 8, 3), num_freq_bands=2, depth=1, max_freq=4.0, num_latents=8, latent_dim=32, latent_heads=2, cross_dim_head=16, latent_dim_head=16, num_classes=4)),
    Stranger("perceiver-pytorch", "Perceiver IO", lambda: ready(get("perceiver_pytorch.PerceiverIO")(dim=32, queries_dim=32, depth=1, num_latents=8, latent_dim=32, latent_heads=2, cross_dim_head=16, latent_dim_head=16), floats(2, 16, 32), queries=floats(4, 32))),
    Stranger("slot-attention", "slots", lambda: block("slot_attention.SlotAttention", (2, 16, 32), num_slots=4, dim=32, iters=2)),
    Stranger("slot-attention", "multi-head", lambda: block("slot_attention.MultiHeadSlotAttention", (2, 16, 32), num_slots=4, dim=32, iters=1, heads=2, dim_head=16)),
    Stranger("axial-attention", "attention", lambda: block("axial_attention.AxialAttention", (1, 8, 8, 32), dim=32, heads=2)),
    Stranger("bottleneck-transformer-pytorch", "BoTNet", lambda: block("bottleneck_transformer_pytorch.BottleStack", (1, 16, 8, 8), dim=16, fmap_size=8, dim_out=32, num_layers=1, heads=2, dim_head=16, rel_pos_emb=True, downsample=False)),
    Stranger("deformable-attention", "2-D", lambda: block("deformable_attention.DeformableAttention2D", (1, 32, 16, 16), dim=32, **HEADS)),
    Stranger("gsa-pytorch", "GSA", lambda: block("gsa_pytorch.GSA", (1, 16, 8, 8), dim=16, dim_key=16, heads=2, rel_pos_length=8)),
    Stranger("segformer-pytorch", "Segformer", lambda: block("segformer_pytorch.Segformer", (1, 3, 64, 64), dims=(16, 16, 32, 32), heads=(1, 2, 2, 2), num_layers=1, decoder_dim=16)),
    Stranger("stam-pytorch", "STAM", lambda: block("stam_pytorch.STAM", (1, 4, 3, 32, 32), dim=32, image_size=32, patch_size=8, num_frames=4, num_classes=4, space_depth=1, space_heads=2, space_mlp_dim=64, time_depth=1, time_heads=2, time_mlp_dim=64, space_dim_head=16, time_dim_head=16)),
    Stranger("timesformer-pytorch", "TimeSformer", lambda: block("timesformer_pytorch.TimeSformer", (1, 4, 3, 32, 32), dim=32, image_size=32, patch_size=8, num_frames=4, num_classes=4, depth=1, **HEADS)),
    Stranger("transformer-in-transformer", "TNT", lambda: block("transformer_in_transformer.TNT", (1, 3, 32, 32), image_size=32, patch_dim=32, pixel_dim=8, patch_size=16, pixel_size=4, depth=1, num_classes=4, **HEADS)),
    Stranger("uniformer-pytorch", "UniFormer", lambda: block("uniformer_pytorch.Uniformer", (1, 3, 4, 64, 64), num_classes=4, dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), dim_head=16)),
    Stranger("swin-transformer-pytorch", "Swin", lambda: block("swin_transformer_pytorch.SwinTransformer", (1, 3, 112, 112), hidden_dim=16, layers=(2, 2, 2, 2), heads=(1, 1, 2, 2), num_classes=4, head_dim=16, window_size=7, downscaling_factors=(4, 2, 2, 1), relative_pos_embedding=True)),
    Stranger("cross-transformers-pytorch", "CrossTransformer", lambda: ready(get("cross_transformers_pytorch.CrossTransformer")(dim=16, dim_key=16, dim_value=16), torch.nn.Conv2d(3, 16, 4, 4), floats(1, 3, 16, 16), floats(1, 2, 3, 3, 16, 16))),
    Stranger("x-clip", "CLIP", lambda: ready(get("x_clip.CLIP")(dim_text=32, dim_image=32, dim_latent=32, num_text_tokens=TOKENS, text_enc_depth=1, text_seq_len=16, text_heads=2, text_dim_head=16, visual_enc_depth=1, visual_heads=2, visual_dim_head=16, visual_image_size=32, visual_patch_size=8, visual_patch_dropout=0.0), tokens(2, 16), floats(2, 3, 32, 32))),
    Stranger("segment-anything", "image encoder", sam_image),
    Stranger("segment-anything", "two-way", partial(two_way, "segment_anything.modeling.transformer")),
    Stranger("sam2", "two-way", partial(two_way, "sam2.modeling.sam.transformer")),
    Stranger("sam2", "memory attention", sam_memory),
    Stranger("open-clip-torch", "CLIP", partial(open_clip, False)),
    Stranger("open-clip-torch", "CoCa", coca),
    Stranger("dinov2", "ViT", lambda: block("dinov2.models.vision_transformer.DinoVisionTransformer", (1, 3, 56, 56), img_size=56, patch_size=14, embed_dim=32, depth=2, num_heads=2, block_chunks=0)),
    Stranger("hiera-transformer", "Hiera", lambda: block("hiera.hiera.Hiera", (1, 3, 64, 64), input_size=(64, 64), embed_dim=16, num_heads=1, stages=(1, 1, 1, 1), mask_unit_size=(4, 4), q_stride=(2, 2))),
    Stranger("pytorch-pretrained-vit", "ViT", lambda: block("pytorch_pretrained_vit.ViT", (1, 3, 32, 32), image_size=32, patches=8, dim=32, ff_dim=64, num_heads=2, num_layers=2, num_classes=4)),
    Stranger("self-attention-cv", "TransUNet", lambda: block("self_attention_cv.transunet.TransUnet", (1, 3, 128, 128), in_channels=3, img_dim=128, vit_blocks=1, vit_dim_linear_mhsa_block=64, classes=2, vit_heads=4)),
    Stranger("self-attention-cv", "axial", lambda: block("self_attention_cv.AxialAttentionBlock", (1, 16, 16, 16), in_channels=16, dim=16, heads=2)),
    Stranger("vformer", "Swin", lambda: block("vformer.models.SwinTransformer", (1, 3, 64, 64), img_size=64, patch_size=4, in_channels=3, n_classes=4, embedding_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4)),
    Stranger("spandrel", "SwinIR", lambda: spandrel("SwinIR", "SwinIR.SwinIR", img_size=32, embed_dim=24, depths=(2,), num_heads=(2,), window_size=8, mlp_ratio=2.0)),
    Stranger("spandrel", "HAT", lambda: spandrel("HAT", "HAT.HAT", img_size=32, embed_dim=24, depths=(2,), num_heads=(2,), window_size=8, mlp_ratio=2.0, upscale=2, upsampler="pixelshuffle")),
    Stranger("spandrel", "DAT", lambda: spandrel("DAT", "DAT.DAT", img_size=32, embed_dim=24, depth=(2,), num_heads=(2,), split_size=(8, 8), upscale=2)),
    Stranger("kornia", "LoFTR attention", lambda: block("kornia.feature.loftr.loftr_module.linear_attention.FullAttention", (1, 16, 2, 16), (1, 16, 2, 16), (1, 16, 2, 16))),
    Stranger("kornia", "LightGlue", lambda: ready(get("kornia.feature.lightglue.SelfBlock")(32, 2, True), floats(1, 16, 32), floats(2, 1, 1, 16, 16))),
)
__all__ = ["SCIENCE", "tokens"]
