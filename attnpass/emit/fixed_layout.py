"""Copies of fixed layout: what a template or a library reads must not be given other strides by Inductor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, aten


def _fixed_layout(x: Tensor) -> Tensor:
    """A contiguous copy of ``x`` whose layout Inductor cannot change any more."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


_copy = ops.define("fixed_layout(Tensor x) -> Tensor", _fixed_layout, _fixed_layout)


def _fixed_layouts(xs: list[Tensor]) -> list[Tensor]:
    return [_fixed_layout(x) for x in xs]


_learned = ops.define("fixed_layout_learned(Tensor x) -> Tensor", _fixed_layout, _fixed_layout)
ops.pass_gradients_on(_learned)
_copies = ops.define("fixed_layouts(Tensor[] xs) -> Tensor[]", _fixed_layouts, _fixed_layouts)
_buffers = ops.define("own_buffers(Tensor[] xs) -> Tensor[]", _fixed_layouts, _fixed_layouts)


def fixed(emitter: Emitter, operand: Node, learned: bool = False) -> Node:
    """A mask as a buffer that Inductor's templates can index, copied once for all calls that read it.

    Gradients pass through the copy if it is ``learned``.

    A captured tensor that is computed in the graph fails to compile: "convert FlexibleLayout to FixedLayout first"
    (CUDA, PyTorch 2.11), "not enough values to unpack" (CPU, 2.13). On the CPU so does a q that is a view of a linear
    layer's 2-D output, hence q, k and v go through here there.
    """
    if operand.op == "placeholder":
        return operand
    source = operand
    while source.target is aten.unsqueeze.default and isinstance(source.args[0], Node):
        source = source.args[0]  # each call lifts the same mask to 4-D anew
    key = ("flex operand", source, emitter.spec(operand).ndim, learned, emitter.epoch)
    return emitter.once(key, lambda: emitter(_learned if learned else _copy, operand))


def all_fixed(emitter: Emitter, operands: list[Node], op: Any = _copies) -> list[Node]:
    """Each operand as a contiguous buffer of its own, by one op."""
    copies = emitter(op, operands)
    return [emitter.item(copies, i) for i in range(len(operands))]


def own_buffers(emitter: Emitter, operands: list[Node]) -> list[Node]:
    """q, k and v as three tensors where they may be parts of one: by one op, since of equal ops Inductor keeps one."""
    return all_fixed(emitter, operands, _buffers)
