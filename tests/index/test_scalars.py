"""Numbers in tables, and as an index."""

from __future__ import annotations

import pytest
import torch

from attnpass.index.arrays import Like
from attnpass.index.constants import recognised
from attnpass.index.rules.views import indexed
from attnpass.index.scalars import StopError
from tests.index.test_masks_types import N, counted


def test_tables_keep_the_sign_of_zeros_and_refuse_odd_dtypes() -> None:
    signs = torch.zeros(1, 4)
    signs[0, 2] = -0.0
    assert recognised(signs) is None and recognised(torch.zeros(1, 4)) is not None
    assert recognised(torch.zeros(4, 4, dtype=torch.float8_e4m3fn)) is None
    assert recognised(torch.zeros(4, 4, dtype=torch.uint16)) is None


def test_bytes_as_an_index_are_truth_values() -> None:
    x = Like((N,), torch.int64).made_of(lambda i: i[0])
    with pytest.raises(StopError, match="truth"):
        indexed(Like((N,), torch.int64), x, [counted(0, torch.uint8)[0]])
