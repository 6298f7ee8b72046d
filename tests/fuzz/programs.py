"""The program of a seed; the same in the tests and in ``scripts/fuzz.py``."""

from __future__ import annotations

import random

from tests.fuzz.chains import chain_program
from tests.fuzz.masks import mask_program
from tests.fuzz.scope import Program


def make(kind: str, seed: int, pure: bool = False) -> Program:
    """A program of ``kind``: masks, chains, or grads for chains with gradients. ``pure``: it writes nothing."""
    rng = random.Random(f"{kind} {seed}")
    if kind == "masks":
        return mask_program(rng, seed, pure)
    return chain_program(rng, seed, pure, grad=kind == "grads")
