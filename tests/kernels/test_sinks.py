"""Sinks behind kernels that have none, by their log-sum-exp: forward, gradients, rows without keys, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import attnpass
from attnpass.emit.emitter import Emitter, Operands
from attnpass.emit.sinks import Sunk
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.native_flash import NativeFlash
from attnpass.kernels.registry import registry
from attnpass.kernels.xformers import XFORMERS
from attnpass.machine.known import KNOWN_MACHINES
from tests.helpers.compiled import codes, decisions, kernels_used, qkv, run
from tests.helpers.emitted import assert_like_brute_force, emitted, window
from tests.helpers.forms import check, found
from tests.standins import flash_attn_2, pretend_all, xformers

B, H, HKV, S, D = 2, 4, 2, 7, 8
Program = Callable[..., Tensor]


def sunk(scores: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """As GPT-OSS writes it."""
    column = sinks.reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[-2], -1)
    both = torch.cat([scores, column], dim=-1)
    both = both - both.max(dim=-1, keepdim=True).values
    return both.softmax(dim=-1, dtype=both.dtype)[..., :-1].to(v.dtype) @ v


def repeated(x: Tensor) -> Tensor:
    return x[:, :, None].expand(-1, -1, H // HKV, -1, -1).reshape(B, H, S, D)


def plain(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    return sunk(q @ k.mT * D**-0.5, v, sinks)


def grouped(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    return sunk(q @ repeated(k).mT * D**-0.5, repeated(v), sinks)


def causal(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    seen = torch.ones(S, S, dtype=torch.bool).tril()
    return sunk((q @ k.mT).masked_fill(~seen, -torch.inf), v, sinks)


def banded(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """A window that leaves the first queries without keys."""
    far = torch.arange(S)[:, None] - torch.arange(S)
    return sunk((q @ k.mT).masked_fill(~((far > 1) & (far < 4)), -torch.inf), v, sinks)


def low(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Rows hidden by a finite number, in one tensor: the sink takes all of their weight."""
    seen = torch.arange(S) % 3 > 0
    return sunk((q @ k.mT).masked_fill(~seen[:, None], torch.finfo(q.dtype).min), v, sinks)


FORMS = {"plain": plain, "grouped": grouped, "causal": causal, "rows without keys": banded, "low rows": low}


def operands(dtype: torch.dtype = torch.float32, heads: int = H, grad: bool = True) -> list[Tensor]:
    shapes = ((B, H, S, D), (B, heads, S, D), (B, heads, S, D), (H,))
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for shape in shapes]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_on_the_cpu(form: str, dtype: torch.dtype) -> None:
    report = found(FORMS[form], *operands(dtype, HKV if form == "grouped" else H), kernel="native_flash")
    (decision,) = report.decisions
    assert decision.kernel == "native_flash" and decision.call.sinks is not None and decision.call.needs_grad


@pytest.mark.parametrize("who", range(4), ids=("q", "k", "v", "sinks"))
def test_one_operand_learns(who: int) -> None:
    given_ = [x.detach().requires_grad_(place == who) for place, x in enumerate(operands())]
    found(causal, *given_, kernel="native_flash")


