"""The attention that the matchers and tests of peers are about, in our own words: each is found, and right.

After what TensorRT-LLM's AutoDeploy, onnxscript's fusions, Torch-TensorRT's lowering, ExecuTorch's models and Thunder's
tests are said to take. ``of`` names the peer, and how many calls the form makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers.compiled import assert_near, decisions, run

Form = Callable[[Tensor, Tensor, Tensor], Tensor]
B, H, S, D = 2, 4, 16, 16
INF = -math.inf
FORMS: dict[str, tuple[Form, int]] = {}


def of(peer: str, calls: int = 1) -> Callable[[Form], Form]:
    def put(form: Form) -> Form:
        FORMS[f"{peer}: {form.__name__}"] = form, calls
        return form

    return put


def causal(rows: int = S, columns: int = S) -> Tensor:
    return torch.ones(rows, columns, dtype=torch.bool).tril()


def additive(hidden: float = INF) -> Tensor:
    return torch.zeros(S, S).masked_fill(~causal(), hidden)


def few(x: Tensor, heads: int = 2) -> Tensor:
    return x[:, :heads]


def repeat_kv(x: Tensor, n: int) -> Tensor:
    batch, heads, length, size = x.shape
    return x[:, :, None, :, :].expand(batch, heads, n, length, size).reshape(batch, heads * n, length, size)


def rotated(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[-2])[:, None] * 0.1 * torch.arange(1, x.shape[-1] // 2 + 1)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


# AutoDeploy


@of("AutoDeploy")
def eager_with_repeated_kv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = repeat_kv(few(k), 2), repeat_kv(few(v), 2)
    weights = torch.matmul(q, k.transpose(2, 3)) * D**-0.5 + additive(torch.finfo(torch.float32).min)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(weights, p=0.0, training=False), v).transpose(1, 2).contiguous()


@of("AutoDeploy")
def eager_with_the_mask_cut(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((1, 1, 2 * S, 2 * S), torch.finfo(q.dtype).min).triu(1)[:, :, :, : k.shape[-2]][:, :, :S]
    return F.softmax(q @ k.mT * 0.25 + mask, -1, dtype=torch.float32).to(v.dtype) @ v


@of("AutoDeploy")
def grouped_sdpa_after_repeat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, repeat_kv(few(k), 2), repeat_kv(few(v), 2), is_causal=True)


@of("AutoDeploy")
def sdpa_of_rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(rotated(q), rotated(k), v, attn_mask=causal()[None, None])


@of("AutoDeploy")
def sdpa_from_bsnd(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=0.0)
    return out.transpose(1, 2).reshape(B, S, H * D)


@of("AutoDeploy")
def latent_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    joined = [torch.cat([x, rotated(x[..., :8])], -1) for x in (q, k)]
    scores = torch.matmul(joined[0], joined[1].transpose(2, 3)) * 24**-0.5
    return torch.matmul((scores + additive()).softmax(-1, dtype=torch.float32), v)


@of("AutoDeploy")
def latent_attention_absorbed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rope = k[:, :1, :, :8]
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) + torch.einsum("bhqd,bgkd->bhqk", q[..., :8], rope)
    return torch.einsum("bhqk,bhkd->bhqd", (scores * 0.2).softmax(-1), v)


@of("AutoDeploy")
def sinks_of_gpt_oss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    sinks = torch.linspace(-1, 1, H).reshape(1, -1, 1, 1).expand(B, -1, S, -1)
    scores = torch.cat([q @ k.mT * 0.25 + additive(), sinks], -1)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    return F.softmax(scores, -1)[..., :-1] @ v


@of("AutoDeploy")
def sliding_window_with_softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = causal() & ~torch.ones(S, S, dtype=torch.bool).tril(-4)
    scores = torch.tanh(q @ k.mT * 0.25 / 30.0) * 30.0
    return scores.masked_fill(~seen, INF).softmax(-1) @ v


# onnxscript


@of("onnxscript")
def query_and_key_scaled_by_roots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    root = math.sqrt(math.sqrt(D))
    return ((q / root) @ (k.permute(0, 1, 3, 2) / root) + additive(-3e38)).softmax(-1) @ v


@of("onnxscript")
def scaled_behind_by_a_tensor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.permute(0, 1, 3, 2) / torch.tensor(math.sqrt(D)) + additive(-10000.0)).softmax(-1) @ v


@of("onnxscript")
def nan_of_empty_rows_made_zero(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (q @ k.mT * 0.25 + additive()).softmax(-1)
    return torch.where(weights.isnan(), 0.0, weights) @ v


@of("onnxscript")
def query_of_three_dimensions(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, S, D) for x in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(B, H, S, S) * 0.25
    return torch.bmm(scores.softmax(-1).view(B * H, S, S), v).view(B, H, S, D)


@of("onnxscript")
def cross_attention_with_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    past_k, past_v = k.roll(1, 2), v.roll(1, 2)
    return F.scaled_dot_product_attention(q, torch.cat([past_k, k], 2), torch.cat([past_v, v], 2))


@of("onnxscript")
def packed_qkv(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    packed = torch.cat([x.transpose(1, 2).reshape(B, S, H * D) for x in (q, k, v)], -1)
    q, k, v = packed.view(B, S, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q * 0.25) @ k.mT).softmax(-1) @ v


@of("onnxscript")
def grouped_query_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = few(k).repeat_interleave(2, 1), few(v).repeat_interleave(2, 1)
    rows, columns = torch.arange(S)[:, None], torch.arange(S)[None]
    mask = torch.where(columns <= rows, 0.0, torch.finfo(torch.float32).min)
    return (q @ k.mT * 0.25 + mask).softmax(-1) @ v


# Torch-TensorRT


@of("Torch-TensorRT")
def sdpa_with_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, None, 0.0, False, scale=0.5)


@of("Torch-TensorRT")
def sdpa_with_float_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.linspace(-1, 1, S).expand(B, H, S, S), 0.0, False)


@of("Torch-TensorRT")
def sdpa_with_bool_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, torch.ones(S, S, dtype=torch.bool).tril(), 0.0, False)


@of("Torch-TensorRT")
def sdpa_grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, few(k), few(v), is_causal=True, enable_gqa=True)


@of("Torch-TensorRT")
def flash_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)[0]


@of("Torch-TensorRT")
def multihead_layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = q.transpose(1, 2).reshape(B, S, H * D)
    weight, out = torch.eye(H * D).repeat(3, 1), torch.eye(H * D)
    y, _ = F.multi_head_attention_forward(
        *[x.transpose(0, 1)] * 3, H * D, H, weight, None, None, None, False, 0.0, out, None, need_weights=False
    )  # fmt: skip
    return y


# ExecuTorch


@of("ExecuTorch")
def rows_of_a_causal_buffer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((2 * S, 2 * S), INF).triu(1)[torch.arange(S)][:, :S]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)


@of("ExecuTorch")
def cache_with_repeated_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cached_k, cached_v = (torch.zeros(B, 2, 2 * S, D) for _ in range(2))
    cached_k[:, :, :S], cached_v[:, :, :S] = few(k), few(v)
    k, v = cached_k.repeat_interleave(2, dim=1), cached_v.repeat_interleave(2, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal(2 * S, 2 * S)[:S])


@of("ExecuTorch", calls=H)
def a_head_at_a_time(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    outs = []
    for one, key, value in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        scores = one @ key.transpose(-2, -1) * 0.25 + additive()
        outs.append(F.softmax(scores, dim=-1) @ value)
    return torch.cat(outs, -1)


@of("ExecuTorch", calls=H)
def a_head_at_a_time_of_transposed_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys = [key.transpose(-1, -2).contiguous() for key in k.unbind(1)]
    return torch.stack(
        [
            ((one * 0.25) @ key).softmax(-1) @ value
            for one, key, value in zip(q.unbind(1), keys, v.unbind(1), strict=True)
        ],
        1,
    )


@of("ExecuTorch")
def vision_tower_with_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.linspace(-1, 1, 2 * S)[torch.arange(S)[:, None] - torch.arange(S) + S]
    return ((q * 0.25) @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v


# Thunder


@of("Thunder")
def nano_gpt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(torch.tril(torch.ones(S, S)).view(1, 1, S, S)[:, :, :S, :S] == 0, INF)
    out = F.dropout(F.softmax(scores, dim=-1), 0.0, False) @ v
    return out.transpose(1, 2).contiguous().view(B, S, H * D)


@of("Thunder")
def lit_gpt_grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (few(x)[:, :, None].expand(B, 2, 2, S, D).reshape(B, 4, S, D) for x in (k, v))
    return F.scaled_dot_product_attention(rotated(q), rotated(k), v, is_causal=True, scale=1.0 / math.sqrt(D))


@of("Thunder")
def sdpa_with_other_value_size(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v[..., :8].contiguous(), is_causal=False)


@of("Thunder")
def baddbmm_with_alpha(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.empty(B * H, S, S), q, k.transpose(1, 2), beta=0, alpha=0.25)
    return torch.bmm(scores.softmax(-1), v)


@of("Thunder")
def alibi_of_bloom(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slopes = 2.0 ** -torch.arange(1, H + 1)
    alibi = (slopes[:, None, None] * torch.arange(S)).repeat(B, 1, 1)
    scores = alibi.baddbmm(q.flatten(0, 1), k.flatten(0, 1).mT, beta=1.0, alpha=0.25).view(B, H, S, S)
    scores = scores + additive(torch.finfo(torch.float32).min)
    return torch.bmm(F.softmax(scores, -1).view(B * H, S, S), v.flatten(0, 1))


@pytest.mark.parametrize("name", FORMS)
def test_found_and_right(name: str) -> None:
    form, calls = FORMS[name]
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(B, H, S, D, generator=generator) for _ in range(3)]
    with torch.no_grad():
        wanted, got = form(*given), run(form, *given, kernel="native_math,flex")
    assert len(decisions()) == calls
    assert_near(got, wanted)
