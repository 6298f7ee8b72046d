"""Named attention calls: those of real models, those that ``auto``'s table is fitted to, and those that test it."""

from __future__ import annotations

from benchmarks.drawn import drawn
from benchmarks.shapes import Shape, Shapes, Sizes

TOKENS = 16384  # of the sweep, B * S, as in the papers on FlashAttention
WIDTH = 2048  # of the sweep, H * D


def _square(B: int, H: int, Hkv: int, S: int, D: int) -> Sizes:
    return B, H, Hkv, S, S, D


MODELS = {
    "wan_dit": Shape((1, 12, 12, 16384, 16384, 128)),
    "flux": Shape((1, 24, 24, 4608, 4608, 128)),
    "sdxl_self": Shape((2, 10, 10, 4096, 4096, 64), dtype="fp16"),
    "sdxl_cross": Shape((2, 10, 10, 4096, 77, 64), dtype="fp16"),
    "llama_prefill": Shape((2, 32, 8, 4096, 4096, 128), "causal"),
    "gpt2": Shape((8, 12, 12, 1024, 1024, 64), "causal"),
    "vit_l": Shape((64, 16, 16, 197, 197, 64)),
    "bert": Shape((32, 12, 12, 512, 512, 64)),
    "decode": Shape((16, 32, 8, 1, 4096, 128)),
    "hd256": Shape((2, 8, 8, 4096, 4096, 256), "causal"),
}

