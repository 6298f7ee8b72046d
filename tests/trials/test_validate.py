"""A kernel proves itself before it is used: what is tried, what is remembered, and what a failure does."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.registry import registry
from attnpass.kernels.sage1 import SAGE_1, Sage1
from attnpass.machine.machine import Machine
from attnpass.trials import validate
from attnpass.trials.example import Example
from attnpass.trials.sample import class_of, length_class, sample_of
from attnpass.trials.trials import _validators
from attnpass.trials.validate import VERDICTS, Validator
from tests.helpers.compiled import assert_near, codes, decisions, kernels_used, qkv, run
from tests.standins import flash_attn_2, pretend, sageattention_1

CPU = torch.device("cpu")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tried, in order."""
    tried: list[str] = []
    original = validate.validate

    def counting(kernel: Any, sample: AttentionCall, machine: Machine) -> Any:
        tried.append(f"{kernel.name} {class_of(sample)}")
        return original(kernel, sample, machine)

    monkeypatch.setattr(validate, "validate", counting)
    return tried


@pytest.fixture
def flash2(monkeypatch: pytest.MonkeyPatch) -> Machine:
    flash_attn_2.install(monkeypatch)
    return pretend(monkeypatch, "h100", FLASH_ATTN, "2.8.3")


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def make_call(
    Sq: int = 256, Sk: int = 256, D: int = 64, dtype: torch.dtype = torch.bfloat16, **more: Any
) -> AttentionCall:
    def spec(S: int) -> TensorSpec:
        return TensorSpec((2, 4, S, D), (4 * S * D, D, 4 * D, 1), dtype, CPU)

    return AttentionCall(q=spec(Sq), k=spec(Sk), v=spec(Sk), out=spec(Sq), **more)


def verdict_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "attnpass" / VERDICTS.name).glob("*.json"))


