"""The picture of a mask shows what the mask means, and an example only of what the running program alone knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnpass.find.find import find
from attnpass.ir.decision import Decision, Reason
from attnpass.ir.mask import MaskSpec
from attnpass.report.pages.mask_picture import ALL, NONE, PART, SIDE, Picture, picture, to_svg
from attnpass.understand.understand import Reader
from tests.helpers import report_examples
from tests.helpers.mask_programs import Program, boolean, programs
from tests.helpers.masks_read import understood

R = torch.arange(SIDE)
CAUSAL = R[None] <= R[:, None]
FRONT = (R < 24).expand(SIDE, SIDE)  # what an example of padding shows


def drawn(mask: Callable[..., Tensor], *inputs: Tensor, S: int = SIDE, dynamic: bool = False) -> Picture | None:
    """The picture of the mask that a program makes."""

    def program(q: Tensor, *read: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, mask(q.shape[-2], *read))

    (found,) = understood(program, torch.randn(2, 1, S, 16), *inputs, dynamic=dynamic)
    return picture(Decision(found.call, "native", Reason.AUTO, (), (), meaning=found.meaning))


def tril(S: Any) -> Tensor:
    return torch.arange(S)[None] <= torch.arange(S)[:, None]


def shown(found: Picture | None) -> Tensor:
    assert found is not None
    assert not any(PART in row for row in found.cells)
    return torch.tensor(found.cells) == ALL


READS = {
    "padding": (lambda S, m: m[:, None, None], torch.ones(2, SIDE, dtype=torch.bool), FRONT),
    "padding the other way": (lambda S, m: ~m[:, None, None], torch.ones(2, SIDE, dtype=torch.bool), FRONT),
    "ones and zeros": (lambda S, m: (m != 0)[:, None, None], torch.ones(2, SIDE, dtype=torch.long), FRONT),
    "zeros and -inf": (lambda S, m: (m > -1)[:, None, None], torch.zeros(2, SIDE), FRONT),
    "causal and padding": (lambda S, m: tril(S) & m[:, None, None], torch.ones(2, SIDE) > 0, CAUSAL & FRONT),
    "lengths": (lambda S, n: (torch.arange(S) < n[:, None])[:, None, None], torch.tensor([3, 4]), FRONT),
    "documents": (
        lambda S, d: (d[:, :, None] == d[:, None])[:, None],
        torch.zeros(2, SIDE, dtype=torch.long),
        R[None] // 8 == R[:, None] // 8,
    ),
    "positions": (
        lambda S, p: (torch.arange(S)[None, None] <= p[:, :, None])[:, None],
        torch.zeros(2, SIDE, dtype=torch.long),
        CAUSAL,
    ),
}


@pytest.mark.parametrize("name", READS)
def test_what_is_read_is_an_example(name: str) -> None:
    mask, read, wanted = READS[name]
    found = drawn(mask, read)
    assert found is not None and found.example and "an example" in found.title
    assert torch.equal(shown(found), wanted)


@pytest.mark.parametrize("dynamic", (False, True))
def test_a_rule_is_drawn_as_it_is(dynamic: bool) -> None:
    found = drawn(lambda S: tril(S) & (torch.arange(S)[:, None] - torch.arange(S)[None] < 5), dynamic=dynamic)
    assert found is not None and not found.example and found.sizes == (SIDE, SIDE)
    assert torch.equal(shown(found), CAUSAL & (R[:, None] - R[None] < 5))


def test_a_long_one_is_sampled_and_says_where_it_is_seen_in_part() -> None:
    found = drawn(tril, S=4096)
    assert found is not None and len(found.cells) == len(found.cells[0]) == SIDE
    for q, row in enumerate(found.cells):
        assert row == (ALL,) * q + (PART,) + (NONE,) * (SIDE - q - 1)


def test_a_pattern_of_every_second_key_is_not_taken_for_all_of_them() -> None:
    found = drawn(lambda S: (torch.arange(S) % 2 == 0).expand(S, S), S=4096)
    assert found is not None and {cell for row in found.cells for cell in row} == {PART}


def test_a_call_without_a_graph_is_drawn_from_its_rules() -> None:
    causal = report_examples.rewritten(report_examples.call("a", mask=MaskSpec.causal()))
    found = picture(causal)
    assert found is not None and found.sizes == (4096, 4096) and found.cells[0][0] == PART


@pytest.mark.parametrize("mask", (MaskSpec(), MaskSpec.from_tensor(report_examples.spec(2, 1, 8, 8))))
def test_what_hides_nothing_or_is_not_proved_has_no_picture(mask: MaskSpec) -> None:
    assert picture(report_examples.rewritten(report_examples.call("a", mask=mask))) is None


def test_a_part_that_is_read_at_each_query_and_key_has_no_picture() -> None:
    assert drawn(lambda S, m: tril(S) & m, torch.ones(SIDE, SIDE) > 0) is None


def test_the_drawing_has_a_rectangle_for_each_run() -> None:
    drawing = to_svg(Picture(((ALL, ALL, NONE, ALL), (PART, NONE, NONE, NONE)), (2, 4), False))
    assert 'viewBox="0 0 4 2"' in drawing
    assert '<path class="seen" d="M0 0h2v1h-2zM3 0h1v1h-1z"/><path class="part" d="M0 1h1v1h-1z"/>' in drawing
    assert "among 2 queries (rows) and 4 keys" in drawing


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(), st.data())
def test_random_masks_are_drawn_as_the_program_makes_them(p: Program, data: st.DataObject) -> None:
    gm, real = p.finish(boolean(p, data.draw, depth=2))
    findings = find(gm)
    found = Reader(findings.reading).understood(findings.calls[0])
    made = picture(Decision(found.call, "native", Reason.AUTO, (), (), meaning=found.meaning))
    if made is not None and not made.example:
        assert torch.equal(shown(made), real.expand(p.sizes)[0, 0])
