"""SageAttention 2, its entry points, 1 and 3 end to end against stand-ins: what each swallows, changes and pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnpass.kernels.sage import SAGE
from attnpass.kernels.sage1 import SAGE_1, int8_blocks
from attnpass.kernels.sage3 import SAGE_3
from tests.helpers.compiled import assert_right, codes, decisions, kernels_used, qkv, refused, run
from tests.standins import pretend_all, sageattention_1, sageattention_2, sageattn3

S = F.scaled_dot_product_attention
GPUS = {"sage1": "h100", "sage": "h100", "sage3": "rtx5090"}


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")


@pytest.fixture
def sage2(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattention_2.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {SAGE: "2.2.0"})


@pytest.fixture
def sage1(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattention_1.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {SAGE_1: "1.0.6"})


@pytest.fixture
def sage3(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattn3.install(monkeypatch)
    pretend_all(monkeypatch, "rtx5090", {SAGE_3: "1.0.0"})


def entry_points_called() -> set[str]:
    return {name for name, _ in sageattention_2.calls}


@pytest.mark.usefixtures("sage2")
class TestSage2:
    @pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
    @pytest.mark.parametrize("D", (64, 60, 72))
    def test_head_dims_and_layouts(self, bshd: bool, D: int) -> None:
        assert_right("sage", *qkv(D=D, bshd=bshd), is_causal=True)
        assert entry_points_called() == {"fp8_sm90"}

    def test_grouped_heads_another_length_and_scale(self) -> None:
        assert_right("sage", *qkv(H=6, Hkv=2, Sk=50, D=60, dtype=torch.float16), enable_gqa=True, scale=0.3)

    def test_nothing_is_handed_over_that_would_be_swallowed(self) -> None:
        assert_right("sage", *qkv(), is_causal=True, scale=0.2)
        assert all(set(given) <= {"pv_accum_dtype", "qk_quant_gran"} for _, given in sageattention_2.calls)
        assert refused("sage", *qkv(), torch.ones(33, 33, dtype=torch.bool)) == {"mask"}
        assert refused("sage", *qkv(), dropout_p=0.1) == {"dropout"}

    def test_refusals(self) -> None:
        assert refused("sage", *qkv(grad=True)) == {"backward"}
        assert refused("sage", *qkv(Sk=50), is_causal=True) == {"causal_alignment"}
        assert refused("sage", *qkv(D=136)) == {"head_dim"}
        assert refused("sage", *qkv(Dv=32)) == {"value_dim"}
        assert refused("sage", *qkv(dtype=torch.float32)) == {"dtype"}
        assert refused("sage", *qkv(), scale=-0.5) == {"scale"}
        assert_right("sage", *qkv(D=128))

    @pytest.mark.parametrize("bshd", (True, False), ids=("NHD", "HND"))
    def test_keys_far_from_zero_are_quantised_without_their_mean(self, bshd: bool) -> None:
        q, k, v = qkv(bshd=bshd, dtype=torch.float16)
        assert_right("sage", q, k + 50 * torch.randn(1, 1, 1, 64, dtype=k.dtype), v)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_vmap(self) -> None:
        q, k, v = (torch.stack(x) for x in zip(qkv(), qkv(), strict=True))
        out = run(lambda q, k, v: torch.vmap(S)(q, k, v), q, k, v, kernel="sage")
        assert kernels_used() == ["sage"]
        wanted = S(q, k, v)
        assert (out - wanted).norm() < 0.05 * wanted.norm()

    @pytest.mark.parametrize("bshd", (True, False), ids=("NHD", "HND"))
    def test_op(self, bshd: bool) -> None:
        q, k, v = (x.transpose(1, 2) if bshd else x for x in qkv(Hkv=2, bshd=bshd))
        layout = "NHD" if bshd else "HND"
        torch.library.opcheck(torch.ops.attnpass.sage.default, (q, k, v, "sage", layout, False, 0.2))


ENTRIES = (
    ("sage", "a100", "fp16", {"pv_accum_dtype": "fp32"}),
    ("sage", "rtx4090", "fp8", {"qk_quant_gran": "per_thread", "pv_accum_dtype": "fp32+fp16"}),
    ("sage", "h100", "fp8_sm90", {"pv_accum_dtype": "fp32+fp32"}),
    ("sage", "rtx5090", "fp8", {"qk_quant_gran": "per_warp", "pv_accum_dtype": "fp32+fp16"}),
    ("sage_triton", "h100", "triton", {}),
    ("sage_fp16", "h100", "fp16", {"pv_accum_dtype": "fp32"}),
    ("sage_fp8", "rtx4090", "fp8", {"qk_quant_gran": "per_thread", "pv_accum_dtype": "fp32+fp16"}),
    ("sage_fp8_sm90", "h100", "fp8_sm90", {"pv_accum_dtype": "fp32+fp32"}),
)


@pytest.mark.parametrize(("kernel", "gpu", "entry", "given"), ENTRIES, ids=lambda x: x if isinstance(x, str) else "")
def test_each_gpu_gets_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, kernel: str, gpu: str, entry: str, given: dict[str, Any]
) -> None:
    """What the library's own ``sageattn`` would call there, without its look at every GPU at each call."""
    sageattention_2.install(monkeypatch)
    pretend_all(monkeypatch, gpu, {SAGE: "2.2.0"})
    assert_right(kernel, *qkv(Sq=128), is_causal=True)
    assert sageattention_2.calls[-1] == (entry, given)


