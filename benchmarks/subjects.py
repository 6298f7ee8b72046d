"""Models of real size for `benchmarks.end_to_end`, from their configurations, with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A model and what it is called with.

    Attributes:
        make: builds it with an attention implementation of transformers.
        inputs: builds the keyword arguments of a call on a device.
        attention: transformers' ``attn_implementation``.
        decoder: can its mask be taken out by hand, since it is causal and nothing else?
    """

    make: Callable[[str], nn.Module]
    inputs: Callable[[str], Inputs]
    attention: str = "sdpa"
    decoder: bool = False


def _tokens(batch: int, length: int, ones: bool = False, **more: Any) -> Callable[[str], Inputs]:
    def make(device: str) -> Inputs:
        ids = torch.randint(0, 1000, (batch, length), device=device)
        return {"input_ids": ids, **({"attention_mask": torch.ones_like(ids)} if ones else {}), **more}

    return make


def _images(batch: int) -> Callable[[str], Inputs]:
    return lambda device: {"x": normal(device, batch, 3, 224, 224)}


def llama(attention: str, **changes: Any) -> nn.Module:
    """Llama of 8 layers, 32 heads of 64 on 8, unless changed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 8}
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, **changes}
    return LlamaForCausalLM(LlamaConfig(**sizes, attn_implementation=attention))


def _small_llama(attention: str) -> nn.Module:
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    return llama(attention, **sizes, num_attention_heads=4, num_key_value_heads=2)


def _narrow_llama(attention: str) -> nn.Module:
    """32 layers so narrow that compiling them is all that takes time."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 32, "vocab_size": 1000}
    return llama(attention, **sizes, num_attention_heads=4, num_key_value_heads=2)


def _gpt2(attention: str) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=1024, n_head=16, n_layer=12, attn_implementation=attention))


def _bert(attention: str) -> nn.Module:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "intermediate_size": 4096}
    return BertModel(BertConfig(**sizes, attn_implementation=attention))


def _gemma2(attention: str) -> nn.Module:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 8, "head_dim": 256}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 32000, "sliding_window": 1024}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, attn_implementation=attention))


def _torchvision(name: str) -> Callable[[str], nn.Module]:
    def make(_: str) -> nn.Module:
        import torchvision

        model: nn.Module = getattr(torchvision.models, name)()
        return model

    return make


class HandwrittenBlock(nn.Module):
    """A GPT block in nanoGPT's style: scores, a mask that is kept, softmax, and the product with V."""

    bias: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.register_buffer("bias", torch.tril(torch.ones(length, length)).view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        B, S, E = x.shape
        q, k, v = (
            y.view(B, S, self.heads, E // self.heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(E, 2)
        )
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :S, :S] == 0, float("-inf"))
        x = x + self.proj((F.softmax(att, dim=-1) @ v).transpose(1, 2).contiguous().view(B, S, E))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def _handwritten_gpt(_: str) -> nn.Module:
    return nn.Sequential(*(HandwrittenBlock(1024, 16, 2048) for _ in range(12)))


def _hidden(device: str) -> Inputs:
    return {"input": torch.randn(4, 2048, 1024, device=device, dtype=torch.bfloat16)}


def flux(_: str) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    model: nn.Module = FluxTransformer2DModel(num_layers=2, num_single_layers=4)
    return model


def flux_inputs(device: str) -> Inputs:
    side, text = 64, 512
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((torch.zeros(side, side), rows, columns), dim=-1).reshape(-1, 3)
    return {
        "hidden_states": normal(device, 1, side * side, 64),
        "encoder_hidden_states": normal(device, 1, text, 4096),
        "pooled_projections": normal(device, 1, 768),
        "timestep": torch.tensor([0.5], device=device, dtype=torch.bfloat16),
        "img_ids": places.to(device, torch.bfloat16),
        "txt_ids": torch.zeros(text, 3, device=device, dtype=torch.bfloat16),
        "return_dict": False,
    }


def _wan(_: str) -> nn.Module:
    from diffusers import WanTransformer3DModel

    model: nn.Module = WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=4)
    return model


def _wan_inputs(device: str) -> Inputs:
    return {
        "hidden_states": normal(device, 1, 16, 11, 60, 100),  # 11 x 30 x 50 tokens
        "encoder_hidden_states": normal(device, 1, 512, 4096),
        "timestep": torch.tensor([500], device=device),
        "return_dict": False,
    }


def normal(device: str, *shape: int) -> Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _vit_l(_: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_large_patch16_224")
    return model


CASES = {
    "llama": Case(llama, _tokens(4, 4096, use_cache=False), decoder=True),
    "llama_ones": Case(llama, _tokens(4, 4096, ones=True, use_cache=False), decoder=True),
    "llama_eager": Case(llama, _tokens(4, 4096, use_cache=False), "eager", decoder=True),
    "gpt2": Case(_gpt2, _tokens(16, 1024, use_cache=False), decoder=True),
    # what `generate` computes first, and, but for the last matrix product, GPT2Model
    "gpt2_prefill": Case(_gpt2, _tokens(16, 1024, use_cache=False, logits_to_keep=1), decoder=True),
    "bert": Case(_bert, _tokens(32, 512, ones=True)),
    "bert_eager": Case(_bert, _tokens(32, 512), "eager"),
    "gemma2_eager": Case(_gemma2, _tokens(2, 4096, use_cache=False), "eager"),
    "handwritten_gpt": Case(_handwritten_gpt, _hidden),
    "flux": Case(flux, flux_inputs),
    "wan": Case(_wan, _wan_inputs),
    "vit_l": Case(_vit_l, _images(64)),
    "swin_b": Case(_torchvision("swin_b"), _images(64)),
    "vit_b_16": Case(_torchvision("vit_b_16"), _images(64)),
    "maxvit_t": Case(_torchvision("maxvit_t"), _images(32)),
    "narrow": Case(_narrow_llama, _tokens(2, 128, use_cache=False), decoder=True),
    "narrow_eager": Case(_narrow_llama, _tokens(2, 128, use_cache=False), "eager", decoder=True),
    "small": Case(_small_llama, _tokens(2, 64, use_cache=False), decoder=True),
}
