"""Tensors whose values are known: a triangle, a constant or a count, recognised as the array that it is.

The values of a registered buffer may be assumed only under a check at run time that the very same, unmodified tensor is
passed; `attnpass.compilation.guards` installs it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.index.arrays import Array
from attnpass.index.logic import where
from attnpass.index.places import at_most, counted, moved
from attnpass.index.scalars import StopError, constant

LARGEST = 1 << 26  # elements that are looked at
KNOWN = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
KNOWN |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}  # others have no comparisons


def recognised(tensor: Tensor) -> Array | None:
    """The array that a tensor is, if it is one value everywhere, a count along its last dimension, or a triangle."""
    if tensor.numel() == 0 or tensor.numel() > LARGEST or tensor.layout != torch.strided or tensor.dtype not in KNOWN:
        return None
    with unset_fake_temporarily(), torch.no_grad(), torch.inference_mode(False):
        leading = tensor.shape[: max(tensor.ndim - 2, 0)]
        if any(size != 1 for size in leading):
            return None
        flat = tensor.detach().reshape(tensor.shape[-2:]) if tensor.ndim >= 2 else tensor.detach().reshape(1, -1)
        try:
            return _uniform(tensor, flat) or _count(tensor, flat) or _triangle(tensor, flat)
        except StopError:
            return None


def _same(left: Tensor, right: Tensor) -> bool:
    """Are all numbers the same, with their signs? -0.0 is equal to 0.0, and NaN to nothing."""
    equal = left == right
    if left.is_floating_point():
        equal &= left.signbit() == right.signbit()
    return bool(equal.all())


def _uniform(tensor: Tensor, flat: Tensor) -> Array | None:
    if not _same(flat, flat[0, 0].expand(flat.shape)):
        return None
    value = constant(flat[0, 0].item(), tensor.dtype)
    return Array(tuple(tensor.shape), tensor.dtype, lambda _: value)


def _count(tensor: Tensor, flat: Tensor) -> Array | None:
    rows, columns = flat.shape
    if rows != 1 or tensor.dtype not in (torch.int64, torch.int32):
        return None
    first, step = int(flat[0, 0]), int(flat[0, 1] - flat[0, 0])
    if not bool((flat[0] == first + step * torch.arange(columns, device=flat.device)).all()):
        return None
    return Array(tuple(tensor.shape), tensor.dtype, lambda index: counted(index[-1], first, step, tensor.dtype))


def _triangle(tensor: Tensor, flat: Tensor) -> Array | None:
    """One value where column - row <= diagonal, another elsewhere."""
    rows, columns = flat.shape
    below, above = flat[0, 0], flat[0, -1]
    diagonal = int((flat[0] == below).sum()) - 1
    distance = torch.arange(columns, device=flat.device)[None] - torch.arange(rows, device=flat.device)[:, None]
    if rows < 2 or not _same(flat, torch.where(distance <= diagonal, below, above)):
        return None
    yes, no = constant(below.item(), tensor.dtype), constant(above.item(), tensor.dtype)
    shape = tuple(tensor.shape)
    return Array(shape, tensor.dtype, lambda at: where(at_most(at[-1], moved(at[-2], diagonal)), yes, no))
