"""Calls drawn by lot over every kind that models make: what `benchmarks.regret` judges `auto` by, and no fit has seen.

The lot is seeded, so the calls are the same everywhere. A call's name says its kind and its number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from benchmarks.shapes import Shape, Shapes, Sizes

HEADS = (4, 6, 8, 12, 16, 20, 24, 32, 40)
GROUPS = (1, 1, 1, 2, 4, 8)
DIMS = (40, 64, 64, 72, 80, 96, 128, 128, 160, 192, 256)
DECODED_DIMS = (64, 64, 96, 128, 128, 256)
MOST_SCORES = 3 << 31  # B * H * Sq * Sk: some 8 ms forward at head dim 128
MOST_MASK = 1 << 28  # elements of a mask tensor


def drawn(seed: int, number: int = 12) -> Shapes:
    """So many calls of each kind, those that must not be too large drawn anew until they are not."""
    lot = random.Random(seed)
    found: Shapes = {}
    for kind, make in KINDS.items():
        fitting = (shape for shape in _endless(make, lot) if _is_fit(shape))
        found |= {f"{kind}_{place}": next(fitting) for place in range(number)}
    return found


def _endless(make: Callable[[random.Random], Shape], lot: random.Random) -> Iterator[Shape]:
    while True:
        yield make(lot)


def _is_fit(shape: Shape) -> bool:
    B, H, _, Sq, Sk, _ = shape.sizes
    read = {"bool": B * Sq * Sk, "bias": H * Sq * Sk}.get(shape.mask, 0)
    return B * H * Sq * Sk <= MOST_SCORES and read <= MOST_MASK


def _length(lot: random.Random, low: int, high: int) -> int:
    """Evenly by its logarithm; every other one is a multiple of 64, as most models' are."""
    length = round(low * (high / low) ** lot.random())
    return max(64, length // 64 * 64) if lot.random() < 0.5 else length


def _heads(lot: random.Random) -> tuple[int, int]:
    """Query heads, and the key heads that they share."""
    H = lot.choice(HEADS)
    return H, H // next(group for group in (lot.choice(GROUPS), 1) if H % group == 0)


def _square(lot: random.Random, low: int, high: int, batch: tuple[int, ...]) -> Sizes:
    H, Hkv = _heads(lot)
    S = _length(lot, low, high)
    return lot.choice(batch), H, Hkv, S, S, lot.choice(DIMS)


def _short(lot: random.Random) -> Shape:
    return Shape(_square(lot, 16, 255, (1, 8, 32, 64, 128)), lot.choice(("none", "causal")))


def _plain(lot: random.Random) -> Shape:
    return Shape(_square(lot, 256, 16384, (1, 2, 4, 8)), dtype=lot.choice(("bf16", "fp16")))


def _causal(lot: random.Random) -> Shape:
    return Shape(_square(lot, 256, 16384, (1, 2, 4, 8)), "causal", lot.choice(("bf16", "fp16")))


def _window(lot: random.Random) -> Shape:
    sizes = _square(lot, 1024, 16384, (1, 2, 4))
    return Shape(sizes, f"window({sizes[3] // lot.choice((2, 4, 8)) - 1})")


def _cross(lot: random.Random) -> Shape:
    B, H, Hkv, Sq, _, D = _square(lot, 64, 8192, (1, 2, 8))
    return Shape((B, H, Hkv, Sq, _length(lot, 64, 2048), D), lot.choice(("none", "none", "padding")))


def _decode(lot: random.Random) -> Shape:
    H, Hkv = _heads(lot)
    B, Sq, Sk = lot.choice((1, 2, 8, 32, 64)), lot.choice((1, 1, 1, 4, 8)), _length(lot, 512, 32768)
    return Shape((B, H, Hkv, Sq, Sk, lot.choice(DECODED_DIMS)), lot.choice(("none", "padding", "padding")))


def _tensor(lot: random.Random) -> Shape:
    return Shape(_square(lot, 128, 6144, (1, 2, 4, 8)), "bool")


def _padding(lot: random.Random) -> Shape:
    return Shape(_square(lot, 128, 8192, (1, 2, 4, 16)), "padding")


def _bias(lot: random.Random) -> Shape:
    return Shape(_square(lot, 64, 3072, (1, 2, 4, 16)), "bias")


KINDS: dict[str, Callable[[random.Random], Shape]] = {
    "short": _short,
    "plain": _plain,
    "causal": _causal,
    "window": _window,
    "cross": _cross,
    "decode": _decode,
    "tensor": _tensor,
    "padding": _padding,
    "bias": _bias,
}
