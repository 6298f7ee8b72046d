"""What decodes: layers with a static cache of their own, and a small Llama that generates."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, LAYERS, VOCABULARY = 2048, 8, 1000


class StepLayer(nn.Module):
    """Attention over a static cache, and a gated network behind it."""

    def __init__(self, B: int, S: int, H: int, Hkv: int, D: int) -> None:
        super().__init__()
        self.heads = H, Hkv, D
        self.q, self.kv = nn.Linear(WIDTH, H * D, bias=False), nn.Linear(WIDTH, 2 * Hkv * D, bias=False)
        self.out = nn.Linear(H * D, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.register_buffer("k", torch.randn(B, Hkv, S, D))
        self.register_buffer("v", torch.randn(B, Hkv, S, D))

    def forward(self, x: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        """x (B, 1, WIDTH), mask (B, 1, 1, S) bool, place (1,): where the new key goes."""
        (H, Hkv, D), B = self.heads, x.shape[0]
        h = F.rms_norm(x, x.shape[-1:])
        k, v = self.kv(h).view(B, 1, 2, Hkv, D).transpose(1, 3).unbind(2)
        self.k.index_copy_(2, place, k)
        self.v.index_copy_(2, place, v)
        q = self.q(h).view(B, 1, H, D).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask, enable_gqa=True)
        x = x + self.out(out.transpose(1, 2).reshape(B, 1, -1))
        return x + self.down(F.silu(self.up(F.rms_norm(x, x.shape[-1:]))))


class StepModel(nn.Module):
    """`LAYERS` layers."""

    def __init__(self, B: int, S: int, H: int, Hkv: int, D: int) -> None:
        super().__init__()
        self.width = WIDTH
        self.layers = nn.ModuleList(StepLayer(B, S, H, Hkv, D) for _ in range(LAYERS))

    def forward(self, x: Tensor, mask: Tensor, place: Tensor) -> Tensor:
        """As `StepLayer`."""
        for layer in self.layers:
            x = layer(x, mask, place)
        return x


def generating(kernel: str, B: int, prompt: int, room: int) -> tuple[int, float, float]:
    """Tokens made, the seconds of a warm `generate`, and the seconds of the first one.

    Args:
        kernel: ``inductor``, a setting of ours, or ``transformers`` and the name of its own implementation, which
            generates with a growing cache and is not compiled.
        B: prompts.
        prompt: tokens of each; the first half of every second one is padding.
        room: tokens that are made.
    """
    from transformers import CompileConfig, LlamaConfig, LlamaForCausalLM

    own = kernel.removeprefix("transformers ") if kernel.startswith("transformers ") else ""
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        vocab_size=VOCABULARY,
        max_position_embeddings=prompt + room,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation=own or "sdpa", dtype=torch.bfloat16)
    model = model.cuda().eval()
    tokens = torch.randint(3, VOCABULARY, (B, prompt), device="cuda")
    seen = torch.ones_like(tokens)
    seen[1::2, : prompt // 2] = 0
    how: dict[str, Any] = {"max_new_tokens": room, "min_new_tokens": room, "do_sample": False, "pad_token_id": 0}
    if not own:
        ours = {"attnpass.kernel": kernel, "triton.cudagraphs": True}
        attnpass = CompileConfig(backend="attnpass", mode=None, options=ours)
        compiled = CompileConfig() if kernel == "inductor" else attnpass
        how |= {"cache_implementation": "static", "compile_config": compiled}
    times = []
    for _ in range(2):
        start = time.perf_counter()
        model.generate(tokens, attention_mask=seen, **how)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return B * room, times[1], times[0]
