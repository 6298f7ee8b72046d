"""Masks in a program: buffers that may change, writes in place, bodies, sharing, removal, what the log says."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnpass
from attnpass.report.record import calls_of
from tests.helpers.compiled import decisions, run
from tests.helpers.masks_read import understood

S = F.scaled_dot_product_attention
LOW = torch.finfo(torch.float32).min


def causal() -> Tensor:
    i = torch.arange(24)
    return i[None] <= i[:, None]


def test_masks_changed_in_place_behind_the_call_or_before_it() -> None:
    def fn(q: Tensor, mask: Tensor) -> Tensor:
        first = S(q, q, q, mask.logical_not())
        mask.zero_()
        return first + S(q, q, q, mask.logical_not())

    q, mask = torch.randn(2, 3, 8, 16), torch.rand(8, 8) > 0.5
    mask[:, 0] = False
    wanted = fn(q, mask.clone())
    for kernel in ("native_math", "flex"):
        torch._dynamo.reset()
        torch.testing.assert_close(run(fn, q, mask.clone(), kernel=kernel), wanted)


@pytest.mark.parametrize("dynamic", (False, True))
def test_assignment_at_numbers(dynamic: bool) -> None:
    """The mask of HunyuanVideo's refiner in diffusers: both tokens are there, or the key is the first."""

    def fn(q: Tensor, there: Tensor) -> Tensor:
        B, _, n, _ = q.shape
        keys = there.view(B, 1, 1, n).repeat(1, 1, n, 1)
        mask = (keys & keys.transpose(2, 3)).bool()
        mask[:, :, :, 0] = True
        mask[..., -1, -1:] = there[:, None, -1:]
        return S(q, q, q, mask.repeat_interleave(3, dim=0).view(B, 3, -1, n))

    q, there = torch.randn(2, 3, 8, 16), torch.rand(2, 8) > 0.5
    torch.testing.assert_close(run(fn, q, there, kernel="native_math", dynamic=dynamic), fn(q, there))
    (decision,) = decisions()
    assert str(decision.call.mask) == "function", decision.call.mask.stop
    assert "k <= 0 or" in decision.call.mask.meaning


def test_assignment_to_a_new_dimension() -> None:
    """Its value has one dimension more than what is written, so its elements lie elsewhere."""

    def fn(q: Tensor, there: Tensor) -> Tensor:
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:, :, None] = there[0, :, None]
        own = torch.arange(8)[None] == torch.arange(8)[:, None]
        return S(q, q, q, mask | own)

    q, there = torch.randn(2, 3, 8, 16), torch.rand(2, 8) > 0.5
    torch.testing.assert_close(run(fn, q, there, kernel="native_math"), fn(q, there))
    assert decisions()[0].call.mask.meaning == "q == k or l_there_[0, k]"


class Buffered(nn.Module):
    """A model that keeps its causal mask, as GPT-2 did."""

    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.ones(64, 64, dtype=torch.bool).tril().view(1, 1, 64, 64))

    def forward(self, q: Tensor) -> Tensor:
        return S(q, q, q, self.bias[:, :, : q.shape[2], : q.shape[2]])


@pytest.mark.parametrize("calls", (1, 3))
def test_a_buffer_deep_in_a_model_is_watched(calls: int) -> None:
    """PyTorch 2.9 stops looking at what lies in dictionaries that nobody wrote to."""
    model, q = (
        nn.Sequential(nn.Sequential(Buffered()), nn.Sequential(Buffered(), nn.LayerNorm(32))),
        torch.randn(2, 3, 24, 32),
    )
    compiled = torch.compile(model, backend="attnpass", options={"attnpass.compiler": "aot_eager"}, dynamic=False)
    for _ in range(calls):
        torch.testing.assert_close(compiled(q), model(q))
    assert {str(decision.call.mask) for decision in decisions()} == {"causal"}
    model[1][0].bias[..., 7, 1] = False
    torch.testing.assert_close(compiled(q), model(q))


def test_a_buffer_is_assumed_until_it_changes() -> None:
    model, q = Buffered(), torch.randn(2, 3, 24, 32)
    options = {"attnpass.compiler": "aot_eager"}
    compiled = torch.compile(model, backend="attnpass", options=options, dynamic=False)
    torch.testing.assert_close(compiled(q), model(q))
    assert str(attnpass.reports()[-1].decisions[0].call.mask) == "causal"
    for column in (1, 2, 3):
        model.bias[..., 7, column] = False
        torch.testing.assert_close(compiled(q), model(q))
    model.bias = model.bias.clone()
    torch.testing.assert_close(compiled(q), model(q))
    assert len(attnpass.reports()) == 2  # once with the assumption, once without, and never again
    assert str(attnpass.reports()[-1].decisions[0].call.mask) == "tensor"


def test_a_parameter_or_input_is_never_assumed() -> None:
    def fn(q: Tensor, mask: Tensor) -> Tensor:
        return S(q, q, q, mask)

    (found,) = understood(fn, torch.randn(2, 3, 24, 32), torch.ones(24, 24, dtype=torch.bool).tril())
    assert str(found.call.mask) == "tensor"


def test_masks_inside_checkpoints_and_opened_layers() -> None:
    def block(q: Tensor, mask: Tensor) -> Tensor:
        return S(q, q, q, mask)

    def outer(q: Tensor) -> Tensor:
        result: Tensor = checkpoint(block, q, torch.ones(24, 24, dtype=torch.bool).tril(), use_reentrant=False)
        return result

    (found,) = understood(outer, torch.randn(2, 3, 24, 32, requires_grad=True))
    assert str(found.call.mask) == "causal"
    layer = nn.TransformerEncoderLayer(64, 4, 64, batch_first=True, dropout=0.0)
    hidden = torch.zeros(2, 24, dtype=torch.bool)
    hidden[1, 20:] = True
    x = torch.randn(2, 24, 64)

    def layered(x: Tensor, hidden: Tensor) -> Tensor:
        out: Tensor = layer(x, src_mask=torch.triu(torch.full((24, 24), True), 1), src_key_padding_mask=hidden)
        return out

    (found,) = understood(layered, x, hidden)
    assert str(found.call.mask) == "causal & key_padding"
    torch.testing.assert_close(run(layered, x, hidden, kernel="flex"), layered(x, hidden))