def test_other_gpus_and_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattention_2.install(monkeypatch, binaries=("sm80",))
    pretend_all(monkeypatch, "b200", {SAGE: "2.2.0"})
    assert refused("sage", *qkv()) == {"capability"}
    pretend_all(monkeypatch, "h100", {SAGE: "2.2.0"})
    assert refused("sage", *qkv()) == {"library"}
    assert refused("sage_fp8", *qkv()) == {"capability"}
    assert_right("sage_triton", *qkv())


def test_lengths_at_which_entry_points_read_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    sageattention_2.install(monkeypatch)
    pretend_all(monkeypatch, "a100", {SAGE: "2.2.0"})
    assert refused("sage_fp16", *qkv(Sq=65)) == {"known_bug"}
    assert_right("sage_fp16", *qkv(Sq=64))
    assert refused("sage_triton", *qkv(Sq=64), is_causal=True) == {"known_bug"}
    assert_right("sage_triton", *qkv(Sq=65), is_causal=True)
    assert_right("sage_triton", *qkv(Sq=64))


@pytest.mark.usefixtures("sage1")
class TestSage1:
    @pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32))
    @pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
    def test_right(self, dtype: torch.dtype, bshd: bool) -> None:
        assert_right("sage1", *qkv(Sq=100, bshd=bshd, dtype=dtype), is_causal=True)
        assert_right("sage1", *qkv(Sk=64, D=96, bshd=bshd, dtype=dtype), scale=-0.2)

    def test_grouped_heads(self) -> None:
        assert_right("sage1", *qkv(Hkv=2, Sk=128), enable_gqa=True)
        assert refused("sage1", *qkv(Hkv=2, Sk=128, D=96), enable_gqa=True) == {"gqa"}

    @pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
    def test_keys_far_from_zero_are_quantised_without_their_mean(self, bshd: bool) -> None:
        q, k, v = qkv(Sk=128, bshd=bshd, dtype=torch.float16)
        k = k + 50 * torch.randn(1, 1, 1, 64, dtype=k.dtype)
        assert_right("sage1", q, k, v)

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_vmap(self) -> None:
        q, k, v = (torch.stack(x) for x in zip(qkv(Sk=64), qkv(Sk=64), strict=True))
        out = run(lambda q, k, v: torch.vmap(S)(q, k, v), q, k, v, kernel="sage1")
        assert kernels_used() == ["sage1"]
        exact = S(q.float(), k.float(), v.float())
        assert (out - exact).norm() <= 0.025 * exact.norm()

    def test_the_last_block_of_keys(self) -> None:
        """Its keys beyond the end take part: 0.28 off at 77 keys."""
        assert refused("sage1", *qkv(Sk=77)) == {"known_bug"}
        assert refused("sage1", *qkv(Sq=64), is_causal=True) == {"known_bug"}
        q, k, v = qkv(Sk=77, bshd=False)
        wrong = sageattention_1.sageattn(q, k.clone(), v)
        assert (wrong - S(q, k, v)).norm() > 0.05 * S(q, k, v).norm()

    def test_other_head_dims(self) -> None:
        assert refused("sage1", *qkv(Sk=64, D=32)) == {"head_dim"}
        assert refused("sage1", *qkv(Sk=64, D=80)) == {"head_dim"}
        assert refused("sage1", *qkv(Sk=64, Dv=128)) == {"value_dim"}

    def test_training_is_refused(self) -> None:
        """The library's output has no ``grad_fn``: gradients would vanish."""
        assert refused("sage1", *qkv(Sk=64, grad=True)) == {"backward"}

    def test_op(self) -> None:
        q, k, v = qkv(Sq=64, bshd=False)
        ops = torch.ops.attnpass
        for layout in ("HND", "NHD"):
            (q8, q_steps), (k8, k_steps) = ops.int8_blocks(q, layout, 128, 0.2), ops.int8_blocks(k, layout, 64, 1.0)
            torch.library.opcheck(ops.int8_blocks.default, (q, layout, 128, 0.2))
            operands = (q8, k8, v.half(), q_steps, k_steps, layout, False, torch.bfloat16)
            torch.library.opcheck(ops.sage1.default, operands)

    @pytest.mark.parametrize("S", (1, 63, 64, 65, 130))
    @pytest.mark.parametrize("layout", ("HND", "NHD"))
    def test_rounding_in_blocks(self, layout: str, S: int) -> None:
        x = torch.randn(2, S, 3, 8, dtype=torch.bfloat16)
        rounded, steps = int8_blocks(x if layout == "NHD" else x.transpose(1, 2), layout, 64, -0.3)
        rounded = rounded if layout == "NHD" else rounded.transpose(1, 2)
        assert (rounded.dtype, steps.dtype, steps.is_contiguous()) == (torch.int8, torch.float32, True)
        for i, part in enumerate(x.split(64, 1)):
            wanted = part.float() * -0.3
            step = wanted.abs().amax((1, 3), keepdim=True) / 127.0
            assert torch.equal(steps[:, :, i].unsqueeze(1), step)
            numbers = wanted.abs() / step + 0.5
            assert torch.equal(rounded[:, i * 64 : i * 64 + 64], (numbers.floor() * wanted.sign()).to(torch.int8))


