"""ATTNPASS_TUNE: what is timed, what wins, what is remembered, and what a Ctrl-C leaves."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.cli import main
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall, Context
from attnpass.ir.decision import Reason
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.report.record import calls_of
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.trials import cache
from attnpass.trials import tuner as tuning
from attnpass.trials.clock import Timing
from attnpass.trials.example import Example
from attnpass.trials.signature import signature
from attnpass.trials.trials import Trials, _tuners
from attnpass.trials.tuner import TUNED, Candidate, Tuner, cost_measured, key_of

CPU = torch.device("cpu")
Steps = dict[str, int]


def make_call(
    S: int = 64, device: torch.device = CPU, dtype: torch.dtype = torch.float32, **more: object
) -> AttentionCall:
    x = TensorSpec((2, 4, S, 16), (4 * S * 16, 16, 4 * 16, 1), dtype, device)
    return AttentionCall(q=x, k=x, v=x, out=x, **more)  # type: ignore[arg-type]


def found(call: AttentionCall, machine: Machine | None = None) -> list[Candidate]:
    machine = machine or Machine.look(call.device)
    return Trials(registry()).candidates(select(call, registry(), machine, Config()), machine)


@pytest.fixture
def flex_wins(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """A clock on which FlexAttention is the fastest; how often each kernel was asked for a run."""
    asked: Steps = {}
    real = Example.step

    def step(self: Example, kernel: object, *rest: object) -> object:
        asked[kernel.name] = asked.get(kernel.name, 0) + 1  # type: ignore[attr-defined]
        return real(self, registry()["native_math"], *rest)  # type: ignore[arg-type]

    def clock(steps: dict[str, object], *_: object) -> dict[str, Timing]:
        return {name: Timing(1.0 if name == "flex" else 2.0, 0.1) for name in steps}

    monkeypatch.setattr(Example, "step", step)
    monkeypatch.setattr(tuning, "in_turns", clock)
    return asked


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class TestProgram:
    def test_the_winner_is_used_and_the_report_says_so(self, flex_wins: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_TUNE", "1")
        x = torch.randn(2, 4, 64, 16)
        with torch.no_grad():
            out = torch.compile(causal, backend="attnpass")(x, x, x)
        decision = attnpass.last_report().decisions[0]
        assert decision.kernel == "flex" and decision.reason is Reason.TUNED
        assert decision.note == "timed here: flex 1 ms, native_flash 2 ms"
        assert torch.allclose(out, causal(x, x, x), atol=1e-5)
        assert calls_of(attnpass.last_report().to_dict())[0]["reason"] == "tuned"

    def test_many_layers_are_timed_once_and_a_second_start_times_nothing(
        self, flex_wins: Steps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ATTNPASS_TUNE", "1")

        def layers(x: Tensor) -> Tensor:
            for _ in range(6):
                x = causal(x, x, x)
            return x

        for _ in range(2):
            with torch.no_grad():
                torch.compile(layers, backend="attnpass")(torch.randn(2, 4, 64, 16))
            assert flex_wins == {"native_flash": 1, "flex": 1}
            _tuners.clear()
            torch._dynamo.reset()

    def test_a_wish_by_name_is_not_timed(self, flex_wins: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_TUNE", "1")
        monkeypatch.setenv("ATTNPASS_KERNEL", "native_math")
        x = torch.randn(2, 4, 64, 16)
        with torch.no_grad():
            torch.compile(causal, backend="attnpass")(x, x, x)
        assert attnpass.last_report().decisions[0].kernel == "native_math" and not flex_wins

    def test_timing_is_not_counted_as_the_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_TUNE", "1")
        x = torch.randn(2, 4, 64, 16)
        with torch.no_grad():
            torch.compile(causal, backend="attnpass")(x, x, x)
        (made,) = _tuners.values()
        assert made.spent * 1000 > attnpass.last_report().pass_ms > 0


class TestTuner:
    def test_the_real_clock_on_the_real_kernels(self, tmp_path: Path) -> None:
        tuned = Tuner(tmp_path).fastest(call := make_call(), found(call), Machine.look(CPU))
        assert tuned is not None and set(tuned.ms) == {"native_flash", "flex"} and not tuned.failed
        assert tuned.winner in tuned.ms and min(tuned.ms.values()) > 0

    @pytest.mark.parametrize("rules", ((), (MaskTerm(Term.CAUSAL),)))
    def test_padding_is_timed_as_one_that_hides_nothing(self, rules: tuple[MaskTerm, ...]) -> None:
        spelled = TensorSpec((2, 1, 64, 64), (4096, 4096, 64, 1), torch.bool, CPU)
        padding = MaskTerm(Term.KEY_PADDING, tensor=TensorSpec((2, 64), (64, 1), torch.bool, CPU))
        call = make_call(mask=MaskSpec((*rules, padding), rows_may_be_empty=True, spelled=spelled))
        by_name = {c.kernel.name: c for c in found(call)}
        assert by_name["native_flash"].spelled and not by_name["flex"].spelled
        example = Example(signature(call) or call)
        assert example.tensors["padding"].all()
        out = example.step(by_name["flex"].kernel, Machine.look(CPU))()
        q, k, v = (example.tensors[name] for name in "qkv")
        assert isinstance(out, Tensor)
        assert torch.allclose(out, F.scaled_dot_product_attention(q, k, v, is_causal=bool(rules)), atol=1e-5)

    def test_documents_are_not_timed(self, tmp_path: Path) -> None:
        spelled = TensorSpec((2, 1, 64, 64), (4096, 4096, 64, 1), torch.bool, CPU)
        mask = MaskSpec((MaskTerm(Term.SAME_SEGMENT),), rows_may_be_empty=True, spelled=spelled)
        call = make_call(mask=mask)
        assert signature(call) is None
        assert Tuner(tmp_path).fastest(call, found(call), Machine.look(CPU)) is None

    def test_a_rule_that_is_spelled_is_timed_as_a_tensor_for_who_reads_it(self) -> None:
        spelled = TensorSpec((1, 1, 64, 64), (4096, 4096, 64, 1), torch.bool, CPU)
        window = (MaskTerm(Term.CAUSAL), MaskTerm(Term.WINDOW, left=7))
        call = make_call(mask=MaskSpec(window, rows_may_be_empty=False, spelled=spelled))
        by_name = {c.kernel.name: c for c in found(call)}
        assert by_name["native_flash"].spelled and not by_name["flex"].spelled
        example = Example(signature(call) or call)
        for candidate in by_name.values():
            out = example.step(candidate.kernel, Machine.look(CPU), candidate.spelled)()
            assert isinstance(out, Tensor) and out.shape == (2, 4, 64, 16) and out.isfinite().all()

    def test_under_autocast_it_is_timed_in_the_dtype_that_it_is_computed_in(self) -> None:
        call = make_call(context=Context(autocast=torch.bfloat16))
        call = replace(call, out=replace(call.out, dtype=torch.bfloat16))
        made = Example(signature(call) or call)
        for name in ("native_flash", "flex"):
            out = made.step(registry()[name], Machine.look(CPU))()
            assert made.tensors["q"].dtype == torch.float32
            assert isinstance(out, Tensor) and out.dtype == torch.bfloat16 and out.isfinite().all()

    def test_replayed_launches_do_not_count_and_are_another_outcome(self) -> None:
        call, h100 = make_call(), KNOWN_MACHINES["h100"]
        replayed = replace(h100, cuda_graphs=True)
        slow_host = Timing(0.01, 0.5)
        assert cost_measured("another", slow_host, call, h100) == 0.5
        assert cost_measured("another", slow_host, call, replayed) == 0.01
        assert key_of(call, [], h100) != key_of(call, [], replayed)

    def test_one_candidate_needs_no_clock(self, tmp_path: Path) -> None:
        training = make_call(needs_grad=True)
        assert [c.kernel.name for c in found(training)] == ["native_flash"]
        assert Tuner(tmp_path).fastest(training, found(training), Machine.look(CPU)) is None

    def test_after_the_time_for_all_nothing_more_is_timed(
        self, tmp_path: Path, flex_wins: Steps, caplog: pytest.LogCaptureFixture
    ) -> None:
        call, tuner = make_call(), Tuner(tmp_path, in_all=0.0)
        with caplog.at_level(logging.WARNING, "attnpass"):
            assert tuner.fastest(call, found(call), Machine.look(CPU)) is None
        assert "attnpass tune" in caplog.text and not flex_wins

    def test_ctrl_c_keeps_what_is_known(
        self, tmp_path: Path, flex_wins: Steps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tuner = Tuner(tmp_path)
        first, second = make_call(64), make_call(128)
        tuner.fastest(first, found(first), Machine.look(CPU))

        def interrupted(*_: object) -> dict[str, Timing]:
            raise KeyboardInterrupt

        monkeypatch.setattr(tuning, "in_turns", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tuner.fastest(second, found(second), Machine.look(CPU))
        again = Tuner(tmp_path).fastest(first, found(first), Machine.look(CPU))
        assert again is not None and again.winner == "flex"

    def test_a_kernel_that_cannot_be_timed_loses_with_its_reason(
        self, tmp_path: Path, flex_wins: Steps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Example.step

        def step(self: Example, kernel: object, *rest: object) -> object:
            if kernel.name == "flex":  # type: ignore[attr-defined]
                raise RuntimeError("out of shared memory")
            return real(self, kernel, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Example, "step", step)
        tuned = Tuner(tmp_path).fastest(call := make_call(), found(call), Machine.look(CPU))
        assert tuned is not None and tuned.winner == "native_flash"
        assert tuned.failed == {"flex": "RuntimeError: out of shared memory"}


class TestMemory:
    def test_the_key_holds_what_the_outcome_depends_on(self) -> None:
        machine = KNOWN_MACHINES["h100"]
        call = make_call(device=torch.device("cuda", 0), dtype=torch.bfloat16)
        some = [Candidate(registry()["native_cudnn"]), Candidate(registry()["native_flash"])]
        key = key_of(call, some, machine)
        assert key["candidates"] == "native_cudnn 2.13.0, native_flash 2.13.0"
        others = [
            key_of(replace(call, needs_grad=True), some, machine),
            key_of(call, some[:1], machine),
            key_of(call, some, replace(machine, driver="580.1")),
            key_of(call, some, replace(machine, name="another")),
            key_of(call, some, replace(machine, versions={"torch": "2.14.0"})),
        ]
        assert all(other != key for other in others)

    def test_a_damaged_file_is_set_aside_with_a_message(
        self, tmp_path: Path, flex_wins: Steps, caplog: pytest.LogCaptureFixture
    ) -> None:
        call = make_call()
        Tuner(tmp_path).fastest(call, found(call), Machine.look(CPU))
        (path,) = (tmp_path / TUNED.name).glob("*.json")
        path.write_text('{"key": {"ca')
        with caplog.at_level(logging.WARNING, "attnpass"):
            assert Tuner(tmp_path).fastest(call, found(call), Machine.look(CPU)) is not None
        assert "cannot be read" in caplog.text
        assert path.with_name(path.name + cache.DAMAGED).read_text() == '{"key": {"ca'
        assert json.loads(path.read_text())["value"]["winner"] == "flex" and flex_wins["flex"] == 2

    def test_what_another_version_kept_is_timed_anew(self, tmp_path: Path, flex_wins: Steps) -> None:
        call = make_call()
        Tuner(tmp_path).fastest(call, found(call), Machine.look(CPU))
        (path,) = (tmp_path / TUNED.name).glob("*.json")
        stored = json.loads(path.read_text())
        path.write_text(json.dumps({**stored, "value": {"best": "flex"}}))
        assert TUNED.everything(tmp_path) == []
        Tuner(tmp_path).fastest(call, found(call), Machine.look(CPU))
        assert flex_wins["flex"] == 2

    def test_a_folder_that_cannot_be_written_to_costs_nothing_but_the_next_start(
        self, tmp_path: Path, flex_wins: Steps
    ) -> None:
        file = tmp_path / "file"
        file.write_text("")
        call = make_call()
        assert Tuner(file / "x").fastest(call, found(call), Machine.look(CPU)) is not None


class TestCommand:
    SHAPE = ("tune", "--shape", "1,2,64,16", "--dtype", "fp32")

    def test_tune_a_shape_and_show_it(
        self, flex_wins: Steps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("ATTNPASS_CACHE", str(tmp_path))
        assert main(["tune", "--show"]) == 0
        assert "nothing was timed yet" in capsys.readouterr().out
        assert main([*self.SHAPE]) == 0
        assert "flex 1 ms, native_flash 2 ms" in capsys.readouterr().out
        assert main(["tune", "--show", "--json"]) == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert shown["winner"] == "flex" and shown["call"].startswith("B1 H2 S64 D16")
        assert main([*self.SHAPE, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fastest"] == "flex"

    def test_tune_a_model(
        self, flex_wins: Steps, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("ATTNPASS_CACHE", str(tmp_path))
        file = tmp_path / "net.py"
        file.write_text(
            "import torch\nfrom torch.nn.functional import scaled_dot_product_attention as S\n"
            "def model(x):\n    return S(x, x, x)\ninputs = torch.randn(1, 2, 64, 16)\n"
        )
        assert main(["tune", "--model", str(file)]) == 0
        out = capsys.readouterr().out
        assert "timed here: flex 1 ms" in out and "1 kind of call" in out

    def test_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["tune"]) == 2
        assert "give one of --model, --shape and --show" in capsys.readouterr().err
        assert main([*self.SHAPE, "--training"]) == 2
        assert "needs two kernels that take it and may win, found native_flash" in capsys.readouterr().err
