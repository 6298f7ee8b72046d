"""The log-sum-exp of the scores beside the attention: a second result of the kernel, or a true sentence why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnpass
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.kernels.xformers import XFORMERS
from attnpass.report.record import Report
from attnpass.trials.reference import allowed_error, difference
from tests.helpers.compiled import codes, decisions, kernels_used, run
from tests.standins import flash_attn_2, flash_attn_3, flash_attn_4, pretend_all, xformers

B, H, S, D = 2, 4, 6, 16
Pair = tuple[Tensor, Tensor]
Program = Callable[..., Pair]


def qkv(dtype: torch.dtype = torch.float32, Sk: int = S) -> list[Tensor]:
    return [torch.randn(B, H, length, D, dtype=dtype) for length in (S, Sk, Sk)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT * 0.3
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def causal_in_fp32(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = (q @ k.mT).masked_fill(~torch.ones(S, S, dtype=torch.bool).tril(), -torch.inf)
    lse = torch.logsumexp(scores.float(), dim=3, keepdim=True)
    return scores.softmax(-1) @ v, lse * 2


def normalised_by_it(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp() @ v, lse


def heads_folded(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = torch.bmm(q.reshape(B * H, S, D), k.reshape(B * H, -1, D).mT)
    out = torch.bmm(scores.softmax(-1), v.reshape(B * H, -1, D))
    return out.view(B, H, S, D).transpose(1, 2), scores.logsumexp(-1).view(B, H, S).mT


def less_its_maximum(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1) @ v, scores.logsumexp(-1)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    k, v = (x[:, :2].repeat_interleave(2, 1) for x in (k, v))
    return plain(q, k, v)


def biased(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT + (torch.arange(k.shape[2]) * 0.1).to(q.dtype)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def merged(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """Two halves of the keys, each an attention of its own, as ring attention merges them."""
    halves = [plain(q, *half) for half in zip(k.chunk(2, 2), v.chunk(2, 2), strict=True)]
    lse = torch.stack([each for _, each in halves]).logsumexp(0)
    return sum(out * (each - lse).exp().unsqueeze(-1) for out, each in halves), lse  # type: ignore[return-value]


SINKS = torch.randn(H)


def granite(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    """What the sinks take off is computed before the softmax, as GraniteSWA does."""
    scores = q @ k.mT
    lse = scores.logsumexp(-1)
    left = (lse - SINKS.view(1, -1, 1)).float().sigmoid()
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    out = weights @ v
    return out * left.unsqueeze(-1).to(out.dtype), lse


PROGRAMS = [plain, causal_in_fp32, normalised_by_it, heads_folded, less_its_maximum, grouped, biased, merged, granite]


def check(program: Program, *given_: Tensor, kernel: str = "native_flash", verify: bool = False) -> Report:
    """Compile ``program`` and compare both results, and how they lie, with fp64 as near as eager's."""
    got = run(program, *given_, kernel=kernel, options={"attnpass.verify": verify})
    own, right = program(*given_), program(*(x.double() for x in given_))
    for mine, eager, exact in zip(got, own, right, strict=True):
        assert (mine.dtype, mine.shape) == (eager.dtype, eager.shape)
        steps = zip(mine.stride(), eager.stride(), mine.shape, strict=True)
        assert all(step == wanted or size == 1 for step, wanted, size in steps)
        found, allowed = difference(mine, exact), allowed_error([difference(eager, exact)], eager.dtype, 3.0)
        assert found.max_abs <= allowed, f"{found}, allowed {allowed:.2e}"
    report = attnpass.last_report()
    assert not report.error, report.error
    return report


