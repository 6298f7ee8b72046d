"""What a chain written by hand does beside the plain case: rows without keys, dropout, regions, fallbacks, reports."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnpass
from attnpass.ir.mask import EmptyRows
from attnpass.report.record import calls_of
from tests.helpers.compiled import assert_near, codes, decisions, kernels_used, run

B, H, S, D = 2, 4, 9, 16
KERNELS = ("native_flash", "native_math", "flex")


def qkv(dtype: torch.dtype = torch.float32, grad: bool = False) -> list[Tensor]:
    return [torch.randn(B, H, S, D, dtype=dtype, requires_grad=grad) for _ in range(3)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT / math.sqrt(D), dim=-1) @ v


def capped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(torch.tanh(q @ k.mT / 40.0) * 20.0, dim=-1) @ v


def mask_with_an_empty_row() -> Tensor:
    mask = torch.ones(B, 1, S, S, dtype=torch.bool).tril()
    mask[1, :, 4] = False
    return mask


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_hidden_by_infinity_is_nan(kernel: str) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v

    tensors = [*qkv(), mask_with_an_empty_row()]
    got, wanted = run(fn, *tensors, kernel=kernel), fn(*tensors)
    assert wanted.isnan().any()
    torch.testing.assert_close(got, wanted, equal_nan=True)
    assert kernels_used() == [kernel]
    assert decisions()[0].call.mask.empty is EmptyRows.NAN


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_hidden_by_a_finite_number_is_an_average(kernel: str, dtype: torch.dtype) -> None:
    """Also in fp16, whose lowest number is not low enough to hide a score where it is added."""

    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        scores = q @ k.mT * 4
        return scores.masked_fill(~mask, torch.finfo(dtype).min).softmax(-1) @ v

    tensors = [*qkv(dtype), mask_with_an_empty_row()]
    got = run(fn, *tensors, kernel=kernel)
    assert_near(got, fn(*tensors), steps=16)
    assert_near(got[1, :, 4], tensors[2][1].float().mean(1).to(dtype))
    assert kernels_used() == [kernel]
    assert decisions()[0].call.mask.empty is EmptyRows.AVERAGE


@pytest.mark.parametrize("value", (torch.finfo(torch.float32).min, -10000.0))
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_added_number_keeps_its_value(kernel: str, value: float) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT + (~mask) * value).softmax(-1) @ v

    tensors = [*qkv(), mask_with_an_empty_row()]
    torch.testing.assert_close(run(fn, *tensors, kernel=kernel), fn(*tensors), atol=2e-3, rtol=1e-4)
    assert kernels_used() == [kernel]


def test_gradients_beside_rows_without_keys() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return (q @ k.mT).masked_fill(~mask, -1e9).softmax(-1) @ v

    tensors, mask = qkv(grad=True), mask_with_an_empty_row()
    got, wanted = run(fn, *tensors, mask), fn(*tensors, mask)
    for mine, right in zip(
        torch.autograd.grad(got.square().sum(), tensors),
        torch.autograd.grad(wanted.square().sum(), tensors),
        strict=True,
    ):
        assert_near(mine, right)
    assert kernels_used() == ["native_flash"]


@pytest.mark.parametrize("kernel", ("native_math", "native_flash"))
def test_dropout_in_training(kernel: str) -> None:
    """The weights are dropped with the program's probability: by the kernel, or by SDPA where no kernel does."""
    dropout = nn.Dropout(0.25)

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return dropout(torch.softmax(q @ k.mT, dim=-1)) @ v

    q, k = torch.zeros(4, 8, 64, D), torch.zeros(4, 8, 64, D)  # so that each weight is 1/64
    v = torch.eye(64).expand(4, 8, 64, 64).requires_grad_()
    out = run(fn, q, k, v, kernel=kernel)
    (decision,) = decisions()
    assert decision.call.dropout_p == 0.25
    assert decision.rewritten
    assert decision.kernel == ("native_math" if kernel == "native_math" else "native")
    dropped = (out == 0).float().mean()
    assert 0.24 < dropped < 0.26
    torch.testing.assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / 64 / 0.75))
    out.sum().backward()
    assert v.grad is not None


