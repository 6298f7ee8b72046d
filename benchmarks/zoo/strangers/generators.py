"""Models that make images, videos and sounds: diffusion and masked tokens."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.zoo.stranger import TOKENS, Ready, Stranger, floats, get, method, padding, ready, tokens

SMALL = {"dim": 32, "depth": 1, "heads": 2, "dim_head": 16}


def denoiser() -> Ready:
    model = get("denoising_diffusion_pytorch.Unet")(dim=16, dim_mults=(1, 2), attn_dim_head=16, attn_heads=2)
    return ready(model, floats(1, 3, 16, 16), torch.tensor([3]))


def denoiser_1d() -> Ready:
    model = get("denoising_diffusion_pytorch.Unet1D")(
        dim=16, dim_mults=(1, 2), channels=4, attn_dim_head=16, attn_heads=2
    )
    return ready(model, floats(1, 4, 32), torch.tensor([3]))


def karras() -> Ready:
    model = get("denoising_diffusion_pytorch.karras_unet.KarrasUnet")(
        image_size=16, dim=16, dim_max=32, num_downsamples=1, num_blocks_per_stage=1, attn_res=(16, 8), attn_dim_head=16
    )
    return ready(model, floats(1, 4, 16, 16), time=torch.rand(1))


def uvit() -> Ready:
    model = get("denoising_diffusion_pytorch.simple_diffusion.UViT")(
        dim=16, dim_mults=(1, 2), vit_depth=1, attn_dim_head=16, attn_heads=2, ff_mult=2, init_img_transform=None
    )
    return ready(model, floats(1, 3, 32, 32), torch.rand(1))


def prior() -> Ready:
    model = get("dalle2_pytorch.dalle2_pytorch.DiffusionPriorNetwork")(**SMALL, num_timesteps=10, max_text_len=16)
    return ready(model, floats(2, 32), torch.tensor([3, 4]), text_embed=floats(2, 32), text_encodings=floats(2, 12, 32))


def decoder() -> Ready:
    model = get("dalle2_pytorch.Unet")(
        dim=16,
        image_embed_dim=32,
        text_embed_dim=32,
        cond_dim=16,
        channels=3,
        dim_mults=(1, 2),
        num_image_tokens=2,
        cond_on_text_encodings=True,
        attn_dim_head=16,
        attn_heads=2,
    )
    return ready(
        model, floats(1, 3, 16, 16), torch.tensor([3]), image_embed=floats(1, 32), text_encodings=floats(1, 8, 32)
    )


def imagen() -> Ready:
    import transformers

    wanted = transformers.T5Config.from_pretrained
    transformers.T5Config.from_pretrained = lambda *_, **__: transformers.T5Config(
        d_model=768
    )  # it asks the Hub for one
    try:
        unet = get("imagen_pytorch.imagen_pytorch.Unet")
    finally:
        transformers.T5Config.from_pretrained = wanted
    model = unet(
        dim=16,
        text_embed_dim=32,
        cond_dim=16,
        dim_mults=(1, 2),
        num_resnet_blocks=1,
        layer_attns=(False, True),
        layer_cross_attns=(False, True),
        attn_heads=2,
        attn_dim_head=16,
        attn_pool_text=True,
    )
    return ready(model, floats(1, 3, 16, 16), torch.rand(1), text_embeds=floats(1, 8, 32), text_mask=padding(1, 8, 2))


def video_unet() -> Ready:
    model = get("video_diffusion_pytorch.Unet3D")(dim=16, dim_mults=(1, 2), attn_heads=2, attn_dim_head=16)
    return ready(model, floats(1, 3, 4, 16, 16), torch.tensor([3]))


def make_a_video() -> Ready:
    model = get("make_a_video_pytorch.SpaceTimeUnet")(
        dim=16,
        channels=3,
        dim_mult=(1, 2),
        resnet_block_depths=(1, 1),
        temporal_compression=(False, False),
        self_attns=(False, True),
        condition_on_timestep=False,
        attn_dim_head=16,
        attn_heads=2,
    )
    return ready(model, floats(1, 3, 4, 16, 16))


def muse() -> Ready:
    module = get("muse_maskgit_pytorch.muse_maskgit_pytorch.TransformerBlocks")
    return ready(module(**SMALL), floats(2, 16, 32), context=floats(2, 8, 32), context_mask=padding(2, 8, 3))


def phenaki() -> Ready:
    model = get("phenaki_pytorch.MaskGit")(
        dim=32, num_tokens=TOKENS, max_seq_len=64, heads=2, dim_head=16, depth=1, dim_context=32, unconditional=True
    )
    return ready(model, tokens(1, 32), video_patch_shape=(2, 4, 4))


def cvivit() -> Ready:
    model = get("phenaki_pytorch.CViViT")(
        dim=32,
        codebook_size=64,
        image_size=32,
        patch_size=8,
        temporal_patch_size=2,
        spatial_depth=1,
        temporal_depth=1,
        dim_head=16,
        heads=2,
        use_vgg_and_gan=False,
    )
    return ready(model, floats(1, 3, 3, 32, 32), return_recons_only=True)


def magvit() -> Ready:
    model = get("magvit2_pytorch.VideoTokenizer")(
        image_size=16,
        init_dim=16,
        max_dim=32,
        codebook_size=64,
        layers=("residual", "attend_space", "attend_time"),
        attn_dim_head=16,
        attn_heads=2,
        use_gan=False,
        perceptual_loss_weight=0.0,
    )
    return method(model, "encode", floats(1, 3, 5, 16, 16))


def nuwa() -> Ready:
    model = get("nuwa_pytorch.nuwa_pytorch.Sparse3DNA")(
        dim=32, video_shape=(2, 4, 4), heads=2, dim_head=16, causal=True
    )
    return ready(model, floats(1, 32, 32))


def rin() -> Ready:
    model = get("rin_pytorch.RIN")(
        dim=32,
        image_size=16,
        patch_size=4,
        depth=1,
        num_latents=8,
        dim_latent=32,
        latent_self_attn_depth=1,
        heads=2,
        dim_head=16,
    )
    return ready(model, floats(1, 3, 16, 16), torch.rand(1))


def dalle(**options: Any) -> Ready:
    vae = get("dalle_pytorch.DiscreteVAE")(
        image_size=32, num_layers=2, num_tokens=TOKENS, codebook_dim=16, hidden_dim=8
    )
    model = get("dalle_pytorch.DALLE")(
        dim=32, vae=vae, num_text_tokens=TOKENS, text_seq_len=16, depth=1, heads=2, dim_head=16, **options
    )
    return ready(model, tokens(1, 16), tokens(1, 64))


def stable_audio() -> Ready:
    model = get("stable_audio_tools.models.transformer.ContinuousTransformer")(
        32, 2, dim_heads=32, cross_attend=True, cond_token_dim=32
    )
    return ready(model, floats(2, 16, 32), context=floats(2, 8, 32))


def a_unet() -> Ready:
    model = get("a_unet.apex.Attention")(features=32, head_features=16, num_heads=2)
    return ready(model, floats(2, 16, 32))


def dit_of_f5(name: str) -> Ready:
    model = get(f"f5_tts.model.backbones.{name.lower()}.{name}")(
        dim=32, depth=2, heads=2, dim_head=16, mel_dim=16, text_num_embeds=TOKENS
    )
    return ready(model, floats(2, 32, 16), floats(2, 32, 16), tokens(2, 12), torch.rand(2), mask=padding())


def monai(name: str, *args: Any, shape: tuple[int, ...], **kwargs: Any) -> Ready:
    return ready(get(f"monai.networks.nets.{name}")(*args, **kwargs), floats(*shape))


def monai_diffusion() -> Ready:
    model = get("monai.networks.nets.DiffusionModelUNet")(
        2,
        1,
        1,
        num_res_blocks=1,
        channels=(16, 32),
        attention_levels=(False, True),
        norm_num_groups=8,
        num_head_channels=16,
        with_conditioning=True,
        cross_attention_dim=8,
    )
    return ready(model, floats(1, 1, 16, 16), torch.tensor([3]), context=floats(1, 4, 8))


GENERATORS = (
    Stranger("denoising-diffusion-pytorch", "Unet", denoiser),
    Stranger("denoising-diffusion-pytorch", "Unet1D", denoiser_1d),
    Stranger("denoising-diffusion-pytorch", "KarrasUnet", karras),
    Stranger("denoising-diffusion-pytorch", "UViT", uvit),
    Stranger("dalle2-pytorch", "prior", prior),
    Stranger("dalle2-pytorch", "decoder", decoder),
    Stranger("dalle-pytorch", "DALL-E", dalle),
    Stranger("dalle-pytorch", "sparse", lambda: dalle(attn_types=("axial_row",))),
    Stranger("imagen-pytorch", "Unet", imagen),
    Stranger("video-diffusion-pytorch", "Unet3D", video_unet),
    Stranger("make-a-video-pytorch", "SpaceTimeUnet", make_a_video),
    Stranger("muse-maskgit-pytorch", "transformer", muse),
    Stranger("phenaki-pytorch", "MaskGit", phenaki),
    Stranger("phenaki-pytorch", "C-ViViT", cvivit),
    Stranger("magvit2-pytorch", "tokenizer", magvit),
    Stranger("nuwa-pytorch", "3D nearby attention", nuwa),
    Stranger("rin-pytorch", "RIN", rin),
    Stranger("stable-audio-tools", "transformer", stable_audio),
    Stranger("a-unet", "attention", a_unet),
    Stranger("f5-tts", "DiT", lambda: dit_of_f5("DiT")),
    Stranger("f5-tts", "MMDiT", lambda: dit_of_f5("MMDiT")),
    Stranger(
        "monai",
        "ViT",
        lambda: monai(
            "ViT",
            1,
            (32, 32),
            (8, 8),
            hidden_size=32,
            mlp_dim=64,
            num_layers=2,
            num_heads=2,
            spatial_dims=2,
            shape=(1, 1, 32, 32),
        ),
    ),
    Stranger(
        "monai",
        "SwinUNETR",
        lambda: monai(
            "SwinUNETR",
            1,
            2,
            depths=(1, 1, 1, 1),
            num_heads=(1, 1, 2, 2),
            feature_size=12,
            spatial_dims=2,
            shape=(1, 1, 64, 64),
        ),
    ),
    Stranger(
        "monai",
        "UNETR",
        lambda: monai(
            "UNETR", 1, 2, (32, 32), hidden_size=32, mlp_dim=64, num_heads=2, spatial_dims=2, shape=(1, 1, 32, 32)
        ),
    ),
    Stranger("monai", "DiffusionModelUNet", monai_diffusion),
    Stranger(
        "monai",
        "Restormer",
        lambda: monai(
            "restormer.Restormer",
            2,
            1,
            1,
            dim=16,
            num_blocks=(1, 1),
            heads=(1, 2),
            num_refinement_blocks=1,
            shape=(1, 1, 32, 32),
        ),
    ),
)
