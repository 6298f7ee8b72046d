"""flash3's padding: each key that takes part is read once, where it lies, by one of two launches."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnpass.emit.padding import in_order
from attnpass.kernels import flash3_pages
from attnpass.kernels.flash3 import FLASH_ATTN_3
from tests.helpers.compiled import assert_near, kernels_used, qkv, run
from tests.standins import flash_attn_3, pretend

HOW = (
    "BSHD",
    "BHSD",
    "one of three",
    "the end of a cache",
    "one example for all",
    "a fraction of a key apart",
    "one key for all",
)
COPIED = HOW[-2:]


def stored(how: str, B: int, S: int = 33, H: int = 2, D: int = 64) -> Tensor:
    """Random (B, S, H, D), lying in one of several ways."""
    if how == "BHSD":
        return torch.randn(B, H, S, D).transpose(1, 2)
    if how == "one of three":
        return torch.randn(B, S, H, 3, D)[:, :, :, 1]
    if how == "the end of a cache":
        return torch.randn(B, S + 7, H, D)[:, 7:]
    if how == "one example for all":
        return torch.randn(1, S, H, D).expand(B, S, H, D)
    if how == "a fraction of a key apart":
        return torch.randn(B, S * H * D + 8).as_strided((B, S, H, D), (S * H * D + 8, H * D, D, 1))
    if how == "one key for all":
        return torch.randn(B, 1, H, D).expand(B, S, H, D)
    return torch.randn(B, S, H, D)


@pytest.mark.parametrize("v_lies", HOW)
@pytest.mark.parametrize("k_lies", HOW)
def test_a_single_key_is_found_however_it_lies(k_lies: str, v_lies: str) -> None:
    """Its stride says nothing about where the next example begins."""
    k, v = stored(k_lies, 3, S=1), stored(v_lies, 3, S=1)
    *found, table = flash3_pages.in_place(k, v, torch.zeros(3, 1, dtype=torch.int32))
    for x, y in zip((k, v), found, strict=True):
        assert torch.equal(flash3_pages.pages(y, 1)[table].squeeze(2), x)


@pytest.mark.parametrize("v_lies", HOW)
@pytest.mark.parametrize("k_lies", HOW)
def test_pages_hold_the_keys_where_they_lie(k_lies: str, v_lies: str) -> None:
    for B, size in itertools.product((1, 3), (1, 8, 33)):
        k, v = stored(k_lies, B), stored(v_lies, B)
        starts = torch.randint(0, 33 - size + 1, (B, 5), dtype=torch.int32)
        *found, table = flash3_pages.in_place(k, v, starts)
        keys = starts.unsqueeze(2) + torch.arange(size)
        for x, y in zip((k, v), found, strict=True):
            wanted = x[torch.arange(B)[:, None, None], keys]
            assert torch.equal(flash3_pages.pages(y, size)[table], wanted)
            copied = y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
            assert not copied or k_lies != v_lies or (k_lies in COPIED and B > 1)
        assert table.dtype == torch.int32


paddings = st.lists(st.lists(st.booleans(), min_size=1, max_size=30), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(paddings, st.integers(1, 8), st.integers(1, 5))
def test_every_key_is_read_once(drawn: list[list[bool]], size: int, Sq: int) -> None:
    Sk = min(map(len, drawn))
    seen = torch.tensor([one[:Sk] for one in drawn])
    lengths = seen.sum(1, dtype=torch.int32)
    order = in_order(seen, lengths)
    assert torch.equal(order.long(), seen.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices)

    tables, in_runs, queries = flash3_pages.tables_of(order, lengths, Sq, size)
    assert {x.dtype for x in (tables, in_runs, queries)} == {torch.int32}
    assert torch.equal(tables[:, -Sk:], order)
    for b, keys in enumerate(seen):
        wanted = keys.nonzero().flatten().tolist()
        starts = tables[b, :-Sk]
        is_run = bool(wanted) and wanted[-1] - wanted[0] + 1 == len(wanted) and wanted[0] + size <= Sk
        assert (in_runs[b], queries[b]) == ((len(wanted), 0) if is_run else (0, Sq))
        if is_run:
            read = (starts.unsqueeze(1) + torch.arange(size)).flatten()[: len(wanted)]
            assert sorted(read.tolist()) == wanted
        if size <= Sk:
            assert bool(((starts >= 0) & (starts + size <= Sk)).all()), "a page would end behind the last key"


KEYS = torch.arange(400)
PADDINGS = {
    "right": torch.tensor([[400], [313], [1]]) > KEYS,
    "left": torch.tensor([[0], [87], [399]]) <= KEYS,
    "both sides": (KEYS >= 11) & (torch.tensor([[400], [203], [202]]) > KEYS),
    "scattered and not": (KEYS % 3 > 0) | torch.tensor([[True], [False], [True]]),
    "an example without keys": (torch.tensor([[0], [200], [400]]) > KEYS),
}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    flash_attn_3.install(monkeypatch, raw=True)
    pretend(monkeypatch, "h100", FLASH_ATTN_3, "3.0.0")


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("shape", ({}, {"bshd": False}, {"D": 128, "Hkv": 2}, {"D": 40}), ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("Sq", "launches"), ((9, 1), (70, 2)), ids=("few queries", "more"))
def test_longer_than_a_page(
    Sq: int, launches: int, padding: str, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, seen[:, None, None], enable_gqa=True)

    operands = (*qkv(B=3, Sq=Sq, Sk=400, **shape), PADDINGS[padding])
    monkeypatch.setattr(flash_attn_3.RawOp, "calls", 0)
    out = run(model, *operands, kernel="flash3")
    assert kernels_used() == ["flash3"] and flash_attn_3.RawOp.calls == launches
    assert_near(out, model(*operands))


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
@pytest.mark.usefixtures("library")
def test_op(bshd: bool) -> None:
    q, k, v = (x.transpose(1, 2) for x in qkv(Sk=200, bshd=not bshd, Hkv=2))
    seen = torch.stack([KEYS[:200] > 3, KEYS[:200] % 2 > 0])
    lengths = seen.sum(1, dtype=torch.int32)
    tables = flash3_pages.tables_of(in_order(seen, lengths), lengths, q.shape[1], flash3_pages.page_size(64))
    op = torch.ops.attnpass.flash3_paged.default
    torch.library.opcheck(op, (q, k, v, lengths, *tables, 0.2, 0.0, bshd))
