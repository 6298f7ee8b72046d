"""Metadata of one tensor, as the pass knows it: no values, and sizes that may be symbolic."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attnpass.graph.symbolic import Size

DTYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.bool: "bool",
}


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bf16"``; unknown dtypes keep their PyTorch name."""
    return DTYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Metadata of one operand. Sizes, strides and the storage offset count elements and may be SymInts."""

    shape: tuple[Size, ...]
    stride: tuple[Size, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool = False
    storage_offset: Size = 0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        """Read the metadata of a (fake) tensor. Adds no guard."""
        return cls(
            shape=tuple(tensor.shape),
            stride=tuple(tensor.stride()),
            dtype=tensor.dtype,
            device=tensor.device,
            requires_grad=tensor.requires_grad,
            storage_offset=tensor.storage_offset(),
        )

    @property
    def ndim(self) -> int:
        return len(self.shape)
