"""Generated attention calls: shapes, dtypes, masks and memory layouts, the odd ones included."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass.graph.tensor import dtype_name
from attnpass.ir.limits import Limits
from attnpass.ir.mask import Term

SHAPES = (  # B, H, Hkv, Sq, Sk, D, Dv
    (2, 4, 4, 33, 33, 32, 32),
    (1, 2, 2, 1, 65, 64, 64),
    (2, 4, 2, 40, 40, 64, 64),
    (2, 4, 1, 17, 50, 32, 32),
    (1, 1, 1, 7, 5, 5, 5),
    (1, 2, 2, 16, 16, 80, 80),
    (1, 3, 3, 64, 192, 64, 32),
    (2, 2, 2, 130, 77, 72, 72),
    (1, 2, 2, 128, 128, 128, 128),
    (1, 2, 2, 64, 64, 256, 256),
    (1, 8, 2, 200, 129, 16, 48),
    (3, 2, 2, 5, 1, 8, 8),
    (1, 2, 2, 0, 9, 16, 16),
    (1, 2, 2, 9, 0, 16, 16),
    (0, 2, 2, 9, 9, 16, 16),
)
MASKS = (
    "none",
    "none",
    "causal",
    "causal",
    "bool",
    "key_padding",
    "padded_away",
    "empty_rows",
    "bias",
    "bias_per_head",
    "bias_grad",
    "bias_fp32",
    "bias_min",
)
PADDINGS = ("key_padding", "padded_away")
LAYOUTS = ("BHSD", "BSHD", "packed", "expanded", "offset", "transposed", "3-D", "2-D", "broadcast")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (8, 16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 128, 160, 192, 256)
LENGTHS = (1, 2, 7, 16, 33, 64, 77, 100, 128, 192, 200, 256, 300, 384, 513)


@dataclass(frozen=True, slots=True)
class Case:
    """One generated attention call.

    Attributes:
        shape: (B, H, Hkv, Sq, Sk, D, Dv).
        dtype: of q, k and v.
        mask: one of `MASKS`.
        layout: one of `LAYOUTS`; how q, k and v lie in memory, or fewer dims.
        scale: factor on the scores, or None.
        grad: do q, k and v need gradients?
        seed: of the data.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    mask: str = "none"
    layout: str = "BHSD"
    scale: float | None = None
    grad: bool = False
    seed: int = 0

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        grad, scale = ("-grad" if self.grad else ""), ("" if self.scale is None else f"-scale{self.scale}")
        return f"{sizes}-{dtype_name(self.dtype)}-{self.mask}-{self.layout}{scale}{grad}"


def cases(count: int, seed: int = 0, dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Case]:
    """``count`` different calls, the same ones for the same seed."""
    rng = random.Random(seed)
    made: dict[Case, None] = {}
    while len(made) < count:
        layout = rng.choice(LAYOUTS) if rng.random() < 0.6 else "BHSD"
        scale = rng.choice((None, None, None, 0.3, -0.5))
        mask, grad = rng.choice(MASKS), rng.random() < 0.4
        grad = grad or mask == "bias_grad"
        made[Case(rng.choice(SHAPES), rng.choice(dtypes), mask, layout, scale, grad, seed=len(made))] = None
    return list(made)


def cases_for(limits: Limits, count: int, seed: int = 0) -> list[Case]:
    """``count`` different calls, drawn from what ``limits`` promise; most stand inside them, or just outside."""
    rng = random.Random(seed)
    dims = [d for d in HEAD_DIMS if limits.head_dim_min <= d <= (limits.head_dim_max or d)]
    dims = [d for d in dims if d % limits.head_dim_multiple == 0] or [64]
    masks = ["none", *(["causal"] * (Term.CAUSAL in limits.terms)), *(MASKS[4:] if limits.mask_tensor else ())]
    masks += PADDINGS if limits.padding_by_length else ()
    layouts = ("BHSD", "BSHD", "BSHD", "packed", "3-D")
    lengths = [size for size in LENGTHS if size <= (limits.queries_max or size)]
    dtypes = sorted(limits.dtypes & set(DTYPES), key=str)
    made: dict[Case, None] = {}
    while len(made) < count:
        near_miss = rng.random() < 0.2
        H, Hkv = rng.choice(((2, 2), (4, 2), (4, 1), (8, 2)) if limits.gqa else ((2, 2), (3, 3)))
        Sq = rng.choice(LENGTHS if near_miss else lengths)
        Sk = Sq if rng.random() < 0.6 else rng.choice(LENGTHS)
        D = rng.choice((*HEAD_DIMS, 5, 20) if near_miss else dims)
        Dv = rng.choice(dims) if limits.value_dim_may_differ and rng.random() < 0.3 else D
        mask = rng.choice(MASKS if near_miss else masks)
        grad = rng.random() < (0.4 if limits.backward else 0.1)
        grad &= near_miss or not (limits.padding_by_length and mask in PADDINGS)
        scale = rng.choice((None, None, 0.3) if limits.positive_scale or not near_miss else (None, -0.5))
        layout = rng.choice(LAYOUTS if near_miss else layouts)
        shape = (rng.choice((1, 2, 3)), H, Hkv, Sq, Sk, D, Dv)
        dtype = rng.choice(DTYPES if near_miss else dtypes)
        made[Case(shape, dtype, mask, layout, scale, grad or mask == "bias_grad", seed=len(made))] = None
    return list(made)


