"""ATTNPASS_VERIFY=1: a bad kernel is found on the user's own data, said, and put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.emit.emitter import aten
from attnpass.find.handwritten.scores import Scores
from attnpass.kernels.native_math import NativeMath
from attnpass.trials.reference import difference, reference_attention
from tests.helpers.compiled import codes, decisions

S = F.scaled_dot_product_attention


class TenPercentOff(NativeMath):
    name = "ten_percent_off"
    title = "wrong on purpose"
    aliases = ()

    def emit(self, emitter, call, args):  # type: ignore[no-untyped-def]
        return emitter(aten.mul.Tensor, super().emit(emitter, call, args), 1.1)


@pytest.fixture(autouse=True)
def wrong_kernel() -> Iterator[None]:
    attnpass.register_kernel(TenPercentOff())
    yield
    import sys

    sys.modules["attnpass.kernels.registry"]._registry.pop("ten_percent_off")


def two_calls(q: Tensor) -> Tensor:
    return S(S(q, q, q, is_causal=True), q, q)


def compiled(kernel: str):  # type: ignore[no-untyped-def]
    options = {"attnpass.kernel": kernel, "attnpass.verify": True}
    return torch.compile(two_calls, backend="attnpass", options=options)


def test_a_bad_kernel_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    q = torch.randn(1, 2, 33, 16)
    fn = compiled("ten_percent_off,native_flash")
    for _ in range(3):
        torch.testing.assert_close(fn(q), two_calls(q))  # from the first run on
    last = attnpass.last_report().decisions
    assert [d.kernel for d in last] == ["native_flash"] * 2
    assert codes(last[0], "ten_percent_off") == {"verify"}
    assert "measured error is" in str(last[0].rejections("ten_percent_off")[0])
    said = [r.getMessage() for r in caplog.records if "OFF, put back" in r.getMessage()]
    assert len(said) == 2
    assert "test_verify.py" in said[0]


def test_a_good_kernel_is_watched_once_then_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    q = torch.randn(1, 2, 33, 16, requires_grad=True)
    fn = compiled("native_flash")
    wanted = torch.autograd.grad(two_calls(q).sum(), q)
    for _ in range(4):
        torch.testing.assert_close(torch.autograd.grad(fn(q).sum(), q), wanted)
    assert len(attnpass.reports()) == 2  # watched, then not
    assert len([r for r in caplog.records if "verify: ok native_flash" in r.getMessage()]) == 2
    assert {d.kernel for d in decisions()} == {"native_flash"}


def by_hand(q: Tensor) -> Tensor:
    return torch.softmax(q @ q.mT * 0.5, -1) @ q


def test_a_misread_call_is_seen_named_and_put_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is what the user's own nodes compute, not our reading of them."""
    scale = Scores.canonical_scale.fget
    monkeypatch.setattr(Scores, "canonical_scale", property(lambda self: 2 * scale(self)))  # type: ignore[misc]
    options = {"attnpass.kernel": "native_flash,native_math", "attnpass.verify": True}
    fn = torch.compile(by_hand, backend="attnpass", options=options)
    q = torch.randn(1, 2, 33, 16)
    for _ in range(3):
        torch.testing.assert_close(fn(q), by_hand(q))
    assert [d.kernel for d in attnpass.last_report().decisions] == ["native"]
    assert "misread" in str(decisions()[-1].rejections("native_math")[0])
    assert len([r for r in caplog.records if "MISREAD, put back" in r.getMessage()]) == 1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_a_program_of_low_precision_is_no_misreading(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    options = {"attnpass.kernel": "native_flash", "attnpass.verify": True}
    fn = torch.compile(by_hand, backend="attnpass", options=options)
    for _ in range(2):
        fn(torch.randn(1, 2, 33, 16).to(dtype))
    assert [d.kernel for d in attnpass.last_report().decisions] == ["native_flash"]


def test_dropout_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    options = {"attnpass.kernel": "native_math", "attnpass.verify": True}
    q = torch.randn(1, 2, 8, 16)
    torch.compile(lambda q: S(q, q, q, dropout_p=0.5), backend="attnpass", options=options)(q)
    assert any("not compared: it drops out" in r.getMessage() for r in caplog.records)


def test_opcheck() -> None:
    q = torch.randn(1, 2, 8, 16, requires_grad=True)
    out = torch.randn(1, 8, 2, 16, requires_grad=True).transpose(1, 2)
    given = out.detach().requires_grad_()
    arguments = (given, out, out, q, q, q, None, 0.25, False, False, "nobody is waiting")
    torch.library.opcheck(torch.ops.attnpass.verify.default, arguments)


def test_difference() -> None:
    right = torch.tensor([1.0, -2.0, 3.0])
    assert difference(right, right) == difference(right.clone(), right)
    off = difference(torch.tensor([1.0, -2.5, float("nan")]), right)
    assert off.nan == 1
    assert off.largest == 3.0
    assert difference(torch.tensor([1.5, -2.0, 3.0]), right).max_abs == 0.5


def test_reference_gives_zero_for_rows_that_see_no_key() -> None:
    q = torch.randn(2, 2, 4, 8)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0, :, 1] = False
    assert reference_attention(q, q, q, mask)[0, :, 1].abs().max() == 0
    bias = torch.zeros(4, 4).masked_fill(~mask[0, 0], float("-inf"))
    assert reference_attention(q, q, q, bias)[:, :, 1].abs().max() == 0
