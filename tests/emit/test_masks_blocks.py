"""Blocks of masks against FlexAttention's own ``create_block_mask``, which looks at every element."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from attnpass.emit.mask_blocks import BLOCK, band_blocks, blocks
from attnpass.index.bounds import Bounds
from attnpass.index.evaluate import Values, as_tensor, evaluate, outside_loads
from attnpass.index.expr import AXES, Apply, B, Expr, K, Lin, Load, Q, axis, number, plus
from attnpass.index.logic import all_of, any_of
from attnpass.index.logic import is_positive as nonneg

CPU = torch.device("cpu")
NAMES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
NAMES += ("q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices")


def listed(counts: Tensor, indices: Tensor) -> list[set[int]]:
    """The blocks of each row, as sets; no row may name a block twice."""
    rows = []
    for count, row in zip(counts.flatten().tolist(), indices.reshape(-1, indices.shape[-1]), strict=True):
        rows.append(set(row[:count].tolist()))
        assert len(rows[-1]) == count
    return rows


@settings(max_examples=80, deadline=None)
@given(
    Sq=st.integers(1, 700),
    Sk=st.integers(1, 700),
    left=st.none() | st.integers(-300, 700),
    right=st.none() | st.integers(-300, 700),
)
def test_bands_are_those_of_create_block_mask(Sq: int, Sk: int, left: int | None, right: int | None) -> None:
    if left is not None and right is not None and left + right < 0:
        right = -left

    def band(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        low = k >= q - (Sq + Sk + 700 if left is None else left)
        return low & (k <= q + (Sq + Sk + 700 if right is None else right))

    got = band_blocks(Sq, Sk, left, right, CPU)
    wanted = create_block_mask(band, 1, 1, Sq, Sk, device="cpu")
    for i in range(0, 8, 2):
        counts, indices = getattr(wanted, NAMES[i]), getattr(wanted, NAMES[i + 1])
        assert got[i].shape == counts.shape and got[i + 1].shape == indices.shape
        assert listed(got[i], got[i + 1]) == listed(counts, indices), NAMES[i]


def _masks(padding: torch.fx.Node, ids: torch.fx.Node) -> dict[str, Expr]:
    b, q, k = axis(B), axis(Q), axis(K)
    causal = nonneg(plus(q, k, -1))
    pad = Load(padding, (b, k), torch.bool)
    left, right = (Load(ids, (b, at), torch.int64) for at in (q, k))
    same = Apply("eq", (left, right), torch.bool)
    chunk = Apply("eq", tuple(Apply("floordiv", (at, number(100)), torch.int64) for at in (q, k)), torch.bool)
    prefix = any_of((causal, nonneg(plus(number(149), k, -1))))
    rows = Load(padding, (b, q), torch.bool)
    return {
        "padding": pad,
        "causal & padding": all_of((causal, pad)),
        "documents": all_of((causal, same)),
        "chunks": all_of((causal, chunk)),
        "prefix": prefix,
        "rows": all_of((rows, nonneg(plus(plus(k, q, -1), number(200))))),
    }


MASKS = ("padding", "causal & padding", "documents", "chunks", "prefix", "rows")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("lengths", [(256, 256), (300, 300), (130, 400), (513, 129)])
def test_blocks_cover_the_mask(name: str, lengths: tuple[int, int]) -> None:
    """Every visible element lies in a listed block, full blocks hide nothing, and no block is listed twice."""
    Sq, Sk = lengths
    sizes = (2, 3, Sq, Sk)
    generator = torch.Generator().manual_seed(0)
    graph = torch.fx.Graph()
    padding, ids = graph.placeholder("padding"), graph.placeholder("ids")
    longest = max(lengths)
    tensors = {
        padding: torch.arange(longest)[None] < torch.tensor([[longest], [longest // 2]]),
        ids: torch.randint(0, 3, (2, longest), generator=generator).sort(1).values,
    }
    for node, tensor in tensors.items():
        node.meta["val"] = tensor
    allowed = _masks(padding, ids)[name]
    bounds = Bounds.of(dict(zip(AXES, sizes, strict=True)))

    def values(places: dict[str, Tensor]) -> Values:
        return Values(places, tensors, {}, outside_loads(allowed, bounds), device=CPU)

    got = blocks(allowed, sizes, values, CPU)
    shaped = [torch.arange(n).reshape([-1 if i == j else 1 for j in range(4)]) for i, n in enumerate(sizes)]
    places = dict(zip(AXES, shaped, strict=True))
    seen = as_tensor(evaluate(allowed, values(places)), torch.bool, CPU).expand(sizes)
    pad = (-Sk % BLOCK, -Sq % BLOCK)
    whole = torch.nn.functional.pad(seen, (0, pad[0], 0, pad[1]))
    tiles = whole.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    some, every = (getattr(getattr(tiles, how)(3), how)(4) for how in ("any", "all"))
    for side, (partial, full) in enumerate(((0, 2), (4, 6))):
        dense = [_dense(got[i], got[i + 1]).expand(2, 3, -1, -1) for i in (partial, full)]
        dense = [d.transpose(2, 3) if side else d for d in dense]
        assert not (dense[0] & dense[1]).any()
        assert not (some & ~(dense[0] | dense[1])).any(), "a visible block is not listed"
        assert not (dense[1] & ~every).any(), "a full block hides something"


def _dense(counts: Tensor, indices: Tensor) -> Tensor:
    listed(counts, indices)
    taken = torch.arange(indices.shape[-1]) < counts[..., None]
    dense = torch.zeros(indices.shape, dtype=torch.int32)
    return dense.scatter_reduce(-1, indices.long(), taken.int(), "amax").bool()  # behind the listed ones is any number


def test_linear_forms_print_as_people_write_them() -> None:
    assert str(nonneg(plus(axis(Q), axis(K), -1))) == "k <= q"
    assert str(nonneg(Lin(((K, 1), (Q, -1)), 1023))) == "q - k < 1024"