@pytest.mark.usefixtures("sage3")
class TestSage3:
    @pytest.mark.parametrize("is_causal", (False, True))
    @pytest.mark.parametrize("bshd", (False, True), ids=("BHSD", "BSHD"))
    def test_right(self, is_causal: bool, bshd: bool) -> None:
        assert_right("sage3", *qkv(Sq=50, bshd=bshd), is_causal=is_causal)

    def test_refusals(self) -> None:
        assert refused("sage3", *qkv(), scale=0.3) == {"scale"}
        assert_right("sage3", *qkv(D=128), scale=128**-0.5)
        assert refused("sage3", *qkv(Hkv=2), enable_gqa=True) == {"gqa"}
        assert refused("sage3", *qkv(D=256)) == {"head_dim"}
        assert refused("sage3", *qkv(grad=True)) == {"backward"}
        assert refused("sage3", *qkv(), torch.ones(33, 33, dtype=torch.bool)) == {"mask"}

    def test_op(self) -> None:
        torch.library.opcheck(torch.ops.attnpass.sage3.default, (*qkv(bshd=False), False))


@pytest.mark.parametrize("kernel", GPUS)
def test_k_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Versions 1 and 3 subtract K's mean from the caller's own K."""
    standin, library, version = {
        "sage": (sageattention_2, SAGE, "2.2.0"),
        "sage1": (sageattention_1, SAGE_1, "1.0.6"),
        "sage3": (sageattn3, SAGE_3, "1.0.0"),
    }[kernel]
    standin.install(monkeypatch)
    pretend_all(monkeypatch, GPUS[kernel], {library: version})
    for bshd in (True, False):
        q, k, v = qkv(Sk=64, bshd=bshd)
        before = k.clone()
        run(lambda q, k, v: S(q, k, v), q, k, v, kernel=kernel, dynamic=False)
        assert torch.equal(k, before)
    assert set(kernels_used()) == {kernel}


def test_which_version_of_sageattention_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the same distribution and module; the version decides."""
    sageattention_1.install(monkeypatch)
    pretend_all(monkeypatch, "h100", {SAGE_1: "1.0.6", SAGE: "1.0.6"})
    run(lambda q, k, v: S(q, k, v), *qkv(Sk=64), kernel="sage1")
    assert kernels_used() == ["sage1"]
    assert "library" in codes(decisions()[0], "sage")