def test_no_kernel_takes_it() -> None:
    """Then the chain is one call of SDPA, and the report says so."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT / math.sqrt(D), dim=-1) @ v

    tensors = qkv()
    assert_near(run(fn, *tensors[:2], tensors[2][..., :8]), fn(*tensors[:2], tensors[2][..., :8]))
    (decision,) = decisions()
    assert (decision.kernel, decision.rewritten, decision.reason.value) == ("native", True, "lowered")
    assert "scaled_dot_product_attention" in decision.note
    assert codes(decision, "native_flash") == {"value_dim"}
    call = calls_of(attnpass.last_report().to_dict())[0]
    assert (call["rewritten"], call["pattern"], call["reason"]) == (True, "handwritten", "lowered")


def test_what_sdpa_cannot_say_stays_with_all_reasons() -> None:
    tensors = qkv()
    assert_near(run(capped, *tensors), capped(*tensors))
    (decision,) = decisions()
    assert not decision.rewritten
    assert codes(decision, "native_flash") == codes(decision, "native") == {"softcap"}


def test_softcap_in_flex() -> None:
    tensors = qkv()
    assert_near(run(capped, *tensors, kernel="flex"), capped(*tensors))
    (decision,) = decisions()
    assert (decision.kernel, decision.call.softcap, decision.call.scale) == ("flex", 20.0, 0.5)


def test_native_leaves_chains_alone() -> None:
    tensors = qkv()
    torch.testing.assert_close(run(plain, *tensors, kernel="native"), plain(*tensors), atol=0, rtol=0)
    (decision,) = decisions()
    assert not decision.rewritten
    assert decision.reason.value == "requested"


def test_strict_refuses_what_would_be_left_to_sdpa() -> None:
    q, k, v = qkv()
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="value head_dim is 8"):
        run(plain, q, k, v[..., :8], options={"attnpass.strict": True})


def test_limit_counts_chains() -> None:
    tensors = qkv()
    run(lambda q, k, v: plain(plain(q, k, v), k, v), *tensors, options={"attnpass.limit": 1})
    assert [decision.reason.value for decision in decisions()] == ["requested", "limit"]


def test_the_chain_is_gone() -> None:
    """Random ops and ops in place would stay in the graph, and with them all that they read."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT
        scores.masked_fill_(torch.ones(S, S, dtype=torch.bool).triu(1), -math.inf)
        return F.dropout(scores.softmax(-1), 0.5) @ v

    gm = torch.fx.symbolic_trace(fn)
    out, report = attnpass.rewrite(gm, qkv(), options={"attnpass.kernel": "native_math"})
    assert report.rewritten == 1
    targets = [str(node.target) for node in out.graph.nodes]
    assert not [
        target for target in targets if "softmax" in target or target == "masked_fill_" or "dropout at" in target
    ]


def test_bfloat16_under_autocast() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.softmax(q @ k.mT / math.sqrt(D) + bias, dim=-1) @ v

    tensors = [*qkv(), torch.zeros(S, S).masked_fill(torch.ones(S, S).triu(1) > 0, torch.finfo(torch.float32).min)]
    got, wanted = run(fn, *tensors), fn(*tensors)
    assert got.dtype == wanted.dtype == torch.bfloat16
    assert_near(got, wanted)
    (decision,) = decisions()
    assert decision.kernel == "native_flash"
    assert decision.call.dtype == torch.bfloat16


def test_symbolic_lengths() -> None:
    def fn(x: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (part.view(b, s, H, D).transpose(1, 2) for part in x.split(H * D, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(D) + mask[:, None, None, :]
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, H * D)

    for b, s in ((2, 9), (3, 12), (4, 17)):
        x, mask = torch.randn(b, s, 3 * H * D), torch.randn(b, s)
        assert_near(run(fn, x, mask, dynamic=True), fn(x, mask))
    assert set(kernels_used()) == {"native_flash"}


def test_folded_heads_of_symbolic_lengths() -> None:
    def fn(x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (part.view(b, s, H, D).transpose(1, 2).reshape(b * H, s, D) for part in x.split(H * D, dim=-1))
        probs = torch.baddbmm(torch.empty(b * H, s, s), q, k.mT, beta=0, alpha=0.25).softmax(-1)
        return torch.bmm(probs, v).view(b, H, s, D).transpose(1, 2).reshape(b, s, H * D)

    for b, s in ((2, 9), (3, 12)):
        x = torch.randn(b, s, 3 * H * D)
        assert_near(run(fn, x, dynamic=True), fn(x))
    assert all(decision.rewritten for decision in decisions())
    assert len(decisions()) == len(attnpass.reports())


def test_an_exported_graph() -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            mask = torch.ones(S, S, dtype=torch.bool).tril()
            scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(~mask, float("-inf"))
            return F.dropout(F.softmax(scores, dim=-1), 0.1, self.training) @ v

    model, tensors = Model().eval(), qkv()
    exported = torch.export.export(model, tuple(tensors))
    for program in (exported, exported.run_decompositions()):
        out, report = attnpass.rewrite(program.module(), options={"attnpass.kernel": "native_flash"})
        assert not report.error
        assert [decision.kernel for decision in report.decisions] == ["native_flash"], report.near_misses
        assert_near(out(*tensors), model(*tensors))


def test_inside_a_checkpoint() -> None:
    tensors = qkv(grad=True)
    got = run(lambda *t: checkpoint(plain, *t, use_reentrant=False), *tensors)
    wanted = plain(*tensors)
    assert_near(got, wanted)
    for mine, right in zip(
        torch.autograd.grad(got.sum(), tensors), torch.autograd.grad(wanted.sum(), tensors), strict=True
    ):
        assert_near(mine, right)
    assert kernels_used() == ["native_flash"]


def test_no_copy_for_a_reader_that_makes_one_anyway() -> None:
    """The chain's output is dense as BHSD, a kernel's as BSHD; a transpose with a copy behind it hides that."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plain(q, k, v).transpose(1, 2).contiguous()

    q, k, v = (torch.randn(B, S, H, D).transpose(1, 2) for _ in range(3))
    gm = torch.fx.symbolic_trace(fn)
    out, _ = attnpass.rewrite(gm, (q, k, v), options={"attnpass.kernel": "native_flash"})
    assert "clone" not in out.code
    assert_near(out(q, k, v), fn(q, k, v))
    assert out(q, k, v).stride() == fn(q, k, v).stride()
