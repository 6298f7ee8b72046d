"""Attention whose kernel the program names itself: found and left, and with ``chosen=`` rewritten where it is known."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, GraphModule
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

import attnpass
from attnpass.report.record import calls_of
from attnpass.settings.policy import Choice, parse
from tests.helpers.compiled import assert_near, decisions, kernels_used, qkv, run

S = F.scaled_dot_product_attention
aten = torch.ops.aten
CPU, MATH = aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_attention_math
Q = torch.randn(2, 4, 16, 32)
Model = Callable[..., Any]


@pytest.fixture(scope="module", autouse=True)
def library() -> Iterator[None]:
    """Ops as flash-attn 2 registers them: (B, S, H, D), and no gradient."""
    lib = torch.library.Library("flash_attn", "FRAGMENT")
    lib.define(
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, bool causal, "
        "int window_size_left, int window_size_right, float softcap, Tensor? alibi_slopes, bool return_softmax) "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    )
    lib.define("_flash_attn_varlen_forward(Tensor q) -> Tensor")

    def forward(q: Tensor, k: Tensor, v: Tensor, p: float, scale: float, causal: bool, *_: Any) -> tuple[Tensor, ...]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = S(q, k, v, scale=scale, is_causal=causal, enable_gqa=True).transpose(1, 2).contiguous()
        return out, q.new_empty(q.shape[:3]), q.new_empty(0), q.new_empty(2, dtype=torch.int64)

    lib.impl("_flash_attn_forward", forward, "CompositeExplicitAutograd")
    lib.impl("_flash_attn_varlen_forward", lambda q: q.clone(), "CompositeExplicitAutograd")
    yield
    lib._destroy()


def flash2(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, scale: float = 0.2, **other: Any) -> Any:
    given = {"dropout_p": 0.0, "left": -1, "right": -1, "softcap": 0.0, "alibi": None, **other}
    p, *rest = given.values()
    return torch.ops.flash_attn._flash_attn_forward(q, k, v, p, scale, causal, *rest, False)


def made_known(fn: Model, *args: Any, policy: str = "chosen=native_math") -> Any:
    torch._dynamo.reset()
    attnpass.clear_reports()
    return run(fn, *args, kernel=policy)


KNOWN: dict[str, tuple[Model, str]] = {
    "cpu flash": (lambda q, k, v: CPU(q, k, v)[0], "PyTorch's flash attention for CPU"),
    "overload": (lambda q, k, v: CPU.default(q, k, v, 0.0, True, scale=0.3)[0], "PyTorch's flash attention for CPU"),
    "math": (lambda q, k, v: MATH(q, k, v, None, 0.0, True)[0] * 2, "PyTorch's composite attention"),
    "flash2": (
        lambda q, k, v: flash2(*(x.transpose(1, 2) for x in (q, k, v)), True)[0].transpose(1, 2),
        "FlashAttention 2",
    ),
    "flex": (lambda q, k, v: flex_attention(q, k, v), "FlexAttention"),
    "flex, scale": (lambda q, k, v: flex_attention(q, k, v, scale=0.3).transpose(1, 2).flatten(2), "FlexAttention"),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", KNOWN)
def test_it_is_left_and_rewritten_if_asked(name: str) -> None:
    fn, who = KNOWN[name]
    operands = qkv(dtype=torch.float32, Sq=16, D=32)
    wanted = fn(*operands)
    for policy in ("auto", "native_math", "self=native_math; reference", "!chosen=native_math", "cross=flex"):
        out = made_known(fn, *operands, policy=policy)
        (decision,) = decisions()
        assert (decision.kernel, decision.reason.value) == ("native", "user_choice")
        assert f"the program calls {who} itself" in decision.note
        assert_near(out, wanted)
    for policy, kernel in (("chosen=native_math", "native_math"), ("reference; chosen&Sq<99=auto", "native_flash")):
        out = made_known(fn, *operands, policy=policy)
        assert kernels_used() == [kernel]
        assert out.stride() == wanted.stride()
        assert_near(out, wanted)
    assert calls_of(attnpass.last_report().to_dict())[0]["chosen"] == who


@pytest.mark.parametrize("name", ("cpu flash", "overload", "math"))
def test_gradients(name: str) -> None:
    fn, _ = KNOWN[name]
    operands = qkv(dtype=torch.float32, Sq=16, D=32, grad=True)
    exact = [x.detach().double().requires_grad_() for x in operands]
    meaning: dict[str, Any] = {"overload": {"is_causal": True, "scale": 0.3}, "math": {"is_causal": True}}.get(name, {})
    wanted = S(*exact, **meaning) * (2 if name == "math" else 1)
    out = made_known(fn, *operands)
    assert kernels_used() == ["native_math"]
    for got, right in zip(
        torch.autograd.grad(out.sum(), operands), torch.autograd.grad(wanted.sum(), exact), strict=True
    ):
        assert_near(got, right.float(), 32)


def test_fewer_heads_and_a_program_that_is_called_with_a_chosen_kernel_beside_sdpa() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flash = flash2(*(x.transpose(1, 2) for x in (q, k, v)))[0].transpose(1, 2)
        return flash + S(q, k, v, enable_gqa=True)

    operands = qkv(dtype=torch.float32, Hkv=2)
    out = made_known(fn, *operands, policy="reference; chosen=native_math")
    assert kernels_used() == ["native_math", "reference"]
    assert_near(out, fn(*operands))


def lse_in_place(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out, lse = CPU(q, k, v)
    return out, lse.add_(1)


def math_lse(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out, weights = MATH(q, k, v)
    return out, weights


def autocast_around(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return CPU(q, k, v)[0]


def mask_mod(b: Any, h: Any, q: Any, k: Any) -> Any:
    return q >= k


def masked(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return flex_attention(q, k, v, block_mask=create_block_mask(mask_mod, None, None, 16, 16, device="cpu"))


def all_hidden(q: Tensor, k: Tensor, v: Tensor) -> Any:
    """A mask_mod that says true, and lists of blocks that have none: FlexAttention computes no key."""
    blocks = create_block_mask(lambda b, h, q, k: k >= 0, None, None, 16, 16, device="cpu")
    blocks.full_kv_num_blocks.zero_()
    return flex_attention(q, k, v, block_mask=blocks)


def bshd(*operands: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.transpose(1, 2) for x in operands)


LEFT: dict[str, tuple[Model, str]] = {
    "its log-sum-exp, in place": (lse_in_place, "its log-sum-exp is written to"),
    "weights": (math_lse, "more than its output is read"),
    "only lse": (lambda q, k, v: CPU(q, k, v)[1], "more than its output is read"),
    "mask": (lambda q, k, v: CPU(q, k, v, attn_mask=torch.zeros(16, 16))[0], "attn_mask is a tensor or a size"),
    "math mask": (lambda q, k, v: MATH(q, k, v, torch.ones(16, 16))[0], "attn_mask is a tensor"),
    "dropout": (lambda q, k, v: MATH(q, k, v, None, 0.5)[0], "dropout_p is 0.5"),
    "causal, other lengths": (lambda q, k, v: CPU(q[:, :, :7], k, v, 0.0, True)[0], "it is causal, and Sq and Sk may"),
    "negative scale": (lambda q, k, v: CPU(q, k, v, scale=-0.3)[0], "the scale is -0.3"),
    "autocast": (autocast_around, "autocast or a transform is on around it"),
    "window": (lambda q, k, v: flash2(*bshd(q, k, v), left=3)[0], "window_size_left is 3"),
    "one-sided": (lambda q, k, v: flash2(*bshd(q, k, v), right=0)[0], "window_size_right is 0"),
    "softcap": (lambda q, k, v: flash2(*bshd(q, k, v), softcap=30.0)[0], "softcap is 30.0"),
    "alibi": (lambda q, k, v: flash2(*bshd(q, k, v), alibi=torch.ones(4))[0], "alibi_slopes is a tensor"),
    "dropout of a library": (lambda q, k, v: flash2(*bshd(q, k, v), dropout_p=0.1)[0], "dropout_p is 0.1"),
    "score_mod": (lambda q, k, v: flex_attention(q, k, v, lambda s, *_: s * 2), "it has a score_mod"),
    "captured": (lambda q, k, v: flex_attention(q, k, v, lambda s, *_: s + v[0, 0, 0, 0]), "it has a score_mod"),
    "mask_mod": (masked, "it has a block mask"),
    "no block": (all_hidden, "it has a block mask"),
    "another library": (
        lambda q, k, v: torch.ops.flash_attn._flash_attn_varlen_forward(q),
        "FlashAttention (flash_attn::_flash_attn_varlen_forward) itself; it is left as it is: what its arguments mean",
    ),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_with_the_reason(name: str) -> None:
    fn, reason = LEFT[name]
    operands = qkv(dtype=torch.float32, Sq=16, D=32)
    torch.manual_seed(0)
    wanted = fn(*operands)
    torch.manual_seed(0)
    out = made_known(fn, *operands)
    assert not decisions()
    (miss,) = attnpass.last_report().near_misses
    assert reason in miss.reason and "itself; it is left as it is" in miss.reason
    if "dropout" not in name:
        torch.testing.assert_close(out, wanted, equal_nan=True)


@pytest.mark.parametrize("taken_late", (False, True))
def test_an_operand_that_is_written_to_behind(taken_late: bool) -> None:
    """Dynamo takes the output at once, other graphs perhaps not: where it is taken, q is another one by then."""
    graph = Graph()
    given, k, v = (graph.placeholder(name) for name in "qkv")
    q = graph.call_method("clone", (given,))
    both = graph.call_function(CPU.default, (q, k, v))
    ops = [lambda: graph.call_function(operator.getitem, (both, 0)), lambda: graph.call_method("mul_", (q, 3.0))]
    one, other = (op() for op in (reversed(ops) if taken_late else ops))
    graph.output(graph.call_function(torch.add, (one, other)))
    gm, operands = GraphModule(torch.nn.Module(), graph), qkv(dtype=torch.float32)
    rewritten, report = attnpass.rewrite(gm, operands, options={"attnpass.kernel": "chosen=native_math"})
    assert_near(rewritten(*operands), gm(*operands))
    assert [each.kernel for each in report.decisions] == ["native_math"] * (not taken_late)
    assert not taken_late or "an operand is written to" in report.near_misses[0].reason


def test_in_a_checkpoint() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return checkpoint(lambda *x: CPU(*x)[0].sin(), q, k, v, use_reentrant=False)

    operands = qkv(dtype=torch.float32, grad=True)
    out, wanted = made_known(fn, *operands), S(*operands).sin()
    assert kernels_used() == ["native_math"]
    assert_near(out, wanted)
    for got, right in zip(*(torch.autograd.grad(x.sum(), operands) for x in (out, wanted)), strict=True):
        assert_near(got, right, 32)


def test_an_output_that_is_written_to() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flash2(*bshd(q, k, v))[0]
        view = out.view(2, 16, -1)
        out.mul_(2.0)
        return view + 1

    operands = qkv(dtype=torch.float32, Sq=16, D=32)
    out = made_known(fn, *operands)
    assert kernels_used() == ["native_math"]
    assert_near(out, fn(*operands))


def test_symbolic_lengths() -> None:
    compiled = torch.compile(
        lambda q, k, v: CPU(q, k, v, 0.0, True)[0],
        backend="attnpass",
        dynamic=True,
        options={"attnpass.kernel": "chosen=auto", "attnpass.compiler": "aot_eager"},
    )
    attnpass.clear_reports()
    for length in (16, 20, 33):
        operands = qkv(dtype=torch.float32, Sq=length)
        assert_near(compiled(*operands), S(*operands, is_causal=True))
    assert len(attnpass.reports()) == 1


def test_training_with_a_library_is_left() -> None:
    fn = KNOWN["flash2"][0]
    operands = qkv(dtype=torch.float32, Sq=16, D=32, grad=True)
    made_known(fn, *operands)
    assert not decisions() and "gradients flow through it" in attnpass.last_report().near_misses[0].reason


def test_dtypes_and_heads_that_are_not_known() -> None:
    q, k, v = qkv(dtype=torch.float32, Sq=16, D=32, H=4, Hkv=1)
    with pytest.raises(Exception):  # noqa: B017 (PyTorch itself refuses, in one way or another)
        CPU(q[:, :3], k, v)[0].sum().backward()
    made_known(lambda q, k, v: MATH(q, k, v)[0], q, k, v)
    assert not decisions() and "k and v have other heads than q" in attnpass.last_report().near_misses[0].reason


def test_variable_lengths_of_pytorch_are_told() -> None:
    q = torch.randn(32, 2, 16, dtype=torch.bfloat16)
    starts = torch.tensor([0, 16, 32], dtype=torch.int32)
    with pytest.raises(Exception):  # noqa: B017 (no CPU has it)
        made_known(lambda q: varlen.varlen_attn(q, q, q, starts, starts, 16, 16), q)
    reports = attnpass.reports()
    told = [miss.reason for report in reports for miss in report.near_misses]
    assert not told or "torch.nn.attention.varlen" in told[0]


def test_a_name_alone_is_no_attention() -> None:
    """An op of the user's own that is called so is not read, and nothing is said of it."""
    lib = torch.library.Library("mine", "FRAGMENT")
    lib.define("_scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
    lib.impl("_scaled_dot_product_flash_attention", lambda q, k, v: (q + k, v.clone()), "CompositeExplicitAutograd")
    out = made_known(lambda q: torch.ops.mine._scaled_dot_product_flash_attention(q, q, q)[0], Q)
    assert torch.equal(out, Q + Q) and not decisions() and not attnpass.last_report().near_misses
    lib._destroy()


def test_the_policy_speaks_of_chosen_calls_only_where_it_says_so() -> None:
    attnpass.clear_reports()
    made_known(KNOWN["cpu flash"][0], *qkv(dtype=torch.float32, Sq=16, D=32))
    call = decisions()[0].call
    for text in ("flex", "prefill=flex", "!chosen=flex; sage", "!chosen&prefill=flex"):
        assert parse(text).choose(call) == Choice(())
    assert parse("prefill=sage; chosen=flex").choose(call).wishes == ("flex",)
    assert parse("chosen&decode=sage; chosen&inference=flex").choose(call).wishes == ("flex",)
