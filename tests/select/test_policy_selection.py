"""Clauses of a policy, and what is selected by them."""

from __future__ import annotations

from dataclasses import replace

from attnpass.ir.call import AttentionCall, Kind
from attnpass.ir.decision import Decision, Reason
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.select.select import select
from attnpass.settings.config import Config
from tests.select.test_select import call
from tests.settings.test_policy import CROSS, SELF


def decide(one: AttentionCall, policy: str, machine: str | Machine = "h100") -> Decision:
    where = KNOWN_MACHINES[machine] if isinstance(machine, str) else machine
    return select(one, registry(), where, Config.load({"attnpass.kernel": policy}, {}))


def test_selection_by_clause() -> None:
    policy = "flex; cross=native_cudnn; head_dim>128=native_flash; decode=native"
    found = [decide(one, policy) for one in (SELF, CROSS, call(kind=Kind.SELF, D=256), call(kind=Kind.SELF, Sq=1))]
    assert [(one.kernel, one.reason, one.clause) for one in found] == [
        ("flex", Reason.REQUESTED, "flex"),
        ("native_cudnn", Reason.REQUESTED, "cross=native_cudnn"),
        ("native_flash", Reason.REQUESTED, "head_dim>128=native_flash"),
        ("native", Reason.REQUESTED, "decode=native"),
    ]
    assert [one.tried for one in found] == [("flex",), ("native_cudnn",), ("native_flash",), ("native",)]


def test_a_clause_that_refuses_does_not_fall_to_the_next() -> None:
    """The first match wins; what else may take the call stands in its own list."""
    odd = replace(call(kind=Kind.CROSS, D=60), module="blocks.0.cross")
    assert decide(odd, "native_flash; cross=native_cudnn").reason is Reason.NONE_ACCEPTED
    assert decide(odd, "native_flash; cross=native_cudnn,native_flash").kernel == "native_flash"
    auto = decide(odd, "native_math; cross=auto")
    assert (auto.kernel, auto.reason, auto.clause) == ("native_flash", Reason.AUTO, "cross=auto")


def test_a_skipped_clause_is_in_the_decision() -> None:
    decision = decide(call(), "native_flash; cross=native_cudnn")
    assert decision.kernel == "native_flash" and decision.clause == "native_flash"
    assert decision.skipped == ("cross=native_cudnn: the graph does not show where K comes from",)
    assert decide(call(), "native_flash").skipped == () and decide(call(), "native_flash").clause == ""
