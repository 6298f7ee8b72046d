"""``F.scaled_dot_product_attention`` in every spelling -> `AttentionCall`.

``F.scaled_dot_product_attention`` *is* ``torch._C._nn.scaled_dot_product_attention``: one target, with the arguments
exactly as the user wrote them, positional, by keyword, or mixed. ``torch.ops.aten`` gives a packet or an overload.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.fx import Node
from torch.nn.functional import scaled_dot_product_attention

from attnpass.graph.operand import Operand
from attnpass.graph.regions import Region
from attnpass.graph.symbolic import as_float, known
from attnpass.graph.tensor import TensorSpec
from attnpass.graph.values import module_path, source_of, unwrapped, value_of
from attnpass.ir.call import AttentionCall, Context, Pattern
from attnpass.ir.mask import MaskSpec
from attnpass.ir.wiring import Addition, Wiring

TARGETS = frozenset(
    {
        scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention.default,
    }
)
ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
DEFAULTS = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


def is_sdpa(node: Node) -> bool:
    """Is this node a call of ``scaled_dot_product_attention``?"""
    return node.op == "call_function" and node.target in TARGETS


def arguments(node: Node) -> dict[str, Any]:
    """All eight arguments by name, defaults filled in."""
    given = dict(zip(ARGUMENTS, node.args, strict=False))
    return {**DEFAULTS, **given, **node.kwargs}


def wiring_of(node: Node) -> Wiring[Node]:
    """Where the operands of an SDPA node are: a bool mask hides keys, an additive one is added."""
    args = arguments(node)
    q, k, v = (Operand(args[name]) for name in ("query", "key", "value"))
    mask = args["attn_mask"]
    if not isinstance(mask, Node):
        return Wiring(q, k, v)
    fill = float("-inf") if value_of(mask).dtype == torch.bool else None
    return Wiring(q, k, v, (Addition(Operand(mask), fill),))


def read_call(node: Node, region: Region, pattern: Pattern = Pattern.SDPA, grad: bool | None = None) -> AttentionCall:
    """The canonical form of an SDPA node. Read only; adds no guard.

    Args:
        node: the SDPA node, with fake values on it and on its inputs.
        region: the program state around it.
        pattern: how it was spelled.
        grad: do gradients flow, if that is known better than from the operands.
    """
    args = arguments(node)
    values = {name: value_of(args[name]) for name in ("query", "key", "value")}
    mask = value_of(args["attn_mask"]) if isinstance(args["attn_mask"], Node) else None
    q, k, v = (TensorSpec.of(value) for value in values.values())
    mask_spec, mask_and_causal, unreadable = _mask(mask, args["is_causal"])
    operands = [*values.values(), *([mask] if mask is not None else [])]
    scale, dropout_p = args["scale"], args["dropout_p"]
    if scale is not None:
        scale = as_float(value_of(scale) if isinstance(scale, Node) else scale)
        unreadable = unreadable if scale is not None else "scale"
    return AttentionCall(
        q=q,
        k=k,
        v=v,
        out=TensorSpec.of(value_of(node)),
        mask=mask_spec,
        scale=scale,
        dropout_p=float(dropout_p) if isinstance(dropout_p, (int, float)) else None,
        enable_gqa=args["enable_gqa"] is True,
        needs_grad=region.grad and (any(unwrapped(t).requires_grad for t in operands) if grad is None else grad),
        mask_and_causal=mask_and_causal,
        context=context_of(region, q, operands, unreadable),
        node=node.name,
        module=module_path(node.meta),
        source=source_of(node.meta),
        pattern=pattern,
    )


def _mask(mask: torch.Tensor | None, is_causal: Any) -> tuple[MaskSpec, bool, str]:
    """The mask's meaning, whether tensor and ``is_causal`` were both given, and an argument that cannot be read."""
    unreadable = ""
    if isinstance(is_causal, Node):
        is_causal = value_of(is_causal)
    if not isinstance(is_causal, bool):
        claim, is_causal = is_causal, known(is_causal)
        unreadable = "" if is_causal or known(torch.sym_not(claim)) else "is_causal"
    if mask is None:
        return (MaskSpec.causal() if is_causal else MaskSpec()), False, unreadable
    return MaskSpec.from_tensor(TensorSpec.of(mask)), is_causal, unreadable


def context_of(region: Region, q: TensorSpec, operands: list[torch.Tensor], unreadable: str) -> Context:
    """The program state around a call with these operands."""
    cast = region.autocast.get(q.device.type) if q.dtype != torch.float64 else None
    return Context(
        autocast=cast,
        functorch=region.functorch,
        sdpa_kernel=region.sdpa_kernel,
        nested_in=region.nested_in,
        subclass=next((name for name in map(_subclass, operands) if name), ""),
        unreadable=unreadable or region.unreadable,
    )


def _subclass(tensor: torch.Tensor) -> str:
    if tensor.is_nested:
        return "nested tensor"
    plain = isinstance(tensor, FakeTensor) or type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return "" if plain else type(tensor).__name__