def make_operands(case: Case, device: str = "cpu") -> tuple[list[Tensor | None], dict[str, Any]]:
    """q, k, v and mask of a case, and the keyword arguments of the call."""
    generator = torch.Generator().manual_seed(case.seed)
    B, H, Hkv, Sq, Sk, D, Dv = case.shape
    wanted = ((B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv))
    tensors = [_laid_out(case, shape, generator, i).to(device) for i, shape in enumerate(wanted)]
    if case.layout == "offset":  # a copy to the device drops the offset, so it is made there
        tensors = [_at_offset(t) for t in tensors]
    tensors = [t[0] if case.layout == "3-D" else t[0, 0] if case.layout == "2-D" else t for t in tensors]
    mask = _mask(case, generator)
    if mask is not None:
        mask = mask.to(device)
        mask = mask[-1] if case.layout == "3-D" and mask.ndim == 4 else mask
        mask = mask[-1, -1] if case.layout == "2-D" and mask.ndim == 4 else mask
    operands = [t.detach().requires_grad_(case.grad) for t in tensors]
    if mask is not None and case.mask == "bias_grad":
        mask = mask.detach().requires_grad_(True)
    gqa = Hkv != H and case.layout != "2-D"
    return [*operands, mask], {"is_causal": case.mask == "causal", "scale": case.scale, "enable_gqa": gqa}


def runnable(case: Case, device: str = "cpu") -> Case | None:
    """``case`` if PyTorch itself computes it, else None: what PyTorch refuses, nobody has to compute.

    On CUDA, PyTorch 2.11 itself faults on a misaligned offset, gives None for an empty batch, and wants the mask in
    q's dtype.
    """
    foreign_mask = case.mask in ("bias_fp32", "bias_min") and case.dtype != torch.float32
    if device != "cpu" and (case.layout == "offset" or case.shape[0] == 0 or foreign_mask):
        return None
    case = replace(case, shape=_single_batch(case))
    operands, options = make_operands(case)
    try:
        q, k, v, mask = (None if x is None else x.detach() for x in operands)
        assert q is not None and k is not None and v is not None
        F.scaled_dot_product_attention(q, k, v, mask, **options)
    except RuntimeError:
        return None
    return case


def _single_batch(case: Case) -> tuple[int, ...]:
    B, H, Hkv, *rest = case.shape
    return (max(B, 1), H, Hkv, *rest) if case.layout in ("3-D", "2-D", "expanded", "broadcast") else case.shape


def _laid_out(case: Case, shape: tuple[int, ...], generator: torch.Generator, index: int) -> Tensor:
    B, H, S, D = shape
    if case.layout == "BSHD":
        return torch.randn(B, S, H, D, generator=generator).to(case.dtype).transpose(1, 2)
    if case.layout == "packed":
        return torch.randn(B, S, H, 3, D, generator=generator).to(case.dtype)[:, :, :, index].transpose(1, 2)
    if case.layout == "expanded" and index > 0:
        return torch.randn(1, H, S, D, generator=generator).to(case.dtype).expand(shape)
    if case.layout == "broadcast" and index > 0:
        return torch.randn(1, H, S, D, generator=generator).to(case.dtype)
    if case.layout == "transposed":
        return torch.randn(B, H, D, S, generator=generator).to(case.dtype).transpose(2, 3)
    return torch.randn(B, H, S, D, generator=generator).to(case.dtype)


def _at_offset(tensor: Tensor) -> Tensor:
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
    return room[1:].view(tensor.shape).copy_(tensor)


def _mask(case: Case, generator: torch.Generator) -> Tensor | None:
    B, H, _, Sq, Sk, *_ = case.shape
    if case.mask in ("none", "causal"):
        return None
    if case.mask == "bias_min":  # hides all keys of one query by a large finite number: an average, not 0
        hidden = torch.rand(Sq, Sk, generator=generator) > 0.6
        hidden[:1] = True
        return torch.zeros(Sq, Sk).masked_fill(hidden, torch.finfo(torch.float32).min)
    if case.mask == "bias_fp32":
        return torch.randn(Sq, Sk, generator=generator)
    if case.mask.startswith("bias"):
        shape = (1, H, Sq, Sk) if case.mask == "bias_per_head" else (Sq, Sk)
        return torch.randn(shape, generator=generator).to(case.dtype)
    seen = torch.rand((B, 1, 1, Sk) if case.mask in PADDINGS else (B, 1, Sq, Sk), generator=generator) > 0.3
    if case.mask == "padded_away":  # one example without a key
        seen[:1] = False
    elif case.mask != "empty_rows" and Sk:
        seen[..., 0] = True
    elif Sq:
        seen[:, :, 0] = False
    return seen
