"""The ops that compute attention by a kernel of their own, as data: what `attnpass.find.chosen` knows of them.

An allow list: each argument of an op is read, or has a value with which it says nothing. An op with another argument,
of a newer version perhaps, is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ANY = (True, False, None)  # of an argument that changes no more than what is given beside the output
LIBRARIES = {  # part of an op's namespace -> who that is
    "flash_attn_3": "FlashAttention 3",
    "flash_attn": "FlashAttention",
    "xformers": "xFormers",
    "mslk": "xFormers",
    "sage": "SageAttention",
    "torch_attn": "torch.nn.attention.varlen",
    "aiter": "AITER",
}
WORDS = ("attn", "attention", "fwd", "forward")  # one of them is in the name of an op of these that is attention


@dataclass(frozen=True, slots=True)
class Named:
    """How an op that computes attention is read. It gives the output first, and other things behind it.

    Attributes:
        who: who computes it, in words.
        silent: arguments that are not read, with the values with which they say nothing.
        operands: the names of q, k and v.
        causal: the argument that makes it causal; where its diagonal starts if Sq and Sk differ, kernels do not agree.
        scale: the argument that has the softmax scale, None for 1/sqrt(D).
        bshd: are q, k, v and the output (B, S, H, D)?
        trains: does the op have a gradient? Those of libraries have none.
        gqa: does it take fewer heads of k and v than of q?
        lse: does it give the natural log-sum-exp behind the output, as (B, H, Sq)?
    """

    who: str
    silent: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    operands: tuple[str, str, str] = ("query", "key", "value")
    causal: str = "is_causal"
    scale: str = "scale"
    bshd: bool = False
    trains: bool = True
    gqa: bool = False
    lse: bool = False


_NO_DROPOUT = {"dropout_p": (0.0,)}
_FLASH_3_OFF = (
    *("k_new", "v_new", "qv", "out_", "cu_seqlens_q", "cu_seqlens_k", "cu_seqlens_k_new", "seqused_q", "seqused_k"),
    *("page_table", "kv_batch_idx", "leftpad_k", "rotary_cos", "rotary_sin", "seqlens_rotary"),
    *("q_descale", "k_descale", "v_descale", "scheduler_metadata", "max_seqlen_q", "max_seqlen_k", "sinks"),
)
_LIBRARY: dict[str, Any] = {
    "operands": ("q", "k", "v"),
    "causal": "causal",
    "scale": "softmax_scale",
    "bshd": True,
    "trains": False,
    "gqa": True,
}
_WINDOWS = {"window_size_left": (-1,), "window_size_right": (-1,), "softcap": (0.0,)}
NAMED = {
    "aten::_scaled_dot_product_flash_attention": Named(
        "PyTorch's flash attention", {**_NO_DROPOUT, "return_debug_mask": (False,)}, lse=True
    ),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Named(
        "PyTorch's flash attention for CPU", {**_NO_DROPOUT, "attn_mask": (None,)}, lse=True
    ),
    "aten::_scaled_dot_product_efficient_attention": Named(
        "PyTorch's memory-efficient attention", {**_NO_DROPOUT, "attn_bias": (None,), "compute_log_sumexp": ANY}
    ),
    "aten::_scaled_dot_product_cudnn_attention": Named(
        "PyTorch's cuDNN attention",
        {**_NO_DROPOUT, "attn_bias": (None,), "compute_log_sumexp": ANY, "return_debug_mask": (False,)},
    ),
    "aten::_scaled_dot_product_attention_math": Named(
        "PyTorch's composite attention",
        {**_NO_DROPOUT, "attn_mask": (None,), "dropout_mask": (None,), "enable_gqa": (False,)},
    ),
    "flash_attn::_flash_attn_forward": Named(
        "FlashAttention 2",
        {**_NO_DROPOUT, **_WINDOWS, "alibi_slopes": (None,), "return_softmax": (False,)},
        **_LIBRARY,
    ),
    "flash_attn_3::_flash_attn_forward": Named(
        "FlashAttention 3",
        {
            **_WINDOWS,
            **dict.fromkeys(_FLASH_3_OFF, (None,)),
            "attention_chunk": (0,),
            "rotary_interleaved": ANY,
            "num_splits": (0, 1),
            "pack_gqa": ANY,
            "sm_margin": (0,),
        },
        **_LIBRARY,
    ),
}