SWEEP = {
    f"d{D}_{mask}_s{S}": Shape(_square(TOKENS // S, WIDTH // D, WIDTH // D, S, D), mask)
    for D in (64, 128, 256)
    for mask in ("none", "causal")
    for S in (512, 1024, 2048, 4096, 8192, 16384)
}

_SMALL = ((1, 8, 8, 128), (8, 12, 12, 128), (2, 16, 16, 256), (64, 12, 12, 256), (1, 32, 8, 512), (16, 16, 16, 512))
_LONG = ((1, 32, 8, 2048), (4, 32, 4, 4096), (1, 16, 16, 3072))
_CROSS = ((2, 16, 1024, 77), (1, 24, 4096, 256), (8, 16, 1500, 448), (1, 12, 16384, 512), (16, 8, 64, 1024))
_DECODE = ((1, 32, 8, 1024), (1, 32, 32, 4096), (8, 32, 8, 4096), (64, 32, 8, 2048), (8, 16, 16, 16384))
_CACHES = (
    (1, 32, 8, 4096),
    (8, 32, 8, 4096),
    (1, 32, 8, 32768),
    (8, 32, 8, 16384),
    (32, 32, 8, 4096),
    (4, 16, 16, 8192),
)
_TABLES = ((2, 16, 16, 1024), (4, 16, 16, 2048), (8, 8, 8, 640))  # where a bias for each head is read
_PADDED = ((2, 24, 24, 4608), (1, 24, 24, 16384))
_MASKED = ((16, 12, 12, 512), (4, 16, 16, 1024), (2, 32, 8, 4096))
_WINDOWS = (((4, 16, 16, 1024), 255), ((2, 32, 8, 4096), 1023), ((1, 32, 8, 8192), 4095))


def _grid(name: str, bases: tuple[tuple[int, int, int, int], ...], dims: tuple[int, ...], *masks: str) -> Shapes:
    """Each length with each head dim and mask."""
    return {
        f"{name}{i}_d{D}_{mask}": Shape(_square(*base, D), mask)
        for i, base in enumerate(bases)
        for D in dims
        for mask in masks
    }


FIT = {
    **_grid("small", _SMALL, (64, 128), "none", "causal"),
    **_grid("long", _LONG, (64, 96, 128), "none", "causal"),
    **_grid("masked", _MASKED, (64, 128), "bool", "padding", "bias"),
    **{f"cross{i}_d{D}": Shape((B, H, H, Sq, Sk, D)) for i, (B, H, Sq, Sk) in enumerate(_CROSS) for D in (64, 128)},
    **{f"decode{i}_d{D}": Shape((B, H, Hkv, 1, Sk, D)) for i, (B, H, Hkv, Sk) in enumerate(_DECODE) for D in (64, 128)},
    **{
        f"window{i}_d{D}": Shape(_square(*base, D), f"window({left})")
        for i, (base, left) in enumerate(_WINDOWS)
        for D in (64, 128)
    },
    "window_d256": Shape(_square(2, 8, 4, 4096, 256), "window(1023)"),
    "softcap_d256": Shape(_square(2, 8, 4, 4096, 256), "causal", softcap=50.0),
    "softcap_d128": Shape(_square(2, 32, 16, 2048, 128), "causal", softcap=30.0),
}

OUTSIDE = {  # masks and biases that come as tensors: caches with room, tables, padding
    **{
        f"cache{i}_d{D}": Shape((B, H, Hkv, 1, Sk, D), "padding")
        for i, (B, H, Hkv, Sk) in enumerate(_CACHES)
        for D in (64, 128)
    },
    **_grid("table", _TABLES, (64, 128), "bias", "bool"),
    **_grid("padded", _PADDED, (64, 128), "padding"),
}

HELD_OUT = {
    "llama3_8b_2k": Shape(_square(4, 32, 8, 2048, 128), "causal"),
    "llama3_8b_8k": Shape(_square(1, 32, 8, 8192, 128), "causal"),
    "llama3_70b_4k": Shape(_square(1, 64, 8, 4096, 128), "causal"),
    "llama32_1b_4k": Shape(_square(4, 32, 8, 4096, 64), "causal"),
    "qwen3_4b_6k": Shape(_square(1, 32, 8, 6144, 128), "causal", "fp16"),
    "qwen3_30b_1k": Shape(_square(8, 32, 4, 1024, 128), "causal"),
    "phi3_mini_4k": Shape(_square(1, 32, 32, 4096, 96), "causal"),
    "gemma2_9b_4k": Shape(_square(1, 16, 8, 4096, 256), "causal"),
    "gemma3_1b_2k": Shape(_square(4, 4, 1, 2048, 256), "causal"),
    "mistral_window": Shape(_square(1, 32, 8, 16384, 128), "window(4095)"),
    "gemma3_window": Shape(_square(2, 8, 4, 4096, 256), "window(511)"),
    "gpt2_xl": Shape(_square(4, 25, 25, 1024, 64), "causal"),
    "gpt_neox": Shape(_square(2, 64, 64, 2048, 96), "causal"),
    "gptj": Shape(_square(2, 16, 16, 2048, 256), "causal"),
    "opt_350m": Shape(_square(8, 16, 16, 512, 64), "causal", "fp16"),
    "bert_base_128": Shape(_square(64, 12, 12, 128, 64)),
    "bert_large_384": Shape(_square(24, 16, 16, 384, 64)),
    "roberta_padded": Shape(_square(16, 12, 12, 512, 64), "padding"),
    "t5_bias": Shape(_square(8, 12, 12, 512, 64), "bias"),
    "vit_b_224": Shape(_square(128, 12, 12, 197, 64)),
    "vit_h_14": Shape(_square(32, 16, 16, 257, 80)),
    "siglip_so400m": Shape(_square(8, 16, 16, 729, 72)),
    "dinov2_g": Shape(_square(8, 24, 24, 1370, 64)),
    "sam_global": Shape(_square(1, 16, 16, 4096, 80)),
    "sd15_self_4k": Shape(_square(2, 8, 8, 4096, 40), dtype="fp16"),
    "sd15_self_1k": Shape(_square(2, 8, 8, 1024, 80), dtype="fp16"),
    "sdxl_self_1k": Shape(_square(2, 20, 20, 1024, 64), dtype="fp16"),
    "sdxl_cross_1k": Shape((2, 20, 20, 1024, 77, 64), dtype="fp16"),
    "sd3_joint": Shape(_square(2, 24, 24, 4250, 64)),
    "flux_512": Shape(_square(1, 24, 24, 1536, 128)),
    "flux_2k": Shape(_square(1, 24, 24, 16896, 128)),
    "hunyuan_video": Shape(_square(1, 24, 24, 12000, 128)),
    "wan_cross": Shape((1, 40, 40, 16384, 512, 128)),
    "pixart_cross": Shape((4, 16, 16, 4096, 300, 72), "padding", "fp16"),
    "whisper_encoder": Shape(_square(8, 20, 20, 1500, 64)),
    "whisper_cross": Shape((8, 20, 20, 448, 1500, 64)),
    "detr_decoder": Shape((8, 8, 8, 100, 850, 32)),
    "decode_8k": Shape((4, 32, 8, 1, 8192, 128)),
    "decode_64": Shape((64, 32, 8, 1, 1024, 128)),
    "cache_16k": Shape((4, 32, 8, 1, 16384, 128), "padding"),
    "cache_2k": Shape((16, 32, 8, 1, 2048, 64), "padding"),
    "t5_large": Shape(_square(4, 16, 16, 1536, 64), "bias"),
    "qwen_image": Shape(_square(2, 24, 24, 4608, 128), "padding"),
    "prefill_chunk": Shape((1, 32, 8, 512, 512, 128), "causal"),
    "tiny_self": Shape(_square(1, 4, 4, 64, 32)),
}
HOST = {  # so small that the host decides; for a process that has the machine to itself
    "host_d64": Shape(_square(1, 2, 2, 64, 64)),
    "host_d128": Shape(_square(1, 2, 2, 128, 128), "causal"),
    "host_gqa": Shape(_square(2, 4, 2, 128, 64), "causal"),
    "host_decode": Shape((1, 4, 4, 1, 256, 64)),
    "host_decode_gqa": Shape((1, 8, 2, 1, 256, 64)),
}
SETS = {
    "host": HOST,
    "models": MODELS,
    "sweep": SWEEP,
    "fit": FIT,
    "outside": OUTSIDE,
    "held_out": HELD_OUT,
    "drawn": drawn(20261129),  # fitted to, after it had shown where the table was wrong
    "drawn_anew": drawn(42),
}
