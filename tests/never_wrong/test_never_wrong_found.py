"""Programs that random ones led to (`scripts/fuzz.py`), cut down to what went wrong. The right answer is eager's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.ir.limits import Code
from tests.fuzz.judge import exact_results, wrong
from tests.fuzz.scope import Program
from tests.helpers.compiled import codes, decisions, kernels_used, run
from tests.never_wrong.test_never_wrong import INF, KERNELS, D, Model, S, inputs, sdpa, show, triangle


def one_element_of_an_expanded_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.full((S, 1), 2).expand(2, 2, S, S)
    mask[1, 1, 3, 5:6] = 0  # the whole row, of all batches and heads
    return sdpa(q, k, v, attn_mask=mask > 0)


def one_element_of_unfolded_windows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = torch.ones(2 * S - 1).unfold(0, S, 1)
    mask[3, 4:5] = 0  # the others of its diagonal as well
    return sdpa(q, k, v, attn_mask=mask > 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "model", [one_element_of_an_expanded_mask, one_element_of_unfolded_windows], ids=lambda model: model.__name__
)
def test_a_write_shows_wherever_its_memory_is_read(model: Model, kernel: str) -> None:
    given = inputs()
    out = run(model, *given, kernel=kernel, compiler="eager")  # functionalization refuses some such writes
    torch.testing.assert_close(out, model(*given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dynamic", (False, True))
def test_a_write_to_a_part_is_followed(dynamic: bool) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = torch.zeros(q.shape[2], k.shape[2] + 3)[:, 3:]
        mask[2:].mT[1:] = INF
        return sdpa(q, k, v, attn_mask=mask)

    given = inputs()
    torch.testing.assert_close(run(model, *given, kernel="flex", dynamic=dynamic), model(*given))
    assert decisions()[-1].call.mask.meaning


def infinity_added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT + torch.zeros(S, S).masked_fill(~triangle().tril(-1), INF)).softmax(-1) @ v


def infinity_written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).masked_fill(~triangle().tril(-1), INF).softmax(-1) @ v


@pytest.mark.parametrize(("model", "refused"), [(infinity_added, True), (infinity_written, False)])
def test_rows_hidden_by_added_infinity_are_no_rule_in_training(model: Model, refused: bool) -> None:
    run(model, *inputs(grad=True), kernel="flex")
    assert (Code.EMPTY_ROWS.value in codes(decisions()[-1], "flex")) == refused
    run(model, *inputs(), kernel="flex")
    assert kernels_used()[-1] == "flex"


def test_rows_hidden_by_added_infinity_have_gradients_of_nan() -> None:
    ours, theirs = inputs(grad=True), inputs(grad=True)
    run(infinity_added, *ours, kernel="native_math").sum().backward()
    assert kernels_used()[-1] == "native_math"
    infinity_added(*theirs).sum().backward()
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, right.grad, equal_nan=True)


def test_the_judge_takes_a_nan_that_eager_loses() -> None:
    """In bf16, beside +inf in the mask, PyTorch's flash kernel on CPU gives numbers in some rows of NaN."""
    nan, number = torch.tensor([torch.nan]), torch.tensor([1.0])
    assert not wrong([nan], [number], [nan.double()], torch.float32)
    assert wrong([nan], [number], [number.double()], torch.float32)
    assert wrong([number], [nan], [nan.double()], torch.float32)


def test_the_judge_copies_where_a_cast_does() -> None:
    source = "def program(q):\n    x = q.float().to(q.dtype)\n    x.neg_()\n    return q * x\n"
    program = Program(0, source, {"q": torch.ones(4, dtype=torch.bfloat16)}, grad=True)
    exact = exact_results(program.function(), program)
    assert exact is not None
    assert exact[0].eq(-1).all()


def test_gradients_of_a_row_hidden_by_one_low_number_are_those_of_fp64() -> None:
    """Eager's own are not: its flash kernel on CPU takes each key of such a row for the only one."""
    low = torch.finfo(torch.float32).min
    mask = torch.zeros(S, S).index_fill(0, torch.tensor([3]), low)

    def gradients(kernel: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = [x.detach().to(dtype).requires_grad_() for x in inputs()]

        def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(dtype))

        return torch.autograd.grad(run(model, *given, kernel=kernel).square().sum(), given)

    for mine, exact in zip(
        gradients("native_math", torch.float32), gradients("native_math", torch.float64), strict=True
    ):
        torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_mask_that_is_written_between_two_calls_has_blocks_of_its_own() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        causal = torch.ones(256, 256, dtype=torch.bool).tril()
        before = sdpa(q, k, v, attn_mask=causal & mask)
        show(mask)
        return before, sdpa(q, k, v, attn_mask=causal & mask)

    def given() -> list[Tensor]:
        return [*torch.ones(3, 1, 2, 256, D), (torch.arange(256)[None] < 100).expand(256, 256).contiguous()]

    run(model, *given(), kernel="flex", options={"attnpass.log": "debug"})
    first, second = [
        line for line in attnpass.reports()[-1].code_after.splitlines() if "higher_order.flex_attention" in line
    ]
    assert first.split("(256, 256, ")[1].split(", None")[0] != second.split("(256, 256, ")[1].split(", None")[0]


def test_a_sum_of_numbers_may_overflow_in_a_cast() -> None:
    """-1e4 fits into fp16 and the sum of ten does not: -inf, and NaN where it hides a whole row."""

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = torch.zeros(S, S, dtype=torch.bfloat16).masked_fill(~triangle(), -1e4).flatten()
        bias.cumsum_(-1)
        scores = ((q @ k.mT) * 0.25 + bias.view(S, S)).to(torch.float16)
        return scores.float().softmax(-1).to(v.dtype) @ v

    q, k, v = (torch.randn(1, 2, S, 16, dtype=torch.float16) for _ in range(3))
    expected = model(q, k, v)
    assert expected.isnan().any()
    torch.testing.assert_close(run(model, q, k, v, kernel="native_math"), expected, equal_nan=True)
    assert decisions() == []
