"""xformers end to end against a stand-in: its two operators, biases, grouped heads, broken binaries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnpass.kernels.xformers import XFORMERS
from attnpass.machine.machine import Machine
from tests.helpers.compiled import assert_near, assert_right, kernels_used, qkv, refused, run
from tests.standins import pretend_all, tried, xformers

S = F.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    xformers.install(monkeypatch)
    return pretend_all(monkeypatch, "h100", {XFORMERS: "0.0.35"})


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_training(dtype: torch.dtype, bshd: bool) -> None:
    assert_right("xformers", *qkv(bshd=bshd, dtype=dtype, grad=True), is_causal=True)


@pytest.mark.parametrize("grad", (False, True))
def test_grouped_heads(grad: bool) -> None:
    """Five dimensions in inference; for training, which has no backward for that, K and V are repeated."""
    assert_right("xformers", *qkv(H=6, Hkv=2, Sk=50, grad=grad), enable_gqa=True, scale=0.3)
    assert_right("xformers", *qkv(H=6, Hkv=2, Sk=50, Dv=40, grad=grad), enable_gqa=True)  # cutlass


@pytest.mark.parametrize("grad", (False, True))
def test_causal_is_top_left_at_any_length(grad: bool) -> None:
    assert_right("xformers", *qkv(Sk=50, grad=grad), is_causal=True)
    assert_right("xformers", *qkv(Sq=50, Sk=33, grad=grad), is_causal=True)


def test_value_dim_and_negative_scale() -> None:
    assert_right("xformers", *qkv(Dv=40, grad=True), scale=-0.5)
    assert_right("xformers", *qkv(dtype=torch.float16), scale=-0.5)


BIASES = {"full": (2, 4, 33, 50), "shared": (33, 50), "of each key": (2, 1, 1, 50), "of each query": (1, 4, 33, 1)}


@pytest.mark.parametrize("shape", BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("kind", (torch.bool, torch.bfloat16))
def test_masks(shape: tuple[int, ...], kind: torch.dtype) -> None:
    """A bias of exactly (B, H, Sq, Sk), its rows aligned: 50 keys are not."""
    mask = torch.randn(shape) > -1 if kind == torch.bool else torch.randn(shape, dtype=kind)
    if kind == torch.bool and shape[-1] > 1:
        mask[..., 0] = True
    assert_right("xformers", *qkv(Sk=50), mask)


def test_masks_in_training_and_with_grouped_heads() -> None:
    bias = torch.randn(2, 1, 33, 50, dtype=torch.float16)
    assert_right("xformers", *qkv(Sk=50, dtype=torch.float16, grad=True), bias)
    assert_right("xformers", *qkv(Sk=50, grad=True), bias > -1)
    assert_right("xformers", *qkv(H=6, Hkv=2, Sk=50), bias.bfloat16(), enable_gqa=True)


def test_keys_with_stride_0_where_cutlass_misreads_them() -> None:
    """K and V of a group are expanded, so at such lengths they are repeated; what the program expanded is refused."""
    bias = torch.randn(33, 33, dtype=torch.bfloat16)
    assert_right("xformers", *qkv(H=6, Hkv=2), bias, enable_gqa=True)
    assert_right("xformers", *qkv(H=6, Hkv=2, Sk=34), bias[:, :1], enable_gqa=True)
    q, k, v = qkv(H=4, Hkv=1)
    assert refused("xformers", q, k.expand(q.shape), v, bias) >= {"known_bug"}


def test_a_single_row_off_alignment() -> None:
    q, k, v = qkv(H=8, Sq=1, bshd=False, dtype=torch.float32)
    k = k.as_strided(k.shape, (8 * 64, 64, 1, 1))
    assert refused("xformers", q, k, v) == {"alignment"}
    assert refused("native_efficient", q, k, v) >= {"alignment"}


@pytest.mark.parametrize("Hkv", (4, 2))
def test_one_query_with_a_mask(Hkv: int) -> None:
    """The library asks for aligned strides of sizes of 1 as well, and views make those up."""
    assert_right("xformers", *qkv(Sq=1, Sk=50, Hkv=Hkv), torch.rand(2, 1, 1, 50) > 0.3, enable_gqa=Hkv != 4)
    assert_right("xformers", *qkv(Sq=1, Sk=1, Hkv=Hkv), torch.zeros(1, 1, dtype=torch.bfloat16), enable_gqa=Hkv != 4)
    q, k, v = (x.transpose(1, 2) for x in qkv(Sq=1, Sk=50, Hkv=Hkv))
    bias = torch.zeros(2, 4, 1, 64, dtype=q.dtype).as_strided((2, 4, 1, 50), (256, 64, 50, 1))
    torch.ops.attnpass.xformers(q, k, v, bias, "cutlass", False, 0.2)


def test_checkpoint() -> None:
    q, k, v = qkv(grad=True)

    def model(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return checkpoint(S, q, k, v, use_reentrant=False)

    out, wanted = run(model, q, k, v, kernel="xformers"), S(q, k, v)
    assert kernels_used() == ["xformers"]
    assert_near(torch.autograd.grad(out.sum(), k)[0], torch.autograd.grad(wanted.sum(), k)[0])


@pytest.mark.parametrize("operator", ("flash", "cutlass"))
@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(operator: str, bshd: bool) -> None:
    ops = torch.ops.attnpass
    numbers = (operator, False, 0.2)
    q, k, v = (x.transpose(1, 2) for x in qkv(Sk=48, bshd=not bshd))
    bias = torch.randn(2, 4, 33, 48, dtype=q.dtype) if operator == "cutlass" else None
    torch.library.opcheck(ops.xformers.default, (q, k[:, :, :2], v[:, :, :2], bias, *numbers))
    out, lse = ops.xformers_train(q, k, v, bias, *numbers)
    torch.library.opcheck(ops.xformers_backward.default, (out, q, k, v, bias, out, lse, *numbers))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(ops.xformers_train.default, (*leaves, bias, *numbers))


def test_refusals() -> None:
    assert refused("xformers", *qkv(D=60, bshd=False)) == {"head_dim", "alignment"}
    assert refused("xformers", *qkv(), dropout_p=0.1) == {"dropout"}
    bias = torch.zeros(33, 33, dtype=torch.float16, requires_grad=True)
    assert refused("xformers", *qkv(dtype=torch.float16, grad=True), bias) == {"mask_grad"}
    assert refused("xformers", *qkv(grad=True), bias.detach().bfloat16()) == {"known_bug"}


def test_operators_have_their_own_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "b200", {XFORMERS: "0.0.35"})
    assert_right("xformers", *qkv())
    assert refused("xformers", *qkv(dtype=torch.float32)) == {"capability"}  # cutlass ends at sm_90
    pretend_all(monkeypatch, "t4", {XFORMERS: "0.0.35"})
    assert refused("xformers", *qkv(dtype=torch.float16)) == {"capability"}  # flash begins at sm_80
    assert refused("xformers", *qkv(Dv=32)) == {"dtype"}
    assert_right("xformers", *qkv(dtype=torch.float32))


def test_deterministic_training_leaves_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_all(monkeypatch, "h100", {XFORMERS: "0.0.35"}, deterministic=True)
    assert refused("xformers", *qkv(grad=True)) == {"deterministic"}
    assert_right("xformers", *qkv())


CUDART = OSError("libcudart.so.12: cannot open shared object file: No such file or directory")


def test_a_binary_without_its_cuda_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operator would say "not supported"; the reason lies two exceptions deep."""

    def absent(name: str, *_: object) -> None:
        raise OSError(name)

    xformers.install(monkeypatch, CUDART)
    monkeypatch.setattr("ctypes.CDLL", absent)
    problem = tried(monkeypatch, XFORMERS, "0.0.35").problem
    assert problem.startswith("0.0.35, which cannot be used (its binary wants libcudart.so.12, which is not here")
    assert "nvidia-cuda-runtime-cu12" in problem


def test_a_binary_for_another_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    xformers.install(monkeypatch, OSError("undefined symbol: _ZN3c10"))
    assert "does not load: undefined symbol" in tried(monkeypatch, XFORMERS, "0.0.35").problem
