"""Our calls against the libraries' own signatures, taken from their published wheels when the test runs.

The calls are recorded from the ops themselves, over the stand-ins; each has to bind, by keywords that the function
names. The stand-ins are held to the same signatures. flash-attn 2 has no wheel, and pip would run an sdist's setup to
download it: it is read only where it is installed. ``pytest -m "not wheels"`` leaves out wheels of 40 MB and more.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

from attnpass.ir.mask import MaskSpec
from attnpass.kernels import hub_module
from attnpass.kernels.aiter import AITER
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.kernels.npu import TORCH_NPU
from attnpass.kernels.sage1 import KEY_BLOCK, QUERY_BLOCK, SAGE_1
from attnpass.kernels.xformers import XFORMERS
from attnpass.kernels.xla import TORCH_XLA
from attnpass.machine.library import Library, UnusableError
from tests.helpers.compiled import kernels_used, qkv, run
from tests.helpers.emitted import emitted, window
from tests.helpers.wheels import Wheel, signatures
from tests.standins import (
    aiter,
    flash_attn_2,
    flash_attn_3,
    flash_attn_4,
    module,
    pretend,
    sageattention_1,
    torch_npu,
    torch_xla,
    xformers,
)

FLASH_ATTN_2_FILE = "flash_attn/flash_attn_interface.py"


class Case(NamedTuple):
    """A kernel, its stand-in, what its calls can be, and the wheel that says how they have to look."""

    kernel: str
    library: Library
    standin: Any
    module: str
    machine: str
    wheel: Wheel
    trains: bool = True
    masks: bool = False
    windows: bool = False


CASES = (
    Case(
        "flash3",
        FLASH_ATTN_3,
        flash_attn_3,
        "flash_attn_interface",
        "h100",
        Wheel("tokenspeed-fa3", "3.0.0.post20260810", "flash_attn_interface.py"),
        windows=True,
    ),
    Case(
        "flash4",
        FLASH_ATTN_4,
        flash_attn_4,
        "flash_attn.cute.interface",
        "h100",
        Wheel("flash-attn-4", "4.0.0b36", "flash_attn/cute/interface.py"),
        windows=True,
    ),
    Case(
        "sage1",
        SAGE_1,
        sageattention_1,
        "sageattention.attn_qk_int8_per_block",
        "h100",
        Wheel("sageattention", "1.0.6", "sageattention/attn_qk_int8_per_block.py"),
        trains=False,
    ),
    Case(
        "xformers",
        XFORMERS,
        xformers,
        "xformers.ops.fmha",
        "h100",
        Wheel("xformers", "0.0.35", "xformers/ops/fmha/__init__.py"),
        masks=True,
    ),
    Case(
        "aiter",
        AITER,
        aiter,
        "aiter.ops.mha",
        "mi300",
        Wheel("amd-aiter", "0.1.7.post2.dev18", "aiter/ops/mha.py"),
        masks=True,
        windows=True,
    ),
    Case(
        "npu",
        TORCH_NPU,
        torch_npu,
        "torch_npu",
        "ascend",
        Wheel("torch_npu", "2.13.0", "torch_npu/op_plugin/meta/_fake_registrations.py", "3.11"),
        masks=True,
        windows=True,
    ),
    Case(
        "xla",
        TORCH_XLA,
        torch_xla,
        "torch_xla.experimental.custom_kernel",
        "tpu",
        Wheel("torch_xla", "2.9.0", "torch_xla/experimental/custom_kernel.py", "3.11"),
        masks=True,
    ),
)
LARGE = {"flash3", "aiter", "npu", "xla"}
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def recorded(monkeypatch: pytest.MonkeyPatch, module: str) -> list[Call]:
    """Every call of a function of ``module`` from now on, which still runs."""
    calls: list[Call] = []

    def recorder(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append((name, args, kwargs))
            return function(*args, **kwargs)

        return record

    for name, value in list(vars(sys.modules[module]).items()):
        if inspect.isfunction(value):
            monkeypatch.setattr(sys.modules[module], name, recorder(name, value))
    return calls


def make_calls(monkeypatch: pytest.MonkeyPatch, case: Case) -> list[Call]:
    """Forward and backward, with a mask, with a window: all that our ops of this library pass."""
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    case.standin.install(monkeypatch)
    machine = pretend(monkeypatch, case.machine, case.library, case.wheel.version)
    calls = recorded(monkeypatch, case.module)
    masks = [None, torch.rand(128, 128) > 0.3] if case.masks else [None]
    for mask in masks:
        for grad in (False, True) if case.trains else (False,):
            operands = [*qkv(Sq=128, grad=grad), *([] if mask is None else [mask])]
            out = run(F.scaled_dot_product_attention, *operands, kernel=case.kernel)
            assert kernels_used()[-1] == case.kernel
            if grad:
                out.sum().backward()
    for rule in [MaskSpec.causal(), *([window(5, 3)] if case.windows else [])]:
        operands = qkv(Sq=128)
        gm, refusals = emitted(case.kernel, machine, *operands, mask=rule)
        assert not refusals
        gm(*operands)
    assert calls
    return calls


def assert_binds(calls: list[Call], real: dict[str, inspect.Signature]) -> None:
    for name, args, kwargs in calls:
        assert name in real, f"the library has no {name}"
        assert not args, f"{name} is called by position"
        real[name].bind(**kwargs)
        unnamed = set(kwargs) - set(real[name].parameters)
        assert not unnamed, f"{name} would swallow {unnamed}"


def assert_same(standin: Callable[..., Any], real: inspect.Signature) -> None:
    """The stand-in takes what the library takes, under the same names and with the same defaults."""
    mine = inspect.signature(standin)
    assert list(mine.parameters) == list(real.parameters), standin.__name__
    for each in mine.parameters.values():
        wanted = real.parameters[each.name]
        assert (each.kind, each.default) == (wanted.kind, wanted.default), f"{standin.__name__}: {each.name}"


def marked(cases: Iterable[Case], large: set[str]) -> list[Any]:
    return [
        pytest.param(each, id=each.kernel, marks=pytest.mark.wheels if each.kernel in large else ()) for each in cases
    ]


MARKED = marked(CASES, LARGE)
OLD = marked(
    (each for each in CASES if each.library.min_version and each.library.name == each.wheel.name),
    LARGE | {"xformers"},
)


@pytest.mark.parametrize("case", MARKED)
def test_our_calls_bind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case) -> None:
    calls = make_calls(monkeypatch, case)
    real = signatures(case.wheel.source(tmp_path))
    assert_binds(calls, real)
    for name in {name for name, *_ in calls}:
        if case.kernel in ("aiter", "npu", "xla"):
            assert_same(inspect.unwrap(getattr(sys.modules[case.module], name)), real[name])


@pytest.mark.parametrize("case", OLD)
def test_our_calls_bind_to_the_oldest_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: Case) -> None:
    """What `Library` calls the oldest version that works has the functions, and their arguments."""
    old = replace(case.wheel, version=case.library.min_version)
    calls = make_calls(monkeypatch, case._replace(wheel=old))
    assert_binds(calls, signatures(old.source(tmp_path)))


@pytest.mark.parametrize("version", ("1.0.5", "1.0.6"))
@pytest.mark.parametrize("name", sageattention_1.KERNELS)
def test_the_four_kernels_of_sageattention_1(tmp_path: Path, name: str, version: str) -> None:
    """They are called by the same names, and sageattn rounds in the blocks that ours have."""
    wheel = Wheel("sageattention", version, f"sageattention/{name}.py")
    real = signatures(wheel.source(tmp_path))["forward"]
    assert list(real.parameters) == list(inspect.signature(sageattention_1.KERNELS[name]).parameters)
    rounding = signatures(replace(wheel, file="sageattention/quant_per_block.py").source(tmp_path))["per_block_int8"]
    assert [rounding.parameters[each].default for each in ("BLKQ", "BLKK")] == [QUERY_BLOCK, KEY_BLOCK]


def test_flash_attn_2_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        there = importlib.metadata.distribution(FLASH_ATTN.name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flash-attn is not installed, and has no wheel to read")
    source = Path(str(there.locate_file(FLASH_ATTN_2_FILE))).read_text(encoding="utf-8")
    wheel = Wheel(FLASH_ATTN.name, there.version, FLASH_ATTN_2_FILE)
    case = Case("flash2", FLASH_ATTN, flash_attn_2, "flash_attn.flash_attn_interface", "h100", wheel, windows=True)
    assert_binds(make_calls(monkeypatch, case), signatures(source))


@pytest.mark.parametrize(("version", "file"), (("0.14.0", "kernels/utils.py"), ("0.17.2", "kernels/load.py")))
def test_loading_from_the_hub_binds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, file: str) -> None:
    real, bound = signatures(Wheel("kernels", version, file).source(tmp_path)), []

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            real[name].bind(*args, **kwargs)
            bound.append(name)
            raise UnusableError

        record.__signature__ = real[name]  # type: ignore[attr-defined]
        return record

    module(monkeypatch, "kernels", **{name: recorder(name) for name in ("get_kernel", "get_local_kernel")})
    for wish in ("hub:org/repo", "hub:org/repo@3", "hub:org/repo@branch", "hub:/folder"):
        with pytest.raises(UnusableError):
            hub_module.load(wish, True)
    assert bound == ["get_kernel"] * 3 + ["get_local_kernel"]


@pytest.mark.wheels
def test_the_schema_of_npu_fusion_attention_v3(tmp_path: Path) -> None:
    """The documentation's schema, as the dispatcher reads it: names, and the defaults that are traps."""
    docs = Wheel("torch_npu", "2.13.0", "torch_npu/_op_plugin_docs.py", "3.11").source(tmp_path)
    text = re.search(r"^torch_npu\.(npu_fusion_attention_v3\(.*\) -> \(.*\))", docs, re.MULTILINE)
    assert text is not None
    schema = torch._C.parse_schema(text.group(1))
    defaults = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    assert defaults["scale"] == defaults["keep_prob"] == 1.0
    mine = inspect.signature(torch_npu.npu_fusion_attention_v3).parameters
    for each in schema.arguments:
        assert mine[each.name].default == defaults.get(each.name, inspect.Parameter.empty), each.name


@pytest.mark.parametrize(
    "wrong",
    ({"wrong_name": 1}, {"q": 1}, {"q": 1, "k": 2, "v": 3, "extra": 4}),
    ids=("unknown", "missing", "swallowed"),
)
def test_a_wrong_call_is_found(wrong: dict[str, Any]) -> None:
    real = signatures("@custom_op('x::f')\ndef f(q, k, v, *, scale=1.0, **kwargs): ...")
    assert_binds([("f", (), {"q": 1, "k": 2, "v": 3, "scale": 2.0})], real)
    with pytest.raises((TypeError, AssertionError)):
        assert_binds([("f", (), wrong)], real)
