"""FLOPs and bytes of one attention call, as the FlashAttention papers count them.

Forward: two matrix products over the pairs of query and key that the mask leaves, 4 * B * H * pairs * D. A causal mask
leaves half of them, a window the pairs inside it. Backward: 2.5 times the forward, five products instead of two. Bytes:
every operand and result crosses the memory once in each pass, and nothing else does. That is the least that a fused
kernel can do and move: what it does beyond that counts as time lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

BACKWARD = 2.5
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
LSE_BYTES = 4  # training keeps the log of each row's sum, in fp32
TERM = re.compile(r"(none|causal|window)(?:\((-?\d+)(?:, (-?\d+))?\))?")


def flops(sizes: Sequence[int], mask: str, step: str) -> float | None:
    """FLOPs of a step, or None if the text of the mask does not say how many pairs it leaves.

    >>> flops((1, 1, 1, 2, 2, 64), "none", "forward")
    1024.0
    """
    B, H, _, Sq, Sk, D = sizes
    left = pairs(mask, Sq, Sk)
    return None if left is None else 4 * B * H * left * D * (1 + BACKWARD if step == "train" else 1)


def least_bytes(sizes: Sequence[int], dtype: str, step: str) -> float:
    """Bytes that a step has to move through the memory, without those of a mask tensor.

    Forward: read q, k, v, write the output. Training adds: write and read the rows' sums; read q, k, v, the output and
    its gradient; write the gradients of q, k and v.
    """
    B, H, Hkv, Sq, Sk, D = sizes
    like_q, like_k = B * H * Sq * D * ITEM_BYTES[dtype], B * Hkv * Sk * D * ITEM_BYTES[dtype]
    if step != "train":
        return float(2 * like_q + 2 * like_k)
    return float(6 * like_q + 6 * like_k + 2 * B * H * Sq * LSE_BYTES)


@cache
def pairs(mask: str, Sq: int, Sk: int) -> float | None:
    """How many pairs of query and key a mask leaves; None for what depends on data, such as padding.

    >>> pairs("causal", 4, 4), pairs("causal & window(1)", 4, 4), pairs("key_padding", 4, 4)
    (8.0, 7.0, None)
    """
    if mask == "causal" and Sq == Sk:
        return Sq * Sk / 2  # by convention, without the half of the diagonal
    before, after = Sk + Sq, Sk + Sq  # keys seen before and after the query's own place
    for term in mask.split(" & "):
        read = TERM.fullmatch(term)
        if read is None or (read[1] == "window" and Sq != Sk):
            return None  # where a window's diagonal stands, the text does not say
        numbers = [int(number) for number in read.groups()[1:] if number is not None]
        if read[1] == "causal":
            after = min(after, numbers[0] if numbers else 0)
        elif read[1] == "window":
            before, after = min(before, numbers[0]), min([after, *numbers[1:]])
    if before < Sk + Sq and after == Sk + Sq:
        return None  # a window with one bound, and not causal: which bound it is, the text does not say
    return float(sum(max(0, min(Sk - 1, q + after) - max(0, q - before) + 1) for q in range(Sq)))
