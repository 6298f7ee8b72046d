"""Operators that PyTorch does not know: one that writes, and some that share nothing but a name with PyTorch's.

A pass that goes by names takes them for something that they are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["show", "softmax", "tril", "twice"]


@torch.library.custom_op("attnpass_fuzz::show", mutates_args={"x"})
def show(x: Tensor) -> None:
    """Write ones everywhere."""
    x.fill_(1)


@show.register_fake
def _(x: Tensor) -> None:
    return None


@torch.library.custom_op("attnpass_fuzz::twice", mutates_args={"x"})
def twice(y: Tensor, x: Tensor) -> None:
    """Copy into the second argument; the first one stays."""
    x.copy_(y)


@twice.register_fake
def _(y: Tensor, x: Tensor) -> None:
    return None


@torch.library.custom_op("attnpass_fuzz::softmax", mutates_args=())
def softmax(x: Tensor, dim: int) -> Tensor:
    """A softmax three times as sharp."""
    return torch.softmax(x * 3, dim)


@softmax.register_fake
def _(x: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("attnpass_fuzz::tril", mutates_args=())
def tril(x: Tensor) -> Tensor:
    """The upper triangle."""
    return torch.triu(x).clone()


@tril.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)