def test_equal_masks_are_read_once_and_blocks_made_once() -> None:
    def fn(q: Tensor, padding: Tensor) -> Tensor:
        mask = causal() & padding[:, None, None]
        for _ in range(3):
            q = S(q, q, q, mask)
        return q

    q, padding = torch.randn(2, 3, 24, 32), torch.ones(2, 24, dtype=torch.bool)
    meanings = [found.meaning for found in understood(fn, q, padding)]
    assert meanings[0] is meanings[1] is meanings[2]
    run(fn, q, padding, kernel="flex", options={"attnpass.log": "debug"})
    code = attnpass.reports()[-1].code_after
    assert code.count("torch.ops.attnpass.fixed_layouts") == 1


def test_what_nobody_needs_any_more_is_removed() -> None:
    """The mask's own nodes and the repeats of K and V go; a mask that something else reads stays."""

    def fn(q: Tensor, k: Tensor) -> Tensor:
        mask = causal()
        repeated = k[:, :, None].expand(2, 2, 2, 24, 16).reshape(2, 4, 24, 16)
        return S(q, repeated, repeated, mask)

    q, k = torch.randn(2, 4, 24, 16), torch.randn(2, 2, 24, 16)
    run(fn, q, k, options={"attnpass.log": "debug"})
    code = attnpass.reports()[-1].code_after
    assert not any(word in code for word in ("arange", "<=", "expand", "reshape"))
    torch._dynamo.reset()
    run(lambda q, k: fn(q, k) + causal()[0, 0], q, k, options={"attnpass.log": "debug"})
    assert "arange" in attnpass.reports()[-1].code_after


def test_the_log_says_what_a_mask_means_or_why_not() -> None:
    from attnpass.report.text import block, debug_text

    def padded(q: Tensor, padding: Tensor) -> Tensor:
        return S(q, q, q, causal() & padding.bool()[:, None, None, :])

    padding = torch.ones(2, 24, dtype=torch.long)
    run(padded, torch.randn(2, 3, 24, 32), padding)
    report = attnpass.reports()[-1]
    assert "mask: k <= q and not (l_padding_[b, k] == 0)" in debug_text(report)
    assert calls_of(report.to_dict())[0]["mask_meaning"].startswith("k <= q")
    torch._dynamo.reset()
    run(lambda q, mask: S(q, q, q, mask), torch.randn(2, 3, 24, 32), torch.ones(24, 24, dtype=torch.bool))
    assert "mask not proved: an input (l_mask_" in block(attnpass.reports()[-1])


@pytest.mark.parametrize("kernel", ("native_math", "flex"))
def test_what_a_mask_was_made_from_may_change_behind_it(kernel: str) -> None:
    """The mask stays what it was; reading its meaning again at the second call would read the changed padding."""

    def fn(q: Tensor, padding: Tensor) -> Tensor:
        mask = causal() & padding[:, None, None, :]
        first = S(q, q, q, mask)
        padding.zero_()
        return first + S(first, first, first, mask)

    q, padding = torch.randn(2, 3, 24, 32), torch.ones(2, 24, dtype=torch.bool)
    padding[0, 20:] = False
    wanted = fn(q, padding.clone())
    torch.testing.assert_close(run(fn, q, padding.clone(), kernel=kernel), wanted)
    masks = [str(decision.call.mask) for decision in decisions()]
    assert masks[0] == "causal & key_padding" and masks[1] != masks[0]


def test_a_low_number_under_autocast_is_what_the_cast_makes_of_it() -> None:
    """The lowest fp32 number is -inf in bf16: a hidden row is 0 there, and an average without autocast."""

    def fn(q: Tensor, padding: Tensor) -> Tensor:
        return S(q, q, q, torch.where(padding[:, None, None, :] & causal(), 0.0, LOW))

    padding = torch.ones(2, 24, dtype=torch.bool)
    padding[0, :6] = False
    q = torch.randn(2, 3, 24, 32)
    for enabled in (False, True):
        torch._dynamo.reset()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            wanted = fn(q, padding)
            got = run(fn, q, padding, kernel="flex")
        torch.testing.assert_close(got, wanted, atol=2e-2 if enabled else 1e-5, rtol=1e-2)
        (decision,) = attnpass.reports()[-1].decisions
        assert (decision.kernel, str(decision.call.mask)) == ("flex", "causal & key_padding")


def test_a_learned_bias_keeps_its_gradient_beside_another() -> None:
    def fn(q: Tensor, fixed: Tensor, learned: Tensor) -> Tensor:
        return S(q, q, q, fixed + torch.where(causal(), 0.0, LOW) + learned)

    q, fixed = torch.randn(2, 3, 24, 32, requires_grad=True), torch.randn(1, 3, 24, 24)
    learned = torch.randn(3, 24, 24, requires_grad=True)
    (found,) = understood(fn, q, fixed, learned)
    assert found.call.mask.bias is not None and found.call.mask.bias.requires_grad
    wanted = torch.autograd.grad(fn(q, fixed, learned).sum(), learned)
    got = torch.autograd.grad(run(fn, q, fixed, learned, kernel="flex,native_math").sum(), learned)
    torch.testing.assert_close(got, wanted)
