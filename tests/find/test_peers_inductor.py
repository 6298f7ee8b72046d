"""The attention that Inductor itself looks for: every pattern of the installed PyTorch is found, and right."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.fx_passes import fuse_attention

import attnpass
from tests.helpers.compiled import assert_near, decisions, run

Pattern = tuple[Callable[..., Tensor], list[Tensor], dict[str, float]]


NUMBERED = {name: value for name, value in vars(fuse_attention).items() if re.fullmatch(r"_sfdp_pattern_\d+", name)}
LEFT = {  # in half precision no kernel is sure to give the same, whatever the mask holds
    "_sfdp_pattern_19_half": "scores are hidden by -65504 and there is a bias, which may be lower still",
    "_sfdp_pattern_21_half": "the scores are cast to float16 after a bias, which may overflow there",
    "_sfdp_pattern_21_half_bs1": "the scores are cast to float16 after a bias, which may overflow there",
    "_sfdp_pattern_22_half": "the scores are cast to float16 after a bias, which may overflow there",
    "_sfdp_pattern_22_half_bs1": "the scores are cast to float16 after a bias, which may overflow there",
}


def programs() -> dict[str, Callable[..., Any]]:
    """The patterns as somebody else's functions: Dynamo captures no code of Inductor's own files."""
    module = ModuleType("patterns_of_inductor")
    known = vars(module)
    known.update({**vars(fuse_attention), "__name__": module.__name__})
    known.update({name: FunctionType(f.__code__.replace(co_filename=__file__), known) for name, f in NUMBERED.items()})
    sys.modules[module.__name__] = module  # where Dynamo looks for what one pattern calls
    return {name: known[name] for name in NUMBERED}


def patterns() -> dict[str, Pattern]:
    """What Inductor traces its patterns with: the function, its tensors, and the numbers that stand for any."""
    made: dict[str, Pattern] = {}
    callable_ = programs()
    for name, entry in fuse_attention._get_sfdp_patterns(torch.device("cpu")):
        kind = name.removesuffix("_training").removesuffix("_inference")
        (number,) = re.findall(r"_sfdp_pattern_\d+", kind)
        drops = "dropout_p" in NUMBERED[number].__code__.co_varnames
        numbers = {**({"dropout_p": 0.0} if drops else {}), **entry["scalar_workaround"]}
        made.setdefault(kind, (callable_[number], entry["example_inputs"], numbers))
    return made


PATTERNS = patterns()
CASES = [pytest.param(name, marks=() if name in NUMBERED else pytest.mark.slow) for name in PATTERNS]


def filled(given: list[Tensor], grad: bool) -> list[Tensor]:
    """Numbers for the empty tensors. A bool mask never hides a whole row: of which key 0 is a part."""
    generator = torch.Generator().manual_seed(0)

    def fill(x: Tensor) -> Tensor:
        numbers = torch.randn(x.shape, generator=generator)
        if x.dtype == torch.bool:
            numbers[..., 0] = 1.0
            return numbers > 0
        if not x.ndim:
            return torch.full_like(x, 2.0)
        made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(numbers)
        return made.requires_grad_(grad and x.requires_grad)

    return [fill(x) for x in given]


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else [x for x in output if isinstance(x, Tensor)]


def test_all_are_here() -> None:
    assert {re.findall(r"_sfdp_pattern_\d+", name)[0] for name in PATTERNS} == set(NUMBERED)
    assert len(NUMBERED) >= 20


@pytest.mark.parametrize("name", CASES)
def test_found_and_right(name: str) -> None:
    pattern, empty, numbers = PATTERNS[name]
    given = filled(empty, grad=False)
    options = {key: 0.0 if key == "dropout_p" else value for key, value in numbers.items()}
    with torch.no_grad():
        wanted = tensors(pattern(*given, **options))
        got = tensors(run(lambda *args: pattern(*args, **options), *given, kernel="native_math,flex"))
    if name in LEFT:
        assert not decisions()
        assert LEFT[name] in attnpass.reports()[-1].near_misses[0].reason
        return
    (decision,) = decisions()
    call = decision.call
    assert decision.rewritten or call.v.dtype != call.q.dtype  # no kernel takes two dtypes
    for mine, eager in zip(got, wanted, strict=True):
        assert_near(mine, eager)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PATTERNS if name not in LEFT])
def test_found_in_training(name: str) -> None:
    """With dropout, whose bits differ: only whether it is found, and with which probability."""
    pattern, empty, numbers = PATTERNS[name]
    given = filled(empty, grad=True)
    run(lambda *args: pattern(*args, **numbers), *given, kernel="native_math")
    (decision,) = decisions()
    assert decision.call.needs_grad == any(x.requires_grad for x in given)
    assert decision.call.dropout_p == pytest.approx(numbers.get("dropout_p", 0.0))
