"""K and V as pages of one key: every key is found where it lies, however that is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnpass.padding import pages_of_keys

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


def stored(how: str, B: int = 2, S: int = 33, H: int = 2, D: int = 64) -> Tensor:
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


@pytest.mark.parametrize("B", (1, 2, 3))
@pytest.mark.parametrize("v_lies", HOW)
@pytest.mark.parametrize("k_lies", HOW)
def test_every_key_is_found(k_lies: str, v_lies: str, B: int) -> None:
    k, v = stored(k_lies, B), stored(v_lies, B)
    order = torch.stack([torch.randperm(33) for _ in range(B)]).int()
    *pages, table = pages_of_keys(k, v, order)
    for x, found in zip((k, v), pages, strict=True):
        wanted = x[torch.arange(B)[:, None], order]
        assert torch.equal(found[table].squeeze(2), wanted)
        assert found.shape[1:] == (1, 2, 64) and table.dtype == torch.int32
        copied = found.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        assert not copied or k_lies != v_lies or (k_lies in COPIED and B > 1)
