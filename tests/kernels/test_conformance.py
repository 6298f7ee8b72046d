"""Every kernel against generated calls: right, or refused with a code. Never wrong.

On this machine's CPU each case is rewritten as an fx graph and run; the same cases go through the GPU with
``pytest -m gpu``.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from attnpass import testing
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.library import PYTORCH
from attnpass.select.select import select
from attnpass.settings.config import Config
from tests.helpers.compiled import skip_without

COUNT = 250
COMPILED = {"flex": 24, "flash_decoding": 80}  # each call takes the GPU's compiler seconds
CPU_KERNELS = ("native_flash", "native_math", "reference", "flex")
CUDA_KERNELS = ("native_flash", "native_cudnn", "native_efficient", "native_math", "reference", "flex")
CUDA_LIBRARIES = (
    "flash_decoding",
    "flash2",
    "flash3",
    "flash3_fp8",
    "flash4",
    "sage",
    "sage_triton",
    "sage_fp16",
    "sage_fp8_sm90",
    "sage1",
    "xformers",
)


def conform(kernel: str, device: str, seed: int, count: int = COUNT) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    limits = registry()[kernel].limits
    own = testing.cases_for(limits, count, seed) if limits.library != PYTORCH else []
    for case in own or testing.cases(count, seed):
        fit = testing.runnable(case, device)
        if fit is not None:
            outcome = checked(kernel, fit, device)
            outcomes["refused" if outcome.refused else "right"] += 1
    return outcomes


def checked(kernel: str, case: testing.Case, device: str) -> testing.Outcome:
    """A library may raise (a build without some head dims, say) if users never see it: the trial refuses the kernel."""
    try:
        return testing.check(kernel, case, device)
    except RuntimeError:
        outcome = testing.check(kernel, case, device, probe=True)
        assert Code.UNPROVED in outcome.codes, f"{case}: {kernel} raises, and its trial does not"
        return outcome


@pytest.mark.parametrize("seed", (1, pytest.param(2, marks=pytest.mark.slow)))
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_right_or_refused_on_cpu(kernel: str, seed: int, record_property: pytest.RecordProperty) -> None:
    outcomes = conform(kernel, "cpu", seed)
    print(f"\nconformance of {kernel} on the CPU, seed {seed}: {dict(outcomes)}, none wrong")
    record_property("outcomes", str(dict(outcomes)))
    assert outcomes["right"] >= (20 if kernel == "flex" else 80)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", (*CUDA_KERNELS, *CUDA_LIBRARIES))
def test_right_or_refused_on_cuda(kernel: str) -> None:
    skip_without(registry()[kernel].limits.library)
    outcomes = conform(kernel, "cuda", seed=3, count=COMPILED.get(kernel, COUNT))
    print(f"\nconformance of {kernel} on CUDA: {dict(outcomes)}, none wrong")
    assert outcomes["right"] >= 10


@pytest.mark.parametrize("kernel", [name for name in registry() if name != "native"])
def test_every_refusal_on_another_device_says_so(kernel: str) -> None:
    """A kernel that does not run here refuses each call by name of the device, and never touches it."""
    if "cpu" in registry()[kernel].limits.devices:
        pytest.skip("runs on the CPU")
    spec = TensorSpec((1, 2, 8, 16), (256, 128, 16, 1), torch.float16, torch.device("cpu"))
    decision = select(AttentionCall(q=spec, k=spec, v=spec, out=spec), registry(), KNOWN_MACHINES["cpu"], Config())
    assert "device" in {reason.code.value for reason in decision.rejections(kernel)}


def test_cases_are_the_same_for_the_same_seed() -> None:
    assert testing.cases(50, seed=7) == testing.cases(50, seed=7) != testing.cases(50, seed=8)


def test_check_catches_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite itself can fail: a kernel that forgets the mask is found."""
    kernel = registry()["native_math"]
    honest = type(kernel).emit

    def forgets(self, emitter, call, args):  # type: ignore[no-untyped-def]
        return honest(self, emitter, call, type(args)(args.q, args.k, args.v, None, args.scale))

    monkeypatch.setattr(type(kernel), "emit", forgets)
    with pytest.raises(AssertionError, match="off by"):
        testing.check("native_math", testing.Case((1, 2, 2, 8, 8, 16, 16), mask="bool"))
