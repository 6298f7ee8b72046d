"""What a report says of time: only what was measured, and what a library that is not there would gain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import Pattern
from attnpass.ir.decision import NATIVE, Basis, Decision, Reason
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.report import log
from attnpass.report.pages.graph_page import to_html
from attnpass.report.record import Report, calls_of
from attnpass.report.text import advice, bar, block, call_text, debug_text, expected, mask_text, why
from attnpass.select.evidence import NOTHING, Learnt, Timed
from attnpass.select.select import select
from attnpass.settings.config import Config
from benchmarks.shapes import Shape
from tests.helpers import report_examples as examples

H100 = KNOWN_MACHINES["h100"]
LONG = Shape((1, 24, 24, 16384, 16384, 128))


def decided(shape: Shape = LONG, machine: Machine = H100, learnt: Learnt = NOTHING, train: bool = False) -> Decision:
    return select(shape.call(train, torch.device("cuda")), registry(), machine, Config(), learnt)


def report(*decisions: Decision) -> Report:
    return Report(graph=0, decisions=decisions)


def test_the_table_is_named_with_its_numbers() -> None:
    decision = decided()
    assert decision.basis is Basis.TABLE and decision.kernel == "native_cudnn"
    assert why(decision).startswith("the fastest exact kernel that takes the call, by the table: native_cudnn ")
    assert "flash3" not in why(decision)  # it is not there


def test_where_nothing_was_measured_no_kernel_is_called_the_fastest() -> None:
    for machine in ("a100", "cpu"):
        call = Shape((1, 4, 4, 128, 128, 64)).call(False, torch.device("cuda" if machine == "a100" else "cpu"))
        decision = select(call, registry(), KNOWN_MACHINES[machine], Config())
        assert decision.basis is Basis.ORDER and not decision.ms
        assert "fastest" not in why(decision) and "PyTorch's order" in why(decision)
        assert not expected(report(decision))


def test_the_clock_is_named_with_its_numbers() -> None:
    decision = decided(learnt=Learnt(fastest=Timed("native_flash", {"native_flash": 1.0, "native_cudnn": 2.0})))
    assert decision.reason is Reason.TUNED and decision.basis is Basis.CLOCK
    assert why(decision) == "timed here: native_flash 1 ms, native_cudnn 2 ms"


def test_with_a_clock_the_gain_is_by_it_and_a_library_is_advised_by_the_table() -> None:
    ms = {"native_flash": 1.0, "native_cudnn": 2.0}
    decision = decided(learnt=Learnt(fastest=Timed("native_flash", ms)))
    assert decision.ms == {**ms, NATIVE: 2.0}  # cuDNN is what PyTorch asks first
    assert expected(report(decision)).startswith(
        "attention takes 1 ms by the clock, 2 ms as PyTorch would choose: 2.00"
    )
    assert "by the clock and the table" in expected(report(decision, decided()))
    by_table = decided()
    assert decision.missing is not None and by_table.missing is not None
    assert decision.missing.ms == by_table.missing.ms and decision.missing.beside != 1.0
    assert "by the table 1 call would take" in advice(report(decision))["flash3"]


def test_what_pytorch_would_read_as_a_tensor_is_not_what_was_timed() -> None:
    spelled = TensorSpec((1, 1, 4096, 4096), (4096 * 4096, 4096 * 4096, 4096, 1), torch.bool, torch.device("cuda"))
    call = Shape((2, 32, 8, 4096, 4096, 128), "causal").call(False, torch.device("cuda"))
    call = replace(call, mask=replace(call.mask, spelled=spelled))
    clock = Learnt(fastest=Timed("native_cudnn", {"native_cudnn": 0.4, "native_flash": 0.6}))
    read, untimed = (select(call, registry(), H100, Config(), learnt) for learnt in (clock, NOTHING))
    assert read.ms[NATIVE] == untimed.ms[NATIVE] > 2 * read.ms["native_cudnn"]


def test_a_kernel_by_name_claims_nothing() -> None:
    call = LONG.call(False, torch.device("cuda"))
    decision = select(call, registry(), H100, Config.load({"attnpass.kernel": "native_flash"}))
    assert decision.basis is None and why(decision) == "native_flash was asked for by name"


def test_what_would_be_worth_installing_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    decision = decided()
    assert decision.missing is not None and decision.missing.kernel == "flash3"
    told = advice(report(decision, decision))["flash3"]
    assert "2 calls" in told and "times faster" in told and "pip install tokenspeed-fa3" in told
    log._advised.clear()
    fresh = [log._fresh_advice(report(decision)) for _ in range(2)]
    assert len(fresh[0]) == 1 and not fresh[1]


@pytest.mark.parametrize("why_not", ("installed", "training", "short", "another device", "broken"))
def test_nothing_is_advised_that_would_not_help(why_not: str) -> None:
    machine = {
        "installed": replace(H100, versions={**H100.versions, "flash-attn-3": "3.0.0"}),
        "another device": KNOWN_MACHINES["b200"],
        "broken": replace(
            H100, versions={**H100.versions, "flash-attn-3": "3"}, unusable={"flash-attn-3": "3, broken"}
        ),
    }.get(why_not, H100)
    shape = Shape((1, 4, 4, 128, 128, 64)) if why_not == "short" else LONG
    found = decided(shape, machine, train=why_not == "training")
    assert found.missing is None or found.missing.kernel != "flash3"


def test_the_gain_is_beside_what_pytorch_would_choose() -> None:
    causal = decided(Shape((2, 32, 8, 4096, 4096, 128), "causal"))
    assert NATIVE in causal.ms and "ms as PyTorch would choose" in expected(report(causal))
    by_hand = replace(LONG.call(False, torch.device("cuda")), pattern=Pattern.HANDWRITTEN)
    chosen = select(by_hand, registry(), H100, Config())
    assert NATIVE not in chosen.ms and not expected(report(chosen))  # PyTorch would not see attention there
    assert not expected(report(causal, chosen))  # nor is a part told as the whole


def test_how_the_kernel_gets_the_mask() -> None:
    causal = decided(Shape((2, 8, 8, 1024, 1024, 64), "causal"))
    tensor = decided(Shape((2, 8, 8, 1024, 1024, 64), "bool"))
    assert decided().mask_is_read is None and mask_text(decided()) == ""
    assert causal.mask_is_read is False and mask_text(causal) == "causal; computed from its meaning"
    assert tensor.mask_is_read is True and mask_text(tensor).endswith("read as a tensor")
    kept = examples.kept(examples.call("a", mask=MaskSpec.causal()))
    assert mask_text(kept) == "causal"  # whoever computes it is PyTorch's choice
    assert "(read as a tensor)" not in call_text(tensor)  # nothing else could be expected
    assert [call["mask_is_read"] for call in calls_of(report(causal, tensor).to_dict())] == [False, True]


def test_the_three_renderings_have_the_same_numbers() -> None:
    decision = decided()
    ms = f"{decision.ms['native_cudnn']:.3g}"
    one = report(decision)
    assert f"{ms} ms" in debug_text(one) and ms in to_html(one) and "ms as PyTorch would choose" in block(one)
    assert calls_of(one.to_dict())[0]["basis"] == "table"
    assert calls_of(one.to_dict())[0]["ms"]["native_cudnn"] == round(decision.ms["native_cudnn"], 5)


@pytest.mark.parametrize(("ms", "drawn"), ((1.0, "████"), (0.5, "██"), (0.53, "██▏"), (0.001, "▏")))
def test_bars(ms: float, drawn: str) -> None:
    assert bar(ms, 1.0, width=4) == drawn


def test_a_graph_with_calls_takes_back_that_there_was_none(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_calls_seen", False)
    monkeypatch.setattr(log, "_warned", False)
    log.emit_report(Report(graph=0, nodes=3))
    log.emit_report(report(decided()))
    log.emit_report(report(decided()))
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 2 and "no attention call among 3 nodes" in said[0]
    assert said[1].startswith("attnpass graph 0 has attention calls after all: attnpass graph 0: 1 attention call")
