"""What figures and tables call the forms of `benchmarks.forms` and the models of `benchmarks.end_to_end`."""

from __future__ import annotations

INDUCTOR, AUTO, BY_HAND, PYTORCH_ONLY = "inductor", "auto", "by_hand", "auto_pytorch_only"

FORMS = {
    "fused": "is_causal=True, enable_gqa=True",
    "repeated": "is_causal=True, K/V repeated",
    "bool_mask": "bool causal mask, a buffer",
    "bool_mask_repeated": "bool causal mask, K/V repeated",
    "additive_mask": "additive causal mask, K/V repeated",
    "built_in_graph": "causal mask built in the graph, K/V repeated",
    "window": "sliding window and causal, K/V repeated",
    "causal_and_padding": "causal and key padding",
    "documents": "four documents and causal",
    "no_mask": "no mask",
    "padding": "key padding, K/V repeated",
    "eager": "matmul, mask, fp32 softmax, matmul (eager)",
    "plain": "(q @ k.T / sqrt(d)).softmax(-1) @ v",
}

MODELS = {
    "llama": "Llama, 4 × 4096 tokens",
    "llama_ones": "Llama, 4 × 4096, mask of ones",
    "llama_eager": "Llama, 4 × 4096, eager attention",
    "gpt2": "GPT-2, 16 × 1024 tokens",
    "gpt2_prefill": "GPT-2, 16 × 1024, last logits",
    "bert": "BERT, 32 × 512, mask of ones",
    "bert_eager": "BERT, 32 × 512, eager attention",
    "gemma2_eager": "Gemma-2, 2 × 4096, eager attention",
    "handwritten_gpt": "GPT written by hand, 4 × 2048",
    "flux": "Flux-like DiT, 4608 tokens",
    "wan": "Wan-like DiT, 16500 tokens",
    "vit_l": "ViT-L/16, 64 images",
    "swin_b": "Swin-B, 64 images",
    "vit_b_16": "ViT-B/16, 64 images",
    "narrow": "Llama, 32 narrow layers",
    "narrow_eager": "Llama, 32 narrow layers, eager attention",
    "maxvit_t": "MaxViT-T, 32 images",
}

KERNELS = {"default": "native: PyTorch's own choice"}

COMPILERS = {
    INDUCTOR: "plain Inductor",
    AUTO: "attnpass, auto",
    PYTORCH_ONLY: "attnpass, auto among PyTorch's kernels",
    BY_HAND: "plain Inductor, mask taken out by hand",
}

# Of `benchmarks.diffusion`, with the sizes of the longest attention call.
DIFFUSION = {
    "sdxl": "SDXL UNet, 2 × 128² latents",
    "vae": "VAE decoder, 128² latents, S 16384, D 512",
    "flux": "Flux, 1 × 24 × 4608 × 128",
    "sd3": "SD3, 2 × 24 × 4429 × 64",
    "qwen_image": "Qwen-Image, 2 × 24 × 4608 × 128, text padded",
    "hunyuan_video": "HunyuanVideo, 24 × 18256 × 128, text padded",
    "wan": "Wan, 40 × 32760 × 128",
    "ltx": "LTX-Video, 32 × 4992 × 64, text padded",
    "cogvideox": "CogVideoX, 30 × 17776 × 64",
    "pixart": "PixArt, 2 × 16 × 4096 × 72, text padded",
}

# Of `benchmarks.ground`: models, and calls as B × heads × S × D.
GROUND = {
    "t5": "T5, 6 + 6 layers, 4 × 2048 and 512 tokens",
    "swin": "Swin-B, windows of 7², 64 images",
    "swin_v2": "Swin-v2-B, windows of 8², 64 images",
    "beit": "BEiT-B, 64 images",
    "llama_left": "Llama, 4 × 4096, padded on the left",
    "causal_d128": "causal, 2 × 32/8 × 4096 × 128",
    "window_d128": "causal window of 1024, 2 × 32/8 × 4096 × 128",
    "documents_d128": "causal documents of 700, 2 × 32/8 × 4096 × 128",
    "causal_d64": "causal, 8 × 16 × 2048 × 64",
    "causal_4608": "causal, 1 × 24 × 4608 × 128",
    "padding_d64": "padding, 8 × 16 × 2048 × 64",
    "padding_d128": "padding, 3 × 20/5 × 3001 × 128",
    "padding_d96": "padding, 2 × 16 × 3072 × 96",
    "causal_right": "causal, padded on the right, 8 × 16 × 2048 × 64",
    "causal_left": "causal, padded on the left, 8 × 16 × 2048 × 64",
    "softcap_d128": "causal softcap, 2 × 32/16 × 2048 × 128",
    "softcap_d256": "causal softcap, 2 × 8/4 × 4096 × 256",
    "x_transformer": "x-transformers' decoder, 4 × 2048",
    "x_transformer_train": "x-transformers' decoder, training",
    "x_transformer_alibi": "x-transformers' decoder with ALiBi",
    "whisper": "Whisper's encoder, eager, 8 × 1500",
    "esm": "ESM-2, eager, 16 × 512, padded",
    "conformer": "ESPnet's Conformer, 8 × 1500, padded",
    "mla": "DeepSeek's MLA, 2 × 16 × 4096 × 192/128",
}

# The figures of `benchmarks.figures`, and what a reader who cannot see them is told.
PICTURES = {
    "forms": "Bars: milliseconds and memory of one attention call in 13 spellings, plain Inductor beside attnpass",
    "end_to_end": "Bars: speedup of whole models over plain Inductor, with the times",
    "kernels_forward": "Lines: TFLOP/s of each kernel over the sequence length, forward, by head dim and mask",
    "kernels_train": "Lines: TFLOP/s of each kernel over the sequence length, forward and backward, likewise",
    "regret": "Dots: time of the kernel that auto chose over the time of the best exact kernel, sorted",
    "sage": "Lines: gain and error of SageAttention's kernels over the sequence length",
}


def compiler(name: str) -> str:
    """Whoever is in no list is a kernel that was asked for by name."""
    return COMPILERS.get(name, f"attnpass, {name}")


def model(name: str, step: str) -> str:
    return f"{MODELS.get(name, name)}{', training' if step == 'train' else ''}"


def is_exact(kernel: str) -> bool:
    """SageAttention's kernels and FP8's compute in fewer bits than they are given."""
    return not kernel.startswith("sage") and not kernel.endswith("_fp8")
