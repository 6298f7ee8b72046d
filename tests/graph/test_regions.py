"""find: the state around a call, such as autocast, grad mode, a transform or the body of a higher-order op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import attnpass
from tests.helpers.compiled import codes, decisions, kernels_used, run

S = F.scaled_dot_product_attention


def test_regions() -> None:
    """no_grad, autocast and activation checkpointing in one training function."""

    def fn(q: Tensor) -> Tensor:
        with torch.no_grad():
            first = S(q, q, q)
        with torch.autocast("cpu", torch.bfloat16):
            second = S(q, q, q)
        return first + second + checkpoint(lambda q: S(q, q, q, is_causal=True), q, use_reentrant=False)

    q = torch.randn(1, 2, 20, 32, requires_grad=True)
    for kernel in ("native_flash", "native_math", "reference"):
        attnpass.clear_reports()
        torch._dynamo.reset()
        torch.testing.assert_close(run(fn, q, kernel=kernel), fn(q), atol=2e-2, rtol=2e-2)
        calls = [d.call for d in decisions()]
        assert [c.needs_grad for c in calls] == [False, True, True]
        assert [c.context.autocast for c in calls] == [None, torch.bfloat16, None]
        assert calls[2].context.nested_in == ("tag_activation_checkpoint",)
        assert kernels_used() == [kernel] * 3
    (gradient,) = torch.autograd.grad(run(fn, q).sum(), q)
    (wanted,) = torch.autograd.grad(fn(q).sum(), q)
    torch.testing.assert_close(gradient, wanted, atol=2e-2, rtol=2e-2)


def test_autocast_around_the_program() -> None:
    q = torch.randn(1, 2, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(lambda q: S(q, q, q), q)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, S(q, q, q))
    assert kernels_used() == ["native_flash"]


def test_cond_and_scan() -> None:
    from torch._higher_order_ops.scan import scan

    q = torch.randn(1, 2, 8, 16)

    def branches(q: Tensor) -> Tensor:
        return torch.cond(q.sum() > 0, lambda q: S(q, q, q), lambda q: q * 2, (q,))

    def steps(q: Tensor) -> Tensor:
        return scan(lambda c, x: (S(c, x, x), x * 1), q, torch.stack([q, q * 2]))[0]

    with torch.no_grad():
        torch.testing.assert_close(run(branches, q), branches(q))
        torch.testing.assert_close(run(steps, q), S(S(q, q, q), q * 2, q * 2))
    assert kernels_used() == ["native_flash"] * 2
    assert [d.call.context.nested_in for d in decisions()] == [("cond",), ("scan",)]


def test_invoke_subgraph() -> None:
    @torch.compiler.nested_compile_region
    def layer(q: Tensor) -> Tensor:
        return S(q, q, q) + 1

    q = torch.randn(1, 2, 8, 16)
    torch.testing.assert_close(run(lambda q: layer(layer(q)), q), S(w := S(q, q, q) + 1, w, w) + 1)
    assert set(kernels_used()) == {"native_flash"}


@pytest.mark.parametrize("transform", ("vmap", "grad"))
def test_functorch_is_left_alone_with_the_reason(transform: str) -> None:
    q = torch.randn(3, 2, 8, 16)
    if transform == "vmap":
        fn = torch.vmap(lambda q: S(q[None], q[None], q[None])[0])
    else:
        fn = torch.func.grad(lambda q: S(q, q, q).square().sum())
    torch.testing.assert_close(run(lambda q: fn(q), q, kernel="native_math"), fn(q))
    (decision,) = decisions()
    assert decision.kernel == "native"
    assert codes(decision, "native_math") == {"functorch"}


def test_users_own_sdpa_kernel_wins() -> None:
    def fn(q: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            inside = S(q, q, q)
        return inside + S(q, q, q)

    q = torch.randn(1, 2, 8, 16)
    torch.testing.assert_close(run(fn, q), fn(q))
    assert [d.reason.value for d in decisions()] == ["user_choice", "requested"]
    assert "MATH" in decisions()[0].note


LISTS = {
    (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH): {"auto": "native_flash", "native_math": "native_math"},
    (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH): {"auto": "native", "native_flash": "native", "flex": "native"},
    (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION): {"native_math": "native", "reference": "native"},
}


@pytest.mark.parametrize("backends", LISTS, ids=lambda pair: "+".join(backend.name for backend in pair))
def test_a_list_of_backends_is_chosen_from(backends: tuple[SDPBackend, ...]) -> None:
    def fn(q: Tensor) -> Tensor:
        with sdpa_kernel(list(backends)):
            inside = S(q, q, q)
        return inside + S(q, q, q) + (q @ q.mT / 4).softmax(-1) @ q

    q = torch.randn(1, 2, 8, 16)
    for kernel, taken in LISTS[backends].items():
        torch._dynamo.reset()
        attnpass.clear_reports()
        torch.testing.assert_close(run(fn, q, kernel=kernel), fn(q))
        inside, *outside = decisions()
        assert inside.kernel == taken and all(each.reason.value != "user_choice" for each in decisions())
        assert ("disabled" in codes(inside, kernel)) == (taken == "native" != kernel and kernel != "auto")
        assert kernel in ("auto", "flex") or all(not codes(each, kernel) for each in outside)


def test_a_list_inside_counts_instead_of_the_one_around() -> None:
    def fn(q: Tensor) -> Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            return S(q, q, q)

    q = torch.randn(1, 2, 8, 16)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(run(fn, q), fn(q))
    assert kernels_used() == ["native_flash"]


def test_sdpa_kernel_around_the_program_wins() -> None:
    q = torch.randn(1, 2, 8, 16)
    with sdpa_kernel(SDPBackend.MATH):
        run(lambda q: S(q, q, q), q)
    assert [d.reason.value for d in decisions()] == ["user_choice"]


class Twice(torch.autograd.Function):
    """Attention in both directions; its backward is no derivative, so that nothing but its own code can give it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor) -> Tensor:
        ctx.save_for_backward(q)
        return S(q, q, q, is_causal=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (q,) = ctx.saved_tensors
        return S(grad, q, q)


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_autograd_function(compiler: str) -> None:
    """The gradient of a sum has strides of 0, which the graph does not know: a kernel read past its end (off by 3)."""
    q = torch.randn(2, 4, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(run(lambda q: Twice.apply(q).sum(), q, compiler=compiler), q)
    (wanted,) = torch.autograd.grad(Twice.apply(q).sum(), q)
    torch.testing.assert_close(gradient, wanted)
    assert kernels_used() == ["native_flash", "native"]
    (reason,) = decisions()[1].rejections("native_flash")
    assert str(reason) == "layout of gradients is decided at run time, needs a constant in the graph"
