"""``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` opened, so that the attention inside is seen.

Dynamo keeps ``F.multi_head_attention_forward`` as one opaque node, and the inference fast path of an encoder layer as
``torch._transformer_encoder_layer_fwd``. Opening is read only: it gives a small ATen graph of the same computation,
which is put in the node's place only if a call in it is rewritten.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from attnpass.graph.regions import Region
from attnpass.graph.values import value_of

MULTIHEAD = F.multi_head_attention_forward
ENCODER_LAYER = torch._transformer_encoder_layer_fwd
PADDING = 1  # a type of mask
SIGNATURE = inspect.signature(MULTIHEAD)


@dataclass(frozen=True, slots=True)
class Opened:
    """A node of the user's graph beside the small graph that computes the same.

    Attributes:
        node: the opaque node.
        body: the ATen graph; its placeholders take ``inputs`` in order.
        inputs: the nodes that ``node`` reads.
    """

    node: Node
    body: GraphModule
    inputs: tuple[Node, ...]


def is_multihead(node: Node) -> bool:
    """Is this node an opaque multi-head attention or encoder layer?"""
    return node.op == "call_function" and node.target in (MULTIHEAD, ENCODER_LAYER)


def open_up(node: Node, region: Region) -> Opened | str:
    """The computation inside ``node`` as ATen ops with values on every node, or one sentence why not."""
    function = _readable(node)
    if isinstance(function, str):
        return function
    if region.functorch:
        return f"the layer stands inside {' of '.join(region.functorch)} and is not opened there"
    inputs = tuple(node.all_input_nodes)
    fakes = [value_of(x) for x in inputs]
    mode = next((v.fake_mode for v in fakes if hasattr(v, "fake_mode")), None)
    if mode is None:
        return "the layer's inputs have no fake values"

    def call(*tensors: Any) -> Any:
        env = dict(zip(inputs, tensors, strict=True))
        args, kwargs = pytree.tree_map_only(Node, lambda n: env[n], (node.args, node.kwargs))
        return function(*args, **kwargs)

    body = _trace(call, fakes, mode)
    body.graph.eliminate_dead_code()  # weights that nobody reads
    _propagate(body, fakes, mode, region)
    return Opened(node, body, inputs)


def _readable(node: Node) -> Callable[..., Any] | str:
    """The function to trace for this node, or why the node has to stay closed."""
    if node.target is ENCODER_LAYER:
        return encoder_layer
    given = SIGNATURE.bind(*node.args, **node.kwargs)
    given.apply_defaults()
    if not given.arguments["need_weights"]:
        return MULTIHEAD
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        weights = "the attention weights are materialised, which no fused kernel does"
        return f"need_weights=True: {weights}; with need_weights=False the layer does not compute them"
    masked = any(given.arguments[name] is not None for name in ("key_padding_mask", "attn_mask"))
    return _without_weights if masked else _as_sdpa


def _as_sdpa(*args: Any, **kwargs: Any) -> Any:
    """Multi-head attention whose weights nobody reads."""
    return MULTIHEAD(**{**SIGNATURE.bind(*args, **kwargs).arguments, "need_weights": False})


def _without_weights(*args: Any, **kwargs: Any) -> Any:
    """The same with a mask: as it is written for weights, since a row that sees no key is NaN there and 0 in SDPA."""
    return MULTIHEAD(*args, **kwargs)[0], None


def encoder_layer(
    src: torch.Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: torch.Tensor,
    qkv_bias: torch.Tensor,
    proj_weight: torch.Tensor,
    proj_bias: torch.Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm1_weight: torch.Tensor,
    norm1_bias: torch.Tensor,
    norm2_weight: torch.Tensor,
    norm2_bias: torch.Tensor,
    ffn1_weight: torch.Tensor,
    ffn1_bias: torch.Tensor,
    ffn2_weight: torch.Tensor,
    ffn2_bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    mask_type: int | None = None,
) -> torch.Tensor:
    """What ``torch._transformer_encoder_layer_fwd`` computes, in public functions.

    Source: ``aten/src/ATen/native/transformers/transformer.cpp``. ``src`` is (B, S, E).
    """

    def attention(x: torch.Tensor) -> torch.Tensor:
        qkv = F.linear(x, qkv_weight, qkv_bias).unflatten(-1, (3, num_heads, embed_dim // num_heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = _attention(q, k, v, mask, mask_type)
        return F.linear(out.transpose(1, 2).flatten(2), proj_weight, proj_bias)

    def feed_forward(x: torch.Tensor) -> torch.Tensor:
        activation = F.gelu if use_gelu else F.relu
        return F.linear(activation(F.linear(x, ffn1_weight, ffn1_bias)), ffn2_weight, ffn2_bias)

    norm1 = partial(F.layer_norm, normalized_shape=(embed_dim,), weight=norm1_weight, bias=norm1_bias, eps=eps)
    norm2 = partial(F.layer_norm, normalized_shape=(embed_dim,), weight=norm2_weight, bias=norm2_bias, eps=eps)
    if norm_first:
        x = src + attention(norm1(src))
        return x + feed_forward(norm2(x))
    x = norm1(src + attention(src))
    return norm2(x + feed_forward(x))


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, mask_type: int | None
) -> torch.Tensor:
    """Where ``mask`` is not 0, of whatever dtype, a key is hidden; a query that sees none gives NaN.

    Source: ``aten/src/ATen/native/transformers/attention.cpp``. A mask of the type `PADDING` is (B, S); others
    broadcast to (B, H, S, S).
    """
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v)
    hidden = mask.to(torch.bool)[:, None, None] if mask_type == PADDING else mask.to(torch.bool)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    out: torch.Tensor = scores.masked_fill(hidden, -math.inf).softmax(-1) @ v
    return out


def _trace(call: Callable[..., Any], fakes: list[Any], mode: FakeTensorMode) -> GraphModule:
    """Trace above autograd and autocast, so that both apply to the result as they would to the layer."""
    with ExitStack() as stack:
        stack.enter_context(mode)
        for kind in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        return make_fx(call, pre_dispatch=True)(*fakes)


def _propagate(body: GraphModule, fakes: list[Any], mode: FakeTensorMode, region: Region) -> None:
    """Put the value that each node has in the user's program on it: under the autocast of its place."""
    env: dict[Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), fakes, strict=True))
    with ExitStack() as stack:
        stack.enter_context(mode)
        for context in _autocasts(region):
            stack.enter_context(context)
        for node in body.graph.nodes:
            if node.op == "call_function":
                args, kwargs = pytree.tree_map_only(Node, env.__getitem__, (node.args, node.kwargs))
                env[node] = node.target(*args, **kwargs)
            if node in env:
                node.meta["val"] = env[node]


def _autocasts(region: Region) -> list[AbstractContextManager[Any]]:
    return [torch.autocast(kind, dtype) for kind, dtype in region.autocast.items()]