def test_sinks_of_another_dtype_and_far_away() -> None:
    """Sinks that take everything, and nothing; in fp32 beside bf16 operands, and in the operands' autocast."""
    q, k, v, _ = operands(torch.bfloat16)
    found(causal, q, k, v, torch.tensor([-200.0, -3.0, 3.0, 200.0], requires_grad=True), kernel="native_flash")
    q, k, v, sinks = operands()

    def cast(*tensors: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return causal(*tensors)

    got, wanted = run(cast, q, k, v, sinks), cast(q, k, v, sinks)
    assert kernels_used()[-1:] == ["native_flash"]
    torch.testing.assert_close(got, wanted, atol=0.03, rtol=0.03)


def test_a_bias_beside_sinks() -> None:
    def biased(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, bias: Tensor) -> Tensor:
        return sunk(q @ k.mT + bias, v, sinks)

    with torch.no_grad():
        found(biased, *operands(grad=False), torch.randn(1, H, S, S), kernel="native_flash")
    check(biased, *operands(), torch.randn(1, H, S, S, requires_grad=True), kernel="native_flash")
    assert codes(decisions()[-1], "native_flash") == {"mask_grad", "known_bug"}


def test_dropout_is_refused() -> None:
    def dropping(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        column = sinks.reshape(1, -1, 1, 1).expand(B, -1, S, -1)
        weights = torch.cat([q @ k.mT, column], dim=-1).softmax(-1)
        return torch.nn.functional.dropout(weights[..., :-1], 0.5) @ v

    run(dropping, *operands(grad=False))
    (decision,) = decisions()
    assert "dropout" in codes(decision, "native_flash") and not decision.rewritten


@pytest.mark.parametrize("saving", (False, True), ids=("all again", "attention saved"))
def test_in_a_checkpoint(saving: bool) -> None:
    contexts = partial(create_selective_checkpoint_contexts, attnpass.ops_to_save())
    how: dict[str, Any] = {"context_fn": contexts} if saving else {}

    def program(*tensors: Tensor) -> Any:
        return checkpoint(causal, *tensors, use_reentrant=False, **how)

    found(program, *operands(), kernel="native_flash")


def test_inductor() -> None:
    given_ = operands(torch.bfloat16)
    got, wanted = run(causal, *given_, compiler="inductor"), causal(*(x.double() for x in given_))
    assert kernels_used() == ["native_flash"]
    torch.testing.assert_close(got.double(), wanted, atol=0.03, rtol=0.03)
    for mine, right in zip(
        torch.autograd.grad(got.sum(), given_), torch.autograd.grad(wanted.sum(), given_), strict=True
    ):
        torch.testing.assert_close(mine, right, atol=0.06, rtol=0.03)


def test_any_length_is_compiled_once() -> None:
    def program(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        return sunk(q @ k.mT, v, sinks)

    options = {"attnpass.kernel": "native_flash", "attnpass.compiler": "aot_eager"}
    compiled = torch.compile(program, backend="attnpass", options=options, dynamic=True)
    for length in (5, 9, 12):
        given_ = [torch.randn(B, H, length, D, requires_grad=True) for _ in range(3)]
        sinks = torch.randn(H, requires_grad=True)
        got, wanted = compiled(*given_, sinks), program(*given_, sinks)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), sinks), torch.autograd.grad(wanted.sum(), sinks))
    assert kernels_used() == ["native_flash"]


def test_the_op_keeps_the_rules() -> None:
    q, k, v, sinks = operands(heads=HKV)
    mask = torch.randn(B, 1, S, S)
    op = torch.ops.attnpass.native_flash_cpu_sunk.default
    for given_ in ((sinks, q, k, v, mask, False, 0.3), (sinks, q, k, v, None, True, None)):
        torch.library.opcheck(op, given_)


class TestLibraries:
    """Against stand-ins, whose backwards read of the forward no more than the output and the log-sum-exp."""

    @pytest.fixture(autouse=True)
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        flash_attn_2.install(monkeypatch)
        xformers.install(monkeypatch)
        self.machine = pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3", XFORMERS: "0.0.35"})

    @pytest.mark.parametrize("grad", (False, True))
    @pytest.mark.parametrize("mask", (MaskSpec(), MaskSpec.causal(17), window(3, 4, offset=17)))
    def test_flash2(self, grad: bool, mask: MaskSpec) -> None:
        sinks = torch.randn(4, requires_grad=grad)
        assert_like_brute_force("flash2", self.machine, *qkv(Sk=50, Hkv=2, D=60, grad=grad), sinks, mask=mask)

    @pytest.mark.parametrize("grad", (False, True))
    @pytest.mark.parametrize("Dv", (64, 40), ids=("flash", "cutlass"))
    def test_xformers(self, grad: bool, Dv: int) -> None:
        sinks = torch.randn(4, requires_grad=grad)
        assert_like_brute_force("xformers", self.machine, *qkv(Sk=50, Hkv=2, Dv=Dv, grad=grad), sinks)

    @pytest.mark.parametrize("name", ("flash2", "xformers"))
    def test_their_ops_keep_the_rules(self, name: str) -> None:
        q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in qkv())
        rest: dict[str, tuple[Any, ...]] = {
            "flash2": (0.2, -1, 0, 0.0, 0.0),
            "xformers": (None, "flash", True, 0.2),
        }
        op = getattr(torch.ops.attnpass, f"{name}_sunk").default
        torch.library.opcheck(op, (torch.randn(4, requires_grad=True), q, k, v, *rest[name]))


