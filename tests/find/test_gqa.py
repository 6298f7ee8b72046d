"""Repeated key/value heads undone: before SDPA and before a chain written by hand, in the right order only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attnpass.find.repeats import _order
from tests.helpers.compiled import assert_near, decisions, run

B, H, Hkv, S, D = 2, 6, 2, 10, 16
N = H // Hkv


def expanded(x: Tensor) -> Tensor:
    return x[:, :, None, :, :].expand(B, Hkv, N, S, D).reshape(B, H, S, D)


def from_bshd(x: Tensor) -> Tensor:
    """As the original LLaMA: repeated as (B, S, H, D), then transposed."""
    return x.transpose(1, 2).unsqueeze(3).expand(B, S, Hkv, N, D).reshape(B, S, H, D).transpose(1, 2)


IN_A_ROW: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat_interleave": lambda x: x.repeat_interleave(N, dim=1),
    "torch.repeat_interleave": lambda x: torch.repeat_interleave(x, N, -3),
    "expand": expanded,
    "from BSHD": from_bshd,
    "repeat": lambda x: x.unsqueeze(2).repeat(1, 1, N, 1, 1).view(B, H, S, D),
    "flatten": lambda x: x.unsqueeze(2).expand(-1, -1, N, -1, -1).flatten(1, 2),
    "contiguous": lambda x: expanded(x).contiguous(),
}
OTHERWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "tiled": lambda x: x.repeat(1, N, 1, 1),
    "tiled by expand": lambda x: x[:, None].expand(B, N, Hkv, S, D).reshape(B, H, S, D),
    "along the keys": lambda x: x.repeat_interleave(N, dim=2)[:, :, :S].repeat(1, N, 1, 1),
    "different times": lambda x: x.repeat_interleave(torch.tensor([2, 4]), dim=1, output_size=H),
}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(2, 3) * D**-0.5).softmax(-1) @ v


def tensors(heads: int = Hkv) -> list[Tensor]:
    shapes = (B, H, S, D), (B, heads, S, D), (B, heads, S, D)
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("attention", (sdpa, by_hand))
@pytest.mark.parametrize("repeat", IN_A_ROW)
def test_heads_repeated_in_a_row(repeat: str, attention: Callable[..., Tensor]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, IN_A_ROW[repeat](k), IN_A_ROW[repeat](v))

    q, k, v = tensors()
    got, wanted = run(fn, q, k, v), fn(q, k, v)
    assert_near(got, wanted)
    for mine, right in zip(
        torch.autograd.grad(got.sum(), (q, k, v)), torch.autograd.grad(wanted.sum(), (q, k, v)), strict=True
    ):
        assert_near(mine, right)
    (decision,) = decisions()
    assert decision.kernel == "native_flash"
    assert decision.call.enable_gqa
    assert (decision.call.H, decision.call.Hkv) == (H, Hkv)


@pytest.mark.parametrize("attention", (sdpa, by_hand))
@pytest.mark.parametrize("repeat", OTHERWISE)
def test_heads_in_another_order_stay_as_they_are(repeat: str, attention: Callable[..., Tensor]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, OTHERWISE[repeat](k), OTHERWISE[repeat](v))

    q, k, v = tensors()
    assert_near(run(fn, q, k, v), fn(q, k, v))
    assert all(decision.call.Hkv == H for decision in decisions())


@pytest.mark.parametrize("attention", (sdpa, by_hand))
def test_one_head_for_all(attention: Callable[..., Tensor]) -> None:
    """Of one head, copies behind each other are copies in a row."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k.repeat(1, H, 1, 1), v.expand(B, H, S, D))

    q, k, v = tensors(1)
    assert_near(run(fn, q, k, v), fn(q, k, v))
    assert decisions()[0].call.Hkv == 1


@pytest.mark.parametrize("attention", (sdpa, by_hand))
def test_only_one_of_k_and_v(attention: Callable[..., Tensor]) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, expanded(k), v.repeat(1, N, 1, 1))

    q, k, v = tensors()
    assert_near(run(fn, q, k, v), fn(q, k, v))
    assert decisions()[0].call.Hkv == H


def test_written_behind_the_repeat() -> None:
    """The repeat holds what k was before it was changed."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.tanh(), v.tanh()
        big_k, big_v = expanded(k), expanded(v)
        k.mul_(3.0)
        return F.scaled_dot_product_attention(q, big_k, big_v) + k.sum()

    with torch.no_grad():
        q, k, v = tensors()
        assert_near(run(fn, q, k, v), fn(q, k, v))
    assert decisions()[0].call.Hkv == H


def test_a_kernel_without_gqa_takes_the_call_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from attnpass.kernels.native_flash import NativeFlash

    monkeypatch.setattr(NativeFlash, "cpu_limits", replace(NativeFlash.cpu_limits, gqa=False))

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa(q, expanded(k), expanded(v)) + by_hand(q, expanded(k), expanded(v))

    q, k, v = tensors()
    assert_near(run(fn, q, k, v), fn(q, k, v))
    assert [(d.kernel, d.call.Hkv) for d in decisions()] == [("native_flash", H)] * 2


def _random_steps(rng: random.Random, shape: tuple[int, ...]) -> tuple[Tensor, list[tuple[str, tuple, tuple]]]:  # type: ignore[type-arg]
    """Views and repeats of a tensor that holds its own positions."""
    x, steps = torch.arange(math.prod(shape)).view(shape), []
    for _ in range(rng.randrange(2, 6)):
        name = rng.choice(("unsqueeze", "permute", "expand", "repeat", "repeat_interleave", "merge", "split"))
        dim = rng.randrange(x.ndim)
        args: tuple = ()  # type: ignore[type-arg]
        if name == "permute":
            args = (tuple(rng.sample(range(x.ndim), x.ndim)),)
            x = x.permute(*args)
        elif name == "expand":
            args = (tuple(rng.choice((2, 3)) if n == 1 and rng.random() < 0.5 else n for n in x.shape),)
            x = x.expand(*args)
        elif name == "repeat":
            args = (tuple(2 if i == dim else 1 for i in range(x.ndim)),)
            x = x.repeat(*args)
        elif name == "repeat_interleave":
            args = (rng.choice((2, 3)), dim)
            x = x.repeat_interleave(*args)
        elif name == "unsqueeze":
            name, x = "view", x.unsqueeze(dim)
        elif name == "merge" and dim + 1 < x.ndim:
            name, x = "view", x.flatten(dim, dim + 1)
        elif name == "split" and x.shape[dim] % 2 == 0:
            name, x = "view", x.unflatten(dim, (-1, 2))
        else:
            continue
        steps.append((name, args, tuple(x.shape)))
    return x, steps


def test_what_is_claimed_of_a_repeat_is_so_element_by_element() -> None:
    rng, claimed = random.Random(0), 0
    for _ in range(3000):
        shape = tuple(rng.choice((1, 2, 2, 4)) for _ in range(4))
        x, steps = _random_steps(rng, shape)
        for heads in range(x.ndim) if steps and x.ndim == 4 else ():
            order = _order(shape, tuple(steps), heads)
            if order is not None:
                claimed += 1
                source = torch.arange(math.prod(shape)).view(shape).permute([order.index(dim) for dim in range(4)])
                assert torch.equal(source.repeat_interleave(x.shape[heads] // source.shape[heads], heads), x), steps
    assert claimed > 50
