"""What a kernel costs for a call on a known machine: a few numbers a kernel, fitted to measurements.

``costs.json`` holds, for each GPU generation that was measured, one curve for each kernel, step (``forward``,
``train``), kind of mask and head dim. A curve is a sum of four terms, all in milliseconds:

- ``start``: what the shortest call takes;
- ``tile``: for each tile of 128 x 128 scores that one multiprocessor works through;
- ``row``: for each row of tiles that it begins;
- ``byte``: for each GB that is read and written.

A kernel spreads its ``B * H * ceil(Sq / 128)`` rows of tiles over the multiprocessors: a last wave that fills only
some of them costs as much as a full one, and under a causal mask the longest row bounds the whole from below.
``benchmarks/fit.py`` makes the file from ``benchmarks/results/costs_*.jsonl`` and prints how well it predicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attnpass.graph.symbolic import Size, hint, known_equal
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec, Term
from attnpass.machine.machine import Machine

TABLE = Path(__file__).with_name("costs.json")
TILE = 128
MASKED_STEPS = frozenset({"decode_row"})
DECODING = MASKED_STEPS | {"decode"}
PACKING = frozenset({"flash3", "flash4", "flex", "flash_decoding"})  # several queries of heads that share a key as rows
UNPACKED = {"decode": "none", "decode_row": "row"}
FEW = 16  # query tokens; with fewer than this a call is a decoding step, bound by reading K and V
HOST_TRAIN = 2.5
NOISE = 0.03  # kernels this close are equal, and the one preferred otherwise wins
TERMS = ("start", "tile", "row", "byte")
Curve = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Features:
    """What of a call decides its cost, as numbers.

    Attributes:
        sizes: B, H, Hkv, Sq, Sk, D.
        mask: ``none``, ``causal`` (or a window: what is hidden is skipped), ``tensor`` (bool, read for each score),
            ``bias`` (the same, added), ``row`` (the same keys hidden from all queries), ``decode`` (few queries) or
            ``decode_row`` (few queries and a tensor).
        seen: share of the scores that are computed.
        read: elements of the mask tensor.
        train: forward and backward?
        itemsize: bytes of an element.
    """

    sizes: tuple[int, int, int, int, int, int]
    mask: str = "none"
    seen: float = 1.0
    read: int = 0
    train: bool = False
    itemsize: int = 2

    @property
    def step(self) -> str:
        return "train" if self.train else "forward"

    def terms(self, processors: int) -> tuple[float, float, float, float]:
        """The numbers that a curve's terms are multiplied by, in the order of `TERMS`."""
        B, H, Hkv, Sq, Sk, D = self.sizes
        queries = Sq
        if self.mask in DECODING:  # heads that share a key are computed together
            queries, H = Sq * max(H // Hkv, 1), Hkv
        rows, across = B * H * math.ceil(queries / TILE), math.ceil(Sk / TILE)
        waves = math.ceil(rows / processors)
        mean = self.seen * across if self.seen < 1 else across
        even = waves * mean if self.seen == 1 else rows * mean / processors
        longest = min(float(across), mean * 2)
        size = self.itemsize * D * B * (2 * self.sizes[1] * Sq + 2 * Hkv * Sk) + self.read
        return 1.0, max(even, longest), float(waves), size / 1e9


def features(call: AttentionCall, spelled: bool = False) -> Features | None:
    """The call's features for a kernel that computes its mask, or reads it as a tensor; None if a size has no hint.

    What padding and documents hide is known only when the program runs: they are taken to hide nothing.
    """
    sizes = [hint(size) for size in (call.B, call.H, call.Hkv, call.Sq, call.Sk, call.D)]
    if any(size is None for size in sizes):
        return None
    B, H, Hkv, Sq, Sk, D = (int(size or 0) for size in sizes)
    mask = call.mask.as_spelled() if spelled else call.mask.as_counted()
    numbers: dict[str, Any] = {"sizes": (B, H, Hkv, Sq, Sk, D), "train": call.needs_grad}
    numbers["itemsize"] = call.dtype.itemsize
    if mask.tensor is not None and mask.spelled is None:
        read = math.prod(hint(size) or 0 for size in mask.tensor.shape) * mask.tensor.dtype.itemsize
        return Features(**numbers, mask=_kind_of_tensor(mask.tensor, Sq), read=read)
    seen = seen_share(mask, Sq, Sk)
    if seen < 1:
        return Features(**numbers, mask="causal", seen=seen)
    return Features(**numbers, mask="decode" if Sq < FEW else "none")


def _kind_of_tensor(tensor: TensorSpec, Sq: int) -> str:
    if Sq < FEW:
        return "decode_row"
    if known_equal(tensor.shape[-2], 1):
        return "row"
    return "tensor" if tensor.dtype == torch.bool else "bias"


def seen_share(mask: MaskSpec, Sq: int, Sk: int) -> float:
    """Share of the Sq x Sk scores that the mask's causal and window terms leave, in tiles: a touched tile counts."""
    bands = [_band(term.term, term.offset, term.left, term.right) for term in mask.terms]
    low = max((band[0] for band in bands), default=-math.inf)
    high = min((band[1] for band in bands), default=math.inf)
    if low == -math.inf and high == math.inf:
        return 1.0
    rows, across = math.ceil(Sq / TILE), math.ceil(Sk / TILE)
    touched = 0
    for row in range(rows):
        first = max(0.0, row * TILE + low)
        last = min(Sk - 1.0, min((row + 1) * TILE, Sq) - 1 + high)
        touched += int(last // TILE - first // TILE + 1) if first <= last else 0
    return touched / max(rows * across, 1)


def _band(term: Term, offset: Size, left: Size | None, right: Size | None) -> tuple[float, float]:
    """The keys that a term leaves, as distances from the query."""
    start = hint(offset) or 0
    if term is Term.CAUSAL:
        return -math.inf, start
    if term is not Term.WINDOW:
        return -math.inf, math.inf
    return (
        -math.inf if left is None else start - (hint(left) or 0),
        math.inf if right is None else start + (hint(right) or 0),
    )


@cache
def table() -> Mapping[str, Any]:
    """``costs.json``: for each capability, ``processors``, ``host_ms`` by kernel and ``curves``."""
    loaded: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return loaded


def predicted_ms(kernel: str, call: Features, machine: Machine) -> float | None:
    """What a run costs: the slower of device and host holds up the other. None where nothing like it was measured."""
    known = table().get(machine.capability if machine.kind == "cuda" else machine.kind)
    if known is None:
        return None
    call = as_computed(call, kernel)
    curve = _curve(known["curves"].get(kernel, {}).get(call.step, {}), call)
    if curve is None:
        return None
    terms = call.terms(known["processors"])
    device = sum(curve.get(name, 0.0) * value for name, value in zip(TERMS, terms, strict=True))
    return max(device, host_ms(kernel, call, machine))


def as_computed(call: Features, kernel: str) -> Features:
    """Several queries are a step of decoding only for who packs them with the heads that share a key.

    cuDNN takes 0.91 ms for 8, 32/8, 4, 28992, 64 with padding, and 0.18 with one query (H200).
    """
    if call.mask in DECODING and call.sizes[3] > 1 and kernel not in PACKING:
        return replace(call, mask=UNPACKED[call.mask])
    return call


def predicted(call: AttentionCall, machine: Machine, kernels: Mapping[str, bool]) -> dict[str, float]:
    """What a run costs with each kernel of which that is known.

    Args:
        call: the call; a size without a hint leaves everything unknown.
        machine: where.
        kernels: names, and whether each would read the call's mask as a tensor.
    """
    numbers = {spelled: features(call, spelled) for spelled in set(kernels.values())}
    costs = {
        name: predicted_ms(name, found, machine)
        for name, spelled in kernels.items()
        if (found := numbers[spelled]) is not None
    }
    return {name: ms for name, ms in costs.items() if ms is not None}


def cheapest(names: Iterable[str], costs: Mapping[str, float], noise: float = NOISE) -> str:
    """Of the names within the noise of the lowest cost, the first; what has no cost is not asked."""
    limit = min(costs.values()) * (1 + noise)
    return next(name for name in names if name in costs and costs[name] <= limit)


def host_ms(kernel: str, call: Features, machine: Machine) -> float:
    """What launching a run takes on the host, in compiled code: a backward launches about twice what a forward does.

    Grouped heads are another number: some kernels repeat K and V. Replayed from a CUDA graph, launches take nothing.
    """
    if machine.cuda_graphs or machine.kind != "cuda":
        return 0.0
    measured = table()
    known = measured.get(machine.capability) or next(iter(measured.values()))  # a launch is the same on all
    _B, H, Hkv, *_ = call.sizes
    plain = known.get("host_ms", {}).get(kernel, 0.0)
    found = plain if Hkv == H else known.get("host_grouped_ms", {}).get(kernel, plain)
    return float(found) * (HOST_TRAIN if call.train else 1.0)


def _curve(curves: Mapping[str, Mapping[str, Curve]], call: Features) -> Curve | None:
    """Of the same kind of mask (or the nearest to it), that of the next larger head dim that was measured.

    Beyond the largest, that one, with work that grows as the head dim does.
    """
    near = {
        "decode": ("decode", "none"),
        "decode_row": ("decode_row", "decode", "row"),
        "causal": ("causal", "none"),
        "row": ("row", "tensor"),
        "bias": ("bias", "tensor"),
    }
    wide = call.sizes[-1]
    for kind in near.get(call.mask, (call.mask,)):
        if dims := sorted(map(int, curves.get(kind, {}))):
            D = next((D for D in dims if wide <= D), dims[-1])
            curve = curves[kind][str(D)]
            return curve if wide <= D else {term: value * wide / D for term, value in curve.items()}
    return None
