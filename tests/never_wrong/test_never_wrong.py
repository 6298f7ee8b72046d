"""Programs on which a pass that reads names goes wrong; each stands for a kind. The right answer is eager's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.helpers.compiled import run

S, D = 8, 32
INF, LOW = float("-inf"), torch.finfo(torch.float32).min
KERNELS = ("native_math", "native_flash", "flex")
Model = Callable[[Tensor, Tensor, Tensor], Tensor]
sdpa = F.scaled_dot_product_attention


def triangle() -> Tensor:
    return torch.ones(S, S, dtype=torch.bool).tril()


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ((q @ k.mT) * 0.25).softmax(-1) @ v


def repeated(x: Tensor) -> Tensor:
    return x[:, :1].repeat_interleave(2, 1)


# A copy of an operand that is written before it is read.


def copy_made_contiguous(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = q.transpose(1, 2).contiguous().transpose(1, 2).contiguous()
    x.mul_(0.25)
    return (x @ k.mT).softmax(-1) @ v


def copy_of_a_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    cache = k.clone()
    cache[:, :, 4:6] = 0.5
    return by_hand(q, cache, v)


def copy_with_repeated_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    values = repeated(v)
    values[:, :, 0] = 0
    return sdpa(q, repeated(k), values)


def copy_that_was_scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = q * 0.25
    x.add_(1.0)
    return (x @ k.mT).softmax(-1) @ v


# Writes in every spelling.


def write_by_position(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((S, S), INF).triu(1)
    F.relu(mask, True)
    return sdpa(q, k, v, attn_mask=mask)


def write_by_dunder(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = triangle()
    mask.__ior__(torch.ones(S, S, dtype=torch.bool))
    return sdpa(q, k, v, attn_mask=mask)


@torch.library.custom_op("attnpass_tests::show", mutates_args={"x"})
def show(x: Tensor) -> None:
    x.fill_(True)


@show.register_fake
def _(x: Tensor) -> None:
    return None


def write_by_a_custom_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = triangle()
    show(mask)
    return sdpa(q, k, v, attn_mask=mask)


def write_by_foreach(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.zeros(S, S).masked_fill(~triangle(), -1.0)
    torch._foreach_mul_([mask], 3.0)
    return sdpa(q, k, v, attn_mask=mask)


def write_behind_a_negation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = triangle()
    hidden = ~mask
    mask.fill_(True)
    return (q @ k.mT).masked_fill(hidden, INF).softmax(-1) @ v


def write_to_a_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scale = torch.tensor([0.5])
    scores = q @ k.mT * scale
    scale.mul_(3.0)
    return scores.softmax(-1) @ v


def out_of_two_inputs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask, other = triangle(), torch.empty(S, S, dtype=torch.bool)
    torch.logical_or(mask, torch.ones(S, S, dtype=torch.bool), out=other)
    return sdpa(q, k, v, attn_mask=mask)


def out_of_the_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result = torch.empty_like(q)
    torch.matmul((q @ k.mT).softmax(-1), v, out=result)
    return result * 1


# Ops that only look like PyTorch's.


@torch.library.custom_op("attnpass_tests::softmax", mutates_args=())
def foreign(x: Tensor, dim: int) -> Tensor:
    return torch.softmax(x * 3, dim)


foreign.register_fake(lambda x, dim: torch.empty_like(x))


@torch._dynamo.allow_in_graph
def tril(x: Tensor) -> Tensor:
    return torch.triu(x)


def foreign_op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights: Tensor = torch.ops.attnpass_tests.softmax(q @ k.mT, -1)
    return weights @ v


def foreign_function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=tril(torch.ones(S, S, dtype=torch.bool)))


# Indexing, padding, types.


def index_by_a_list(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(S)
    x = (i[:, None] - i)[None] >= torch.arange(3)[:, None, None] - 1
    return sdpa(q, k, v, attn_mask=x[[2, 1, 0]][0])


def index_at_a_number_then_a_slice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    i = torch.arange(S)
    x = (i[:, None] - i >= 0)[None].expand(4, S, S)
    return sdpa(q, k, v, attn_mask=x[0, :, i])


def padded_by_reflection(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = torch.zeros(2, S).masked_fill(torch.arange(S)[None] < 3, INF)
    return sdpa(q, k, v, attn_mask=F.pad(x, (3, 0), "reflect", 0)[:1, :S].expand(S, S))


def bytes_beside_floats(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    u = torch.tensor([0, 5, 200, 255, 3, 7, 100, 254], dtype=torch.uint8)
    return sdpa(q, k, v, attn_mask=(u < 300.0)[None].expand(S, S))


def scores_cast_down(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    p = torch.zeros(2, S)
    p[1] = 1
    scores = q @ k.mT + torch.zeros(1, 1, 1, S).masked_fill(p[:, None, None] == 0, -1e9)
    return scores.half().float().softmax(-1) @ v


def maximum_of_another_dimension(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = k @ q.mT
    scores = scores - scores.amax(-1, keepdim=True)
    return scores.softmax(-2).mT @ v


def maximum_before_the_cap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT
    scores = scores - scores.amax(-1, keepdim=True)
    return (torch.tanh(scores / 5) * 5).softmax(-1) @ v


def two_low_numbers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = (torch.arange(S) >= S // 2).long()[None].to(q.dtype)
    scores = torch.where(triangle(), q @ k.mT, LOW)
    return (scores + (1.0 - seen[:, None, None]) * LOW).softmax(-1) @ v


def a_low_number_beside_a_bias(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.linspace(0, 1, S) * LOW  # as low as what hides
    return (q @ k.mT + torch.zeros(S, S).masked_fill(~triangle(), LOW) + bias).softmax(-1) @ v


def two_biases_of_which_one_hides(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    bias = torch.zeros(S, S)
    bias[~triangle().tril(-1)] = INF  # by an index of truth values: read as a tensor
    return (q @ k.mT + (bias + q[0, 0, :, :1])).softmax(-1) @ v


def a_logarithm_hides_a_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = (torch.arange(S) > S).long() * k.shape[0]
    bias = (seen[:, None] * (v[0, 0, :, 0] > 9).long()).float().log()  # -inf
    return (q @ k.mT + (bias + q[0, 0, :, :1].bool().float())).softmax(-1) @ v


# What must not raise, or take for ever.


def frozen_in_a_checkpoint(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result: Tensor = checkpoint(by_hand, q, k, v, use_reentrant=False)
    return result


def an_unrolled_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((S * 4, S * 4), INF)
    for i in range(S * 4):
        mask[i, max(0, i - 3) : i + 1] = 0.0
    return sdpa(q, k, v, attn_mask=mask[:S, :S])


def a_chain_of_xor(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = triangle()
    for i in range(24):
        mask = mask ^ (torch.arange(S) == i % S)
    return sdpa(q, k, v, attn_mask=mask | torch.eye(S, dtype=torch.bool))


def a_mask_of_scalars(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=triangle()[:1, 3:4])


def one_element_read_for_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return sdpa(q, k, v, attn_mask=(q > 0)[0, 0, 0, :1][None].expand(S, S))


def one_mask_with_unlike_hidden_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = triangle().tril(-1)
    return sdpa(q, k, v, attn_mask=mask) + (q @ k.mT).masked_fill(~mask, LOW).softmax(-1) @ v


INFERENCE: list[Model] = [
    *(copy_made_contiguous, copy_of_a_cache, copy_with_repeated_heads, copy_that_was_scaled),
    *(write_by_position, write_by_dunder, write_by_a_custom_op, write_by_foreach, write_behind_a_negation),
    *(write_to_a_scale, out_of_two_inputs, out_of_the_product, foreign_op, foreign_function, index_by_a_list),
    *(index_at_a_number_then_a_slice, padded_by_reflection, bytes_beside_floats, scores_cast_down),
    *(maximum_of_another_dimension, maximum_before_the_cap, two_low_numbers, a_low_number_beside_a_bias),
    two_biases_of_which_one_hides,
    a_logarithm_hides_a_row,
    *(frozen_in_a_checkpoint, an_unrolled_window, a_chain_of_xor, a_mask_of_scalars),
    one_element_read_for_all,
    one_mask_with_unlike_hidden_rows,
]


def inputs(grad: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 2, S, D, requires_grad=grad) for _ in range(3)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("model", INFERENCE, ids=lambda model: model.__name__)
def test_forward(model: Model, kernel: str) -> None:
    given = inputs()
    with torch.set_grad_enabled(model is frozen_in_a_checkpoint):
        out = run(model, *given, kernel=kernel)
        torch.testing.assert_close(out, model(*given), equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mask_is_followed_back_through_detach_without_its_gradient(kernel: str) -> None:
    bias = torch.nn.Parameter(torch.zeros(S, S).masked_fill(~triangle(), INF))

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.mT + bias.detach()).masked_fill(~triangle(), INF)).softmax(-1) @ v

    given = inputs()
    out = run(model, *given, kernel=kernel)
    assert not out.requires_grad
    torch.testing.assert_close(out, model(*given), equal_nan=True, rtol=1e-4, atol=1e-4)
