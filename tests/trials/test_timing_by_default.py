"""Calls of which nothing was measured are timed unasked: briefly, by kernels that compile nothing, never by ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskTerm, Term
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.trials import trials
from attnpass.trials.trials import GRAPH_SECONDS, UNASKED_SECONDS, Trials
from attnpass.trials.tuner import Candidate, Tuned
from benchmarks.shapes import Shape
from tests.select.test_auto import call

A100, H100 = KNOWN_MACHINES["a100"], KNOWN_MACHINES["h100"]
LONG = call(4096)


@dataclass
class Clock:
    """In the place of a tuner: says what it was asked, and that the last candidate wins."""

    spent: float = 0.0
    ms: float = 1.0
    asked: list[tuple[list[str], Any]] = field(default_factory=list)

    def fastest(self, call: AttentionCall, candidates: Sequence[Candidate], *rest: Any, least: int = 2) -> Tuned | None:
        names = [candidate.kernel.name for candidate in candidates]
        self.asked.append((names, rest[1]))
        return Tuned(names[-1], dict.fromkeys(names, self.ms), {}, "2026-11-28") if len(names) >= least else None


def asked(one: AttentionCall, machine: Machine, **state: Any) -> list[tuple[list[str], Any]]:
    clock = Clock(state.pop("spent", 0.0))
    made = Trials(registry(), tuner=clock, thorough=False, **state)  # type: ignore[arg-type]
    made.fastest(select(one, registry(), machine, Config()), machine)
    return clock.asked


def test_a_gpu_that_nobody_measured_asks_the_clock() -> None:
    ((names, seconds),) = asked(LONG, A100)
    assert {"native_flash", "native_efficient", "native_cudnn"} == set(names) and seconds == UNASKED_SECONDS


def test_what_pytorch_would_choose_is_among_the_candidates() -> None:
    for machine in (A100, replace(A100, capability="sm_89"), replace(H100, capability="sm_100")):
        ((names, _),) = asked(LONG, machine)
        assert select(LONG, registry(), machine, Config()).kernel in names


def test_a_gpu_that_was_measured_asks_it_too() -> None:
    """The table errs by up to a half at short calls: see `benchmarks.regret`."""
    short = call(512)
    ((names, seconds),) = asked(short, H100)
    assert set(names) == {"native_flash", "native_cudnn", "native_efficient"} and seconds == UNASKED_SECONDS


def test_what_the_table_rules_out_and_a_library_that_it_does_not_know_are_left_alone() -> None:
    machine = replace(H100, versions={**H100.versions, "xformers": "0.0.35", "flash-attn-3": "3.0.0"})
    decision = select(LONG, registry(), machine, Config())
    assert {"xformers", "native_efficient", "flash3"} <= {each.kernel for each in decision.answers if each.accepted}
    ((names, _),) = asked(LONG, machine)
    assert set(names) == {"native_cudnn", "flash3"}
    ((names, _),) = asked(LONG, replace(machine, capability="sm_89"))  # nothing is ruled out where nobody measured
    assert {"xformers", "native_efficient"} < set(names)


@pytest.mark.parametrize(("S", "machine"), [(65536, H100), (16384, A100)])
def test_a_long_call_is_not_timed(S: int, machine: Machine) -> None:
    assert asked(call(S), machine) == []


@pytest.mark.parametrize(("measured", "is_flex"), [(0.01, False), (100.0, True)])
def test_what_compiles_for_seconds_stands_with_what_the_table_says(measured: float, is_flex: bool) -> None:
    one = Shape((4, 32, 8, 3072, 3072, 128), "bool").call(train=False, device=LONG.device)
    decision = select(one, registry(), H100, Config())
    assert "flex" in decision.ms
    clock = Clock(ms=measured)
    told = Trials(registry(), tuner=clock, thorough=False).fastest(decision, H100)  # type: ignore[arg-type]
    assert told is not None and (told.kernel == "flex") is is_flex
    assert "; by the table: flex" in str(told) and "flex" not in told.timed and "flex" in told.ms


def test_a_kernel_that_compiles_for_seconds_is_neither_timed_nor_taken_from_the_rule() -> None:
    assert select(hides := call(4096, MaskTerm(Term.FUNCTION)), registry(), A100, Config()).kernel == "flex"
    assert asked(hides, A100) == []


def test_a_graph_has_its_second() -> None:
    assert asked(LONG, A100, spent=5.0, before=5.0 - 0.9 * GRAPH_SECONDS) != []
    assert asked(LONG, A100, spent=5.0, before=5.0 - 1.1 * GRAPH_SECONDS) == []


def test_the_decision_says_what_the_clock_said() -> None:
    decision = select(LONG, registry(), A100, Config())
    told = Trials(registry(), tuner=Clock(), thorough=False).fastest(decision, A100)  # type: ignore[arg-type]
    assert told is not None and told.kernel != decision.kernel and str(told).startswith("timed here: native_")


@pytest.mark.parametrize(
    ("tune", "ranks", "times"), [(None, 1, True), (None, 2, False), (True, 2, True), (False, 1, False)]
)
def test_ranks_do_not_time_unasked(monkeypatch: pytest.MonkeyPatch, tune: bool | None, ranks: int, times: bool) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: ranks > 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    assert (trials.tuner(Config(tune=tune)) is not None) is times


def test_unset_is_neither_0_nor_1() -> None:
    assert [Config.load({}, {"ATTNPASS_TUNE": text}).tune for text in ("", "0", "1")] == [None, False, True]
    assert ("ATTNPASS_TUNE", "unset", "default") in Config().rows()


@pytest.mark.parametrize(("name", "device"), [("cpu", "cpu"), ("mi300", "cuda"), ("ascend", "cpu"), ("tpu", "cpu")])
def test_a_cpu_has_nothing_to_time_and_where_pytorch_chooses_nobody_times(name: str, device: str) -> None:
    x = replace(call(512).q, device=torch.device(device))
    one = AttentionCall(q=x, k=x, v=x, out=x)
    assert asked(one, KNOWN_MACHINES[name]) == []
