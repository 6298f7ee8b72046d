"""Soundness: for random mask programs, the proved meaning equals the mask that the program makes, bit for bit.

``ATTNPASS_EXAMPLES`` sets how many programs are tried (20,000 before a release).
"""

from __future__ import annotations

import os
from collections import Counter

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule, Node

from attnpass.find.find import find
from attnpass.index.logic import loads_of
from attnpass.ir.hidden import ABSORBS, hides
from attnpass.ir.mask import EmptyRows
from attnpass.ir.meaning import Meaning
from attnpass.understand.understand import Reader
from tests.helpers.mask_programs import Program, additive, boolean, programs
from tests.helpers.masks_computed import computed

EXAMPLES = int(os.environ.get("ATTNPASS_EXAMPLES", "700"))
outcomes: Counter[str] = Counter()
# A failing program prints its code; making it smaller takes minutes, since each attempt builds a graph.
SETTINGS = settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    report_multiple_bugs=False,
)


def understood(program: Program, mask: Node) -> tuple[Meaning, GraphModule, Tensor]:
    gm, real = program.finish(mask)
    findings = find(gm)
    (found,) = findings.calls
    meaning = Reader(findings.reading).understood(found).meaning
    assert meaning is not None
    return meaning, gm, real.expand(program.sizes)


def check(program: Program, mask: Node) -> None:
    meaning, gm, real = understood(program, mask)
    outcomes["proved" if not meaning.stop else "tensor"] += 1
    if meaning.stop:
        return
    for term in meaning.spec.terms:
        outcomes[term.term.value] += 1
    allowed, bias = computed(meaning, gm, program.inputs, program.sizes)
    if real.dtype == torch.bool:
        assert torch.equal(allowed, real), f"{meaning.allowed}\n{gm.code}"
    else:
        hidden = torch.tensor([hides(x, real.dtype) for x in real.flatten().tolist()]).reshape(real.shape)
        near = (real.float() <= torch.finfo(real.dtype).min * 0.9) | hidden  # the lowest number, moved by a bias
        assert torch.equal(allowed, ~near), f"{meaning.allowed}\n{gm.code}"
        assert torch.equal(bias.to(real.dtype)[allowed], real[allowed]), f"{meaning.bias}\n{gm.code}"
    check_empty_rows(meaning, allowed, real)


def check_empty_rows(meaning: Meaning, allowed: Tensor, real: Tensor) -> None:
    empty = ~allowed.any(-1)
    assert meaning.spec.rows_may_be_empty or not empty.any(), str(meaning.allowed)
    if empty.any():
        assert len(loads_of(meaning.allowed)) or meaning.spec.rows_may_be_empty
        hidden = real[empty].unique() if real.dtype != torch.bool else torch.tensor([float("-inf")])
        if meaning.spec.empty is EmptyRows.ZERO:
            assert hidden.tolist() == [float("-inf")]
        else:
            absorbed = all(value <= ABSORBS for value in hidden.tolist())
            assert meaning.spec.empty is (EmptyRows.ADDED if absorbed else EmptyRows.RAW)


@SETTINGS
@given(programs(), st.data())
def test_bool_masks_mean_what_they_are(program: Program, data: st.DataObject) -> None:
    check(program, boolean(program, data.draw, 3))


@SETTINGS
@given(programs(), st.data())
def test_additive_masks_mean_what_they_are(program: Program, data: st.DataObject) -> None:
    check(program, additive(program, data.draw))


def test_most_programs_were_proved() -> None:
    print(f"\nrandom mask programs: {dict(outcomes)}, none wrong")
    if outcomes:
        assert outcomes["proved"] > outcomes["tensor"] / 2
