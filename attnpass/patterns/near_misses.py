"""Chains that almost are attention calls, with the node that kept them from being one.

When a graph has few rewrites, the question is "why not mine?". The answer names a node and a source line.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from attnpass.patterns.sdpa import source_of
from attnpass.report.record import NearMiss

PRODUCTS = {
    operator.matmul,
    torch.matmul,
    torch.bmm,
    torch.baddbmm,
    torch.einsum,
    "matmul",
    "bmm",
    "baddbmm",
    "__matmul__",
}
SOFTMAXES = {F.softmax, torch.softmax, torch.ops.aten.softmax.int, torch.ops.aten._softmax.default, "softmax"}
ATEN_PRODUCTS = {"aten.matmul.default", "aten.bmm.default", "aten.baddbmm.default"}
REACH = 12  # nodes between the product of q and k and the softmax: mask, bias, scale, softcap and casts fit in

NAMED_KERNELS = {
    "_scaled_dot_product_flash_attention": "the program names PyTorch's flash attention itself",
    "_scaled_dot_product_flash_attention_for_cpu": "the program names PyTorch's flash attention for CPU itself",
    "_scaled_dot_product_efficient_attention": "the program names PyTorch's memory-efficient attention itself",
    "_scaled_dot_product_cudnn_attention": "the program names PyTorch's cuDNN attention itself",
    "flex_attention": "the program calls FlexAttention itself",
}


def near_misses(nodes: Iterable[Node]) -> Iterator[NearMiss]:
    """The near misses among ``nodes``, in program order."""
    for node in nodes:
        name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
        if node.op == "call_function" and name in NAMED_KERNELS:
            yield NearMiss(node.name, f"{NAMED_KERNELS[name]}; it is left as it is", source_of(node.meta))
        elif _is(node, SOFTMAXES) and _reaches(node, _inputs) and _reaches(node, lambda n: n.users):
            reason = (
                "softmax between two matrix products: attention written by hand, which this version leaves as it is"
            )
            yield NearMiss(node.name, reason, source_of(node.meta))


def _is(node: Node, targets: set[Any]) -> bool:
    return node.op in ("call_function", "call_method") and node.target in targets


def _inputs(node: Node) -> Iterable[Node]:
    return node.all_input_nodes


def _reaches(start: Node, step: Callable[[Node], Iterable[Node]]) -> bool:
    """Is there a matrix product within `REACH` steps?"""
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        node, distance = queue.popleft()
        if _is(node, PRODUCTS) or str(node.target) in ATEN_PRODUCTS:
            return True
        if distance < REACH:
            fresh = [n for n in step(node) if n not in seen]
            seen.update(fresh)
            queue.extend((n, distance + 1) for n in fresh)
    return False