@pytest.mark.usefixtures("flash2")
class TestProof:
    def test_forty_layers_are_tried_once(self, trials: list[str]) -> None:
        q, k, v = qkv()

        def layers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for _ in range(40):
                q = causal(q, k, v)
            return q

        run(layers, q, k, v, kernel="flash2")
        assert kernels_used() == ["flash2"] * 40
        assert len(trials) == 1

    def test_another_process_reads_the_verdict(self, trials: list[str], tmp_path: Path) -> None:
        run(causal, *qkv(), kernel="flash2")
        stored = json.loads(verdict_files(tmp_path)[0].read_text())
        assert stored["value"]["good"] and stored["key"]["library"] == "flash-attn 2.8.3"
        _validators.clear()
        torch._dynamo.reset()
        run(causal, *qkv(), kernel="flash2")
        assert len(trials) == 1

    def test_a_new_version_has_to_prove_itself(
        self, trials: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        run(causal, *qkv(), kernel="flash2")
        pretend(monkeypatch, "h100", FLASH_ATTN, "2.9.0")
        torch._dynamo.reset()
        run(causal, *qkv(), kernel="flash2")
        assert len(trials) == len(verdict_files(tmp_path)) == 2

    def test_an_edited_kernel_has_to_prove_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(tmp_path)
        files = [tmp_path / name for name in ("a_kernel.py", "a_kernel_parts.py", "another.py")]
        for file in files:
            file.write_text("class Kernel: ...\n")
        kernel = importlib.import_module("a_kernel").Kernel
        digests = [validate._source_digest(kernel)]
        for file in files:
            file.write_text("class Kernel: ...  # edited\n")
            digests.append(validate._source_digest(kernel))
        assert digests[0] != digests[1] != digests[2] == digests[3] != ""
        assert validate._source_digest(int) == ""

    def test_a_damaged_verdict_is_as_good_as_none(self, trials: list[str], tmp_path: Path) -> None:
        run(causal, *qkv(), kernel="flash2")
        verdict_files(tmp_path)[0].write_text("{")
        _validators.clear()
        torch._dynamo.reset()
        run(causal, *qkv(), kernel="flash2")
        assert kernels_used()[-1] == "flash2" and len(trials) == 2

    def test_training_is_another_class_and_its_gradients_are_compared(self, trials: list[str]) -> None:
        run(causal, *qkv(grad=True), kernel="flash2")
        assert len(trials) == 1 and trials[0].endswith("training")

    def test_it_can_be_switched_off(self, trials: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "0")
        run(causal, *qkv(), kernel="flash2")
        assert kernels_used() == ["flash2"] and not trials

    def test_random_numbers_of_the_program_are_untouched(self, tmp_path: Path) -> None:
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        Validator(tmp_path).refusals(registry()["flash2"], make_call(), Machine.look(CPU))
        assert torch.equal(torch.rand(3), expected)


class TestFailure:
    @pytest.fixture
    def broken(self, monkeypatch: pytest.MonkeyPatch, flash2: Machine) -> Any:
        """Replace flash-attn's forward by something that is wrong in one way."""

        def replace_by(function: Any) -> None:
            honest = flash_attn_2._flash_attn_forward

            def wrong(**arguments: Any) -> Any:
                return function(honest, arguments)

            monkeypatch.setattr("flash_attn.flash_attn_interface._flash_attn_forward", wrong)

        return replace_by

    def test_a_wrong_kernel_is_refused_with_its_error(self, broken: Any, caplog: pytest.LogCaptureFixture) -> None:
        broken(lambda honest, a: honest(**{**a, "softmax_scale": a["softmax_scale"] * 1.5}))
        q, k, v = qkv()
        out = run(causal, q, k, v, kernel="flash2,native_math")
        decision = decisions()[0]
        assert decision.kernel == "native_math"  # the next wish
        rejection = decision.rejections("flash2")[0]
        assert rejection.code is Code.UNPROVED and "output off by" in str(rejection) and "allowed" in str(rejection)
        assert "flash2 is wrong here, and is not used" in caplog.text
        assert_near(out, causal(q, k, v))

    def test_an_exception_is_a_refusal(self, broken: Any) -> None:
        def fail(honest: Any, arguments: Any) -> Any:
            raise RuntimeError("no kernel image is available")

        broken(fail)
        run(causal, *qkv(), kernel="flash2")
        assert "no kernel image is available" in str(decisions()[0].rejections("flash2")[0])

    def test_changing_an_operand_is_a_refusal(self, broken: Any) -> None:
        def change(honest: Any, arguments: Any) -> Any:
            result = honest(**arguments)
            arguments["k"].mul_(0.5)
            return result

        broken(change)
        run(causal, *qkv(), kernel="flash2")
        assert codes(decisions()[0], "flash2") == {"unproved"}
        assert "changes its operands in place" in str(decisions()[0].rejections("flash2")[0])

    def test_nan_is_a_refusal(self, broken: Any) -> None:
        broken(lambda honest, a: (honest(**a)[0] * torch.nan, *honest(**a)[1:]))
        run(causal, *qkv(), kernel="flash2")
        assert "NaN" in str(decisions()[0].rejections("flash2")[0])

    def test_strict_names_the_trial(self, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_STRICT", "1")
        broken(lambda honest, a: (honest(**a)[0] * 0, *honest(**a)[1:]))
        with pytest.raises(Exception, match="trial on random data is output off by"):
            run(causal, *qkv(), kernel="flash2")


class TestSage1:
    """It has to be caught without any rule that was written for it."""

    class Bare(Sage1):
        def check(self, call: AttentionCall, machine: Machine) -> tuple[()]:
            return ()

    @pytest.fixture
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> Machine:
        sageattention_1.install(monkeypatch)
        return pretend(monkeypatch, "h100", SAGE_1, "1.0.6")

    @pytest.mark.parametrize("length", (77, 100, 197, 200, 300, 500, 1000))
    def test_lengths_that_are_no_multiple_of_64(self, machine: Machine, tmp_path: Path, length: int) -> None:
        reasons = Validator(tmp_path).refusals(self.Bare(), make_call(length, length), machine)
        assert [reason.code for reason in reasons] == [Code.UNPROVED]

    @pytest.mark.parametrize("length", (64, 128, 192, 4096))
    def test_multiples_of_64_are_proved(self, machine: Machine, tmp_path: Path, length: int) -> None:
        assert not Validator(tmp_path).refusals(self.Bare(), make_call(length, length), machine)


class TestClasses:
    def test_lengths(self) -> None:
        found = [length_class(size) for size in (1, 256, 4096, 64, 8, 200, 77, 197)]
        assert found == ["1", "128", "128", "64", "8", "8", "any", "any"]

    def test_lengths_of_one_class_share_a_sample(self) -> None:
        assert class_of(sample_of(make_call(4096, 4096))) == class_of(sample_of(make_call(1024, 1024)))
        assert class_of(sample_of(make_call(4096, 4096))) != class_of(sample_of(make_call(4095, 4095)))

    def test_what_kernels_branch_on_is_in_the_class(self) -> None:
        plain = make_call()
        others = [
            make_call(D=128),
            make_call(dtype=torch.float16),
            make_call(256, 128),
            replace(plain, mask=MaskSpec.causal()),
            replace(plain, softcap=30.0),
            replace(plain, needs_grad=True),
            replace(plain, mask=MaskSpec.from_tensor(replace(plain.q, dtype=torch.bool))),
            replace(plain, scale=-1.0),
        ]
        assert len({class_of(sample_of(call)) for call in [plain, *others]}) == len(others) + 1

    @pytest.mark.parametrize("empty", (True, False))
    def test_rows_without_keys_are_tried_where_the_call_may_have_them(self, empty: bool) -> None:
        padding = MaskTerm(Term.KEY_PADDING)
        spelled = TensorSpec((2, 1, 1, 256), (256, 256, 256, 1), torch.bool, CPU)
        for terms in ((padding,), (padding, MaskTerm(Term.CAUSAL))):
            sample = sample_of(make_call(mask=MaskSpec(terms, spelled=spelled, rows_may_be_empty=empty)))
            seen = Example(sample, hides=True).tensors["padding"] & sample.mask.seen(256, 256, CPU)
            assert sample.mask.rows_may_be_empty == empty == (not seen.any(-1).all())
            assert not seen[1, ..., -1, :].all()

    def test_symbolic_lengths_are_tried_at_the_awkward_one(self, flash2: Machine, trials: list[str]) -> None:
        operands = qkv()
        for operand in operands:
            torch._dynamo.mark_dynamic(operand, 2)
        run(F.scaled_dot_product_attention, *operands, kernel="flash2")
        assert kernels_used() == ["flash2"]
        assert "Sk77" in trials[0]
