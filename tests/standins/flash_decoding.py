"""The two Triton programs of `attnpass.kernels.flash_decoding`, step by step in PyTorch: the same grid and addresses.

They are ours, but a CPU runs no Triton. Traps kept: what is not written stays garbage, a split that has no block says
so by a maximum of -inf, and a key outside the range is never read (its place may hold NaN).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import attnpass.kernels
from attnpass.kernels import flash_decoding

MULTIPROCESSORS = 7
calls: list[dict[str, Any]] = []


class Launched:
    """``program[grid](...)``."""

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.run(grid, *args, **options)

        return launch


def part(grid: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, sinks: Any, out: Tensor, seen: Tensor,
         *numbers: Any, **how: Any) -> None:  # fmt: skip
    """Every split of every group; the rows of a group are the queries of all its heads."""
    Sq, Sk, Hkv, scale, softcap = numbers[-5:]
    calls.append({"grid": grid, "Sq": Sq, "Sk": Sk, **how})
    groups, splits, _tiles = grid
    B, G, N = groups // Hkv, how["G"], how["BLOCK_N"]
    assert how["SPLITS"] == splits and how["BLOCK_M"] * grid[2] >= G * Sq and how["BLOCK_D"] >= how["D"]
    assert tuple(numbers[:9]) == (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    scores = (q.float().unflatten(1, (Hkv, G)) @ k.float().mT.unsqueeze(2)).flatten(1, 2) * scale
    if how["CAPPED"]:
        scores = softcap * torch.tanh(scores / softcap)
    if how["MASK"] == "bias":
        scores = scores + torch.as_strided(mask, (B, G * Hkv, Sq, Sk), numbers[9:13]).float()
    if how["MASK"] == "bool":
        allowed = torch.as_strided(mask, (B, G * Hkv, Sq, Sk), numbers[9:13])
        scores = scores.masked_fill(~allowed, -math.inf)
    rows, steps = how["LOOKED_AT"], (numbers[9], *numbers[11:13])
    looked = torch.as_strided(mask, (B, rows, Sk), steps) if rows else None
    for b, split in product(range(B), range(splits)):
        blocks = [range(i * N, min(i * N + N, Sk)) for i in range(split, -(-Sk // N), splits)]
        if looked is not None:
            row = (looked[b] if how["MASK"] == "bool" else looked[b] != -math.inf).any(0)
            showing = [i for i, block in enumerate(blocks) if row[list(block)].any()]
            blocks = blocks[showing[0] : showing[-1] + 1] if showing else []
        keys = torch.tensor([key for block in blocks for key in block]).long()
        _write(b, split, scores[b][..., keys], v[b][:, keys], sinks, (out, seen), G, splits)


def _write(
    b: int, split: int, s: Tensor, v: Tensor, sinks: Any, into: tuple[Tensor, Tensor], G: int, splits: int
) -> None:
    H, Sq, keys = s.shape
    top = s.amax(-1) if keys else torch.full((H, Sq), -math.inf)
    base = top.masked_fill(top == -math.inf, 0.0)
    weights = (s - base[..., None]).exp()
    total, acc = weights.sum(-1), weights.to(v.dtype).float() @ v.float().repeat_interleave(G, 0)
    out, seen = into
    if splits > 1:
        rows = (b * H + torch.arange(H)[:, None]) * Sq + torch.arange(Sq)
        out[rows * splits + split] = acc
        seen[rows * splits + split] = torch.stack([top, total], -1)
        return
    if sinks is not None:
        total = total + (sinks[:, None].float() - base).exp()
    out[b] = (acc / total.masked_fill(total == 0, 1.0)[..., None]).to(out.dtype)


def join(grid: Any, parts: Tensor, seen: Tensor, sinks: Any, out: Tensor, Sq: int, H: int, **how: Any) -> None:
    """All rows from their splits."""
    splits = how["SPLITS"]
    assert grid == (out.numel() // out.shape[-1],) and how["BLOCK_S"] >= splits
    top, total = seen.view(*out.shape[:3], splits, 2).unbind(-1)
    highest = top.amax(-1)
    logits = None if sinks is None else sinks[None, :, None].float().expand(highest.shape)
    highest = highest if logits is None else torch.maximum(highest, logits)
    base = highest.masked_fill(highest == -math.inf, 0.0)
    weights = (top - base[..., None]).exp()
    all_of_it = (weights * total).sum(-1) + (0.0 if logits is None else (logits - base).exp())
    acc = (parts.view(*out.shape[:3], splits, -1) * weights[..., None]).sum(-2)
    out.copy_(acc / all_of_it.masked_fill(all_of_it == 0, 1.0)[..., None])


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the programs in place of the real ones."""
    calls.clear()
    made = ModuleType("attnpass.kernels.flash_decoding_programs")
    made.__dict__.update(part=Launched(part), join=Launched(join))
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(attnpass.kernels, "flash_decoding_programs", made, raising=False)
    monkeypatch.setattr(flash_decoding, "_multiprocessors", lambda _: MULTIPROCESSORS)
