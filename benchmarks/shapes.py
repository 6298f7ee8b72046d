"""An attention call as the benchmarks name it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec, MaskTerm, Term

Sizes: TypeAlias = "tuple[int, int, int, int, int, int]"
Shapes: TypeAlias = "dict[str, Shape]"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Shape:
    """A call.

    Attributes:
        sizes: B, H, Hkv, Sq, Sk, D.
        mask: ``none``, ``causal``, ``window(1023)`` (causal, and keys seen to the left), ``bool`` (a tensor for each
            batch element), ``padding`` (a bool tensor (B, 1, 1, Sk)) or ``bias`` (a tensor for each head).
        dtype: of the operands.
        softcap: or None.
    """

    sizes: Sizes
    mask: str = "none"
    dtype: str = "bf16"
    softcap: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What a result line says of it."""
        said = {"sizes": list(self.sizes), "mask": self.mask, "dtype": str(DTYPES[self.dtype]).removeprefix("torch.")}
        return said if self.softcap is None else {**said, "softcap": self.softcap}

    def call(self, train: bool, device: torch.device) -> AttentionCall:
        """The call, with q, k and v stored as (B, S, H, D)."""
        B, H, Hkv, Sq, Sk, D = self.sizes
        dtype = DTYPES[self.dtype]

        def operand(heads: int, S: int) -> TensorSpec:
            return TensorSpec((B, heads, S, D), (S * heads * D, D, heads * D, 1), dtype, device, train)

        q, k = operand(H, Sq), operand(Hkv, Sk)
        mask, gqa = self._mask(device), Hkv != H
        return AttentionCall(q, k, k, q, mask, softcap=self.softcap, enable_gqa=gqa, needs_grad=train)

    def _mask(self, device: torch.device) -> MaskSpec:
        B, H, _, Sq, Sk, _ = self.sizes
        window = re.fullmatch(r"window\((\d+)\)", self.mask)
        if window:
            return MaskSpec((MaskTerm(Term.CAUSAL), MaskTerm(Term.WINDOW, left=int(window[1]))))
        if self.mask == "causal":
            return MaskSpec.causal()
        shapes = {"bool": (B, 1, Sq, Sk), "padding": (B, 1, 1, Sk), "bias": (1, H, Sq, Sk)}
        if self.mask not in shapes:
            return MaskSpec()
        shape = shapes[self.mask]
        stride = (shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1)
        dtype = DTYPES[self.dtype] if self.mask == "bias" else torch.bool
        return MaskSpec.from_tensor(TensorSpec(shape, stride, dtype, device))

    def __str__(self) -> str:
        B, H, Hkv, Sq, Sk, D = self.sizes
        return f"{B},{H},{Hkv},{Sq},{Sk},{D} {self.mask} {dtype_name(DTYPES[self.dtype])}"
