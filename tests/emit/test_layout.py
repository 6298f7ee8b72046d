"""Layouts in compiled code: between the projections and a library's kernel nothing is copied that need not be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code, run_fw_bw_and_get_code

from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.sage import SAGE
from attnpass.kernels.xformers import XFORMERS
from tests.helpers.compiled import assert_right, kernels_used, qkv
from tests.standins import flash_attn_2, flash_attn_3, pretend_all, sageattention_2, xformers

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo")
S = F.scaled_dot_product_attention
H, D = 4, 64


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    for standin in (flash_attn_2, flash_attn_3, sageattention_2, xformers):
        standin.install(monkeypatch)
    versions = {FLASH_ATTN: "2.8.3", FLASH_ATTN_3: "3.0.0", SAGE: "2.2.0", XFORMERS: "0.0.35"}
    pretend_all(monkeypatch, "h100", versions)
    with torch._inductor.config.patch(force_disable_caches=True):  # code out of a cache cannot be looked at
        yield


class Block(nn.Module):
    """Projections, heads, attention, a projection: what models do. Without biases, which would be kernels too."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(H * D, 3 * H * D, bias=False, dtype=torch.bfloat16)
        self.out = nn.Linear(H * D, H * D, bias=False, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (H, D)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        out: Tensor = self.out(S(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return out


def compiled(fn: Callable[..., Tensor], kernel: str) -> Callable[..., Tensor]:
    made: Callable[..., Tensor] = torch.compile(fn, backend="attnpass", options={"attnpass.kernel": kernel})
    return made


def copies(code: str) -> list[str]:
    """The kernels that Inductor made itself: there is no arithmetic left, so each is a copy."""
    body = code[code.index("def call(") :]
    return re.findall(r"\b(cpp_fused_\w+|aten\.(?:clone|copy_|contiguous|constant_pad_nd)\w*)\(", body)


def copies_of(fn: Callable[..., Tensor], kernel: str, *args: Tensor) -> list[str]:
    with torch.no_grad():
        out, (code,) = run_and_get_code(compiled(fn, kernel), *args)
        wanted = fn(*args)
    assert kernels_used() == [kernel]
    assert f"torch.ops.attnpass.{kernel}.default(" in code
    assert out.stride() == wanted.stride()
    assert (out.double() - wanted.double()).norm() < 0.05 * wanted.double().norm()
    return copies(code)


@pytest.mark.parametrize("kernel", ("flash2", "flash3", "xformers"))
def test_a_model_that_makes_bshd_copies_nothing(kernel: str) -> None:
    assert copies_of(Block(), kernel, torch.randn(2, 33, H * D, dtype=torch.bfloat16)) == []


@pytest.mark.parametrize("kernel", ("flash2", "flash3"))
def test_bhsd_operands_are_taken_as_they_lie(kernel: str) -> None:
    """Their output lies as q does, which is what SDPA's does, or as it is asked for."""
    assert copies_of(S, kernel, *qkv(bshd=False)) == []


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_beside_sage_there_is_one_kernel_which_takes_the_mean_from_k(bshd: bool) -> None:
    fn, args = (Block(), [torch.randn(2, 33, H * D, dtype=torch.bfloat16)]) if bshd else (S, qkv(bshd=False))
    (only,) = copies_of(fn, "sage", *args)
    assert "mean" in only and "sub" in only


def test_an_output_that_is_always_bshd_is_copied_once_for_bhsd() -> None:
    assert len(copies_of(S, "xformers", *qkv(bshd=False))) == 1


def test_a_chain_by_hand_that_is_returned_gets_its_layout_from_the_kernel() -> None:
    def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v

    assert copies_of(by_hand, "flash3", *qkv()) == []


def test_a_chain_by_hand_whose_heads_are_joined_behind_copies_nothing() -> None:
    def joined(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ((q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)

    assert copies_of(joined, "flash3", *qkv()) == []


@pytest.mark.parametrize("kernel", ("flash2", "flash3"))
def test_bhsd_in_and_heads_joined_behind_costs_one_copy(kernel: str) -> None:
    assert len(copies_of(lambda q, k, v: S(q, k, v).transpose(1, 2).flatten(2), kernel, *qkv(bshd=False))) == 1


def test_a_padded_head_dim_costs_one_kernel_before_and_one_behind() -> None:
    """Zeros for all three operands at once; behind, SDPA's output is dense, and a slice is not."""
    before, behind = copies_of(lambda q, k, v: S(q, k, v).transpose(1, 2), "flash2", *qkv(D=60))
    assert "constant_pad_nd" in before and "slice" in behind


def test_training_copies_nothing_either() -> None:
    block = Block()
    x = torch.randn(2, 33, H * D, dtype=torch.bfloat16, requires_grad=True)
    _, (forward, backward) = run_fw_bw_and_get_code(lambda: compiled(block, "flash2")(x))
    assert "torch.ops.attnpass.flash2_train.default(" in forward and copies(forward) == []
    assert "torch.ops.attnpass.flash2_backward.default(" in backward
    assert len(copies(backward)) == 1, "the gradients of q, k and v, joined for the projection"


@pytest.mark.parametrize("tokens", [64, 72, 77])
def test_a_bias_with_the_heads_last_has_dense_rows_also_where_nothing_is_compiled(tokens: int) -> None:
    """T5's own, at 2048 tokens on an H200, where the clock ran the kernel as it is: a misaligned address."""
    bias = torch.randn(tokens, tokens, H, dtype=torch.bfloat16).permute(2, 0, 1)[None]
    assert_right("xformers", *qkv(2, H, tokens, D), bias)
