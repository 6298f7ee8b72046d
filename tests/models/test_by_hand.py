"""Models of transformers with ``attn_implementation="eager"``: every attention layer is recognised and rewritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import attnpass
from tests.helpers.compiled import decisions, run
from tests.models.tiny_models import LAYERS, MODELS

pytest.importorskip("transformers")


def leaves(output: Any) -> list[Tensor]:
    values = tuple(output.values()) if hasattr(output, "values") else output
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_rewritten(name: str) -> None:
    """Gemma 2 has a softcap, which only flex takes here."""
    model, inputs = MODELS[name]("eager")
    with torch.no_grad():
        got, right = run(lambda: model(**inputs), kernel="native_flash,flex"), model(**inputs)
    assert not [report.error for report in attnpass.reports() if report.error]
    assert len(decisions()) == LAYERS[name]
    assert all(decision.rewritten for decision in decisions())
    assert {decision.call.pattern.value for decision in decisions()} == {"handwritten"}
    assert not [miss for report in attnpass.reports() for miss in report.near_misses]
    for mine, wanted in zip(leaves(got), leaves(right), strict=True):
        torch.testing.assert_close(mine, wanted, atol=2e-5, rtol=1e-4)


def test_repeated_heads_are_undone() -> None:
    model, inputs = MODELS["llama"]("eager")
    with torch.no_grad():
        run(lambda: model(**inputs))
    assert all(decision.call.Hkv == 2 and decision.call.enable_gqa for decision in decisions())


@pytest.mark.parametrize("name", ("llama", "bert", "t5"))
def test_training(name: str) -> None:
    model, inputs = MODELS[name]("eager")
    grads = []
    for compiled in (False, True):
        model.zero_grad()
        output = run(lambda: model(**inputs), kernel="native_flash,native_math") if compiled else model(**inputs)
        leaves(output)[0].square().mean().backward()
        grads.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert [decision.rewritten for decision in decisions()] == [True] * LAYERS[name]
    assert all(decision.call.needs_grad for decision in decisions())
    for key, wanted in grads[0].items():
        torch.testing.assert_close(grads[1][key], wanted, atol=1e-5, rtol=1e-3, msg=key)


def test_attentions_that_are_asked_for_are_a_near_miss() -> None:
    model, inputs = MODELS["bert"]("eager")
    with torch.no_grad():
        run(lambda: model(**inputs, output_attentions=True))
    assert not [decision for decision in decisions() if decision.rewritten]
    misses = [miss for report in attnpass.reports() for miss in report.near_misses]
    assert len(misses) == LAYERS["bert"]
    assert all("materialised" in miss.reason for miss in misses)