@pytest.mark.parametrize("verify", (False, True), ids=("", "verified"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_both_are_given_by_the_kernel(program: Program, dtype: torch.dtype, verify: bool) -> None:
    report = check(program, *qkv(dtype), verify=verify)
    assert all(decision.rewritten and decision.call.lse is not None for decision in report.decisions)
    assert len(report.decisions) == (2 if program is merged else 1) and not report.near_misses
    if not verify:
        assert "logsumexp" not in report.code_after.partition("def forward")[2] or program is merged


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.booleans())
def test_any_shape(batch: int, heads: int, Sq: int, Sk: int, keepdim: bool) -> None:
    def program(q: Tensor, k: Tensor, v: Tensor) -> Pair:
        scores = q @ k.mT
        return scores.softmax(-1) @ v, scores.logsumexp(-1, keepdim)

    torch._dynamo.reset()
    check(program, *(torch.randn(batch, heads, length, 8) for length in (Sq, Sk, Sk)))
    assert decisions()[-1].rewritten


def test_any_length_is_compiled_once() -> None:
    options = {"attnpass.kernel": "native_flash", "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(plain, backend="attnpass", options=options, dynamic=True)
    for length in (5, 9, 12):
        given_ = [torch.randn(B, H, length, D) for _ in range(3)]
        torch.testing.assert_close(compiled(*given_), plain(*given_))
    assert kernels_used() == ["native_flash"]


def over_queries(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp(-2)


def over_both(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp((-1, -2))


def of_others(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    return scores.masked_fill(torch.ones(S, S).triu(1) > 0, -torch.inf).softmax(-1) @ v, scores.logsumexp(-1)


def of_the_rest(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    scores = scores - scores.amax(-1, keepdim=True)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def of_two(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    return scores.softmax(-1) @ v, scores.logsumexp(-1) + scores.float().logsumexp(-1)


def into_v(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    lse = scores.logsumexp(-1)
    return scores.softmax(-1) @ (v * lse.unsqueeze(-1)), lse


def written_to(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    lse = scores.logsumexp(-1)
    out = scores.softmax(-1) @ v
    return out, lse.add_(1)


def before_a_write(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores, sinks = q @ k.mT, SINKS.clone()
    left = (scores.logsumexp(-1) - sinks.view(1, -1, 1)).sigmoid()
    sinks.mul_(7)
    out = scores.softmax(-1) @ v
    return out * left.unsqueeze(-1), sinks


def in_another_state(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        left = (scores.logsumexp(-1).unsqueeze(-1) * 1.5).sigmoid()
    return (scores.softmax(-1) @ v) * left, left


def by_chance(q: Tensor, k: Tensor, v: Tensor) -> Pair:
    scores = q @ k.mT
    left = scores.logsumexp(-1).cumsum(-1)
    return (scores.softmax(-1) @ v) * left.unsqueeze(-1), left


SCORES = "`logsumexp` reads the attention scores too"
LEFT: dict[str, tuple[Program, str]] = {
    "over queries": (over_queries, SCORES),
    "over queries and keys": (over_both, SCORES),
    "of scores before the mask": (of_others, SCORES),
    "of scores less their maximum": (of_the_rest, SCORES),
    "two of them": (of_two, "the attention scores too"),
    "in V": (into_v, "is read before the product with V"),
    "before a write": (before_a_write, "is read before the product with V"),
    "in another state": (in_another_state, "is read before the product with V"),
    "by another op": (by_chance, "is read before the product with V"),
    "in place": (written_to, "is not what one node gives, unchanged"),
}


@pytest.mark.parametrize("name", LEFT)
def test_another_one_is_left_alone(name: str) -> None:
    program, reason = LEFT[name]
    report = check(program, *qkv())
    assert not report.decisions
    assert [reason in miss.reason for miss in report.near_misses] == [True], report.near_misses


def test_what_no_kernel_gives_is_kept() -> None:
    """Gradients, rows that see no key, and kernels that do not give it; nor does SDPA, as which chains are written."""

    def padded(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Pair:
        scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
        return scores.softmax(-1) @ v, scores.logsumexp(-1)

    def one_for_all(q: Tensor, k: Tensor, v: Tensor) -> Pair:
        return plain(q, k, v)

    q, k, v = qkv()
    seen = torch.ones(B, 1, 1, S, dtype=torch.bool)
    seen[0] = False
    torch.testing.assert_close(run(padded, q, k, v, seen), padded(q, k, v, seen), equal_nan=True)
    got = run(plain, q.requires_grad_(), k, v)
    grads = [torch.autograd.grad(out.sum() + lse.sin().sum(), q) for out, lse in (got, plain(q, k, v))]
    torch.testing.assert_close(*grads)
    run(one_for_all, *qkv(), kernel="native_math")
    assert [decision.rewritten for decision in decisions()] == [False] * 3
    assert codes(decisions()[0], "native_flash") == codes(decisions()[1], "native_flash") == {"log_sum_exp"}
    assert "log_sum_exp" in codes(decisions()[2], "native_math")


@pytest.mark.parametrize("grad", (False, True))
def test_of_a_kernel_that_the_program_chose(grad: bool) -> None:
    """Another kernel gives it too; in training the op stays."""

    def program(q: Tensor, k: Tensor, v: Tensor) -> Pair:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)
        return out, lse

    given_ = [x.requires_grad_(grad) for x in qkv()]
    for kernel in ("native_flash", "native_math"):
        torch._dynamo.reset()
        got, wanted = run(program, *given_, kernel=f"chosen={kernel}"), program(*given_)
        torch.testing.assert_close(got, wanted)
        assert [each.stride() for each in got] == [each.stride() for each in wanted]
        assert decisions()[-1].call.lse is not None
        assert decisions()[-1].rewritten is (kernel == "native_flash" and not grad)


@pytest.mark.parametrize("kernel", ("flash2", "flash3", "flash4", "xformers"))
def test_libraries_give_it(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    for library in (flash_attn_2, flash_attn_3, flash_attn_4, xformers):
        library.install(monkeypatch)
    versions = {FLASH_ATTN: "2.8.3", FLASH_ATTN_3: "3.0.0", FLASH_ATTN_4: "4.0.0b36", XFORMERS: "0.0.35"}
    pretend_all(monkeypatch, "h100", versions)
    for program in (plain, normalised_by_it, heads_folded, grouped):
        torch._dynamo.reset()
        check(program, *qkv(torch.bfloat16, 8), kernel=kernel)
        assert kernels_used()[-1] == kernel, [str(each) for each in decisions()[-1].rejections(kernel)]