@pytest.mark.parametrize("grad", (False, True))
def test_flex(grad: bool) -> None:
    """By the op's own log-sum-exp, of base 2, whose gradient it passes on: PyTorch's reference for the op runs here."""
    q, k, v = qkv(1, 2, 12, 32, Sk=29, grad=grad, dtype=torch.float32)
    sinks = torch.randn(2, requires_grad=grad)
    assert_like_brute_force("flex", KNOWN_MACHINES["h100"], q, k, v, sinks, mask=window(3, 4, offset=-5))


REFUSE = {"native_cudnn": "h100", "native_math": "h100", "sage": "h100", "flash3_fp8": "h100", "flex": "cpu"}


@pytest.mark.parametrize("kernel", REFUSE)
def test_who_gives_no_log_sum_exp_refuses(kernel: str) -> None:
    machine = KNOWN_MACHINES[REFUSE[kernel]]
    limits = registry()[kernel].limits_for(machine)
    assert not limits.log_sum_exp
    _, refusals = emitted(kernel, replace(machine, versions={}), *qkv(), sinks=torch.randn(4))
    assert "sinks" in {reason.code.value for reason in refusals}


def test_a_kernel_that_forgets_them_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = NativeFlash.emit

    def careless(self: NativeFlash, emitter: Emitter, call: AttentionCall, args: Operands) -> Any:
        return emit(self, emitter, call, replace(args, sinks=None))

    monkeypatch.setattr(NativeFlash, "emit", careless)
    check(causal, *operands(), kernel="native_flash")
    assert codes(decisions()[-1], "native_flash") == {"sinks"} and not decisions()[-1].rewritten


def softmax_with_lse(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v, scores.logsumexp(-1)


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *given_: Tensor) -> tuple[Tensor, ...]:
    hidden, out, lse = given_
    weights = torch.exp((q @ k.mT).masked_fill(hidden, -torch.inf) - lse.unsqueeze(-1))
    into = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    return into @ k, into.mT @ q, weights.mT @ grad


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.floats(-30, 30), st.integers(0, 9)
)
def test_what_it_is_told_is_all_that_a_backward_needs(
    batch: int, heads: int, Sq: int, Sk: int, far: float, seed: int
) -> None:
    """Of any shape, with sinks anywhere and rows that see no key; in fp64, against the column written out."""
    torch.manual_seed(seed)
    q, k, v = (torch.randn(batch, heads, S, 3, dtype=torch.float64, requires_grad=True) for S in (Sq, Sk, Sk))
    sinks = (torch.randn(heads, dtype=torch.float64) + far).requires_grad_()
    hidden = torch.rand(batch, 1, Sq, Sk) > 0.6
    leaves = (q, k, v, sinks)
    got = Sunk(softmax_with_lse, backward, 4)(sinks, q, k, v, hidden)
    wanted = sunk((q @ k.mT).masked_fill(hidden, -torch.inf), v, sinks)
    weight = torch.randn_like(got)
    torch.testing.assert_close(got, wanted)
    grads = [torch.autograd.grad(out, leaves, weight) for out in (got, wanted)]
    torch.testing.assert_close(*grads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ("native_flash", "native_efficient", "flex"))
@pytest.mark.parametrize("grad", (False, True))
def test_pytorchs_kernels_on_a_gpu(kernel: str, grad: bool) -> None:
    q, k, v = (x.cuda().detach().requires_grad_(grad) for x in qkv(Sq=50, Hkv=2))
    sinks = torch.randn(4, device="cuda").requires_grad_(grad)

    def program(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        seen = torch.ones(50, 50, dtype=torch.bool, device=q.device).tril()
        return sunk((q @ k.mT * 0.2).masked_fill(~seen, -torch.inf), v, sinks)

    compiler = "inductor" if kernel == "flex" else "aot_eager"
    got = run(program, q, k, v, sinks, kernel=kernel, compiler=compiler)
    assert kernels_used() == [kernel]
    exact = [x.detach().double().requires_grad_(grad) for x in (q, k, v, sinks)]
    wanted = program(*exact)
    torch.testing.assert_close(got.double(), wanted, atol=0.02, rtol=0.02)
    if grad:
        weight = torch.randn_like(got)
        pairs = ((got, (q, k, v, sinks), weight), (wanted, exact, weight.double()))
        mine, right = (torch.autograd.grad(out, leaves, one) for out, leaves, one in pairs)
        for each, true in zip(mine, right, strict=True):
            torch.testing.assert_close(each.double(), true, atol=0.1, rtol=0.05)
