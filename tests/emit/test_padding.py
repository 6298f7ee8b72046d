"""Padding as a number of keys: which masks are read so, that it is exact, and what it costs in the graph."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import attnpass
from attnpass.kernels import native_flash
from attnpass.kernels.flash2 import FLASH_ATTN
from attnpass.kernels.flash3 import FLASH_ATTN_3
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.machine.library import Library
from attnpass.trials.trials import _validators
from tests.helpers.compiled import assert_near, assert_right, codes, decisions, kernels_used, qkv, refused, run
from tests.standins import flash_attn_2, flash_attn_3, flash_attn_4, pretend_all
from tests.standins.formula import attention

S = F.scaled_dot_product_attention
LIBRARIES: dict[str, tuple[ModuleType, Library, str, dict[str, Any]]] = {
    "flash2": (flash_attn_2, FLASH_ATTN, "2.8.3", {}),
    "flash3": (flash_attn_3, FLASH_ATTN_3, "3.0.0", {"raw": True}),
    "flash4": (flash_attn_4, FLASH_ATTN_4, "4.0.0b36", {}),
}
KERNELS = (*LIBRARIES, "flash3_fp8", "native_flash")
LENGTHS = torch.tensor([33, 12])
MOVES = {"flash2": 2, "flash3": 0}  # indexed reads a call: K and V moved, or read where they lie
PADDINGS = {
    "right": torch.arange(33) < LENGTHS[:, None],
    "left": torch.arange(33) >= 33 - LENGTHS[:, None],
    "scattered": torch.rand(2, 33, generator=torch.Generator().manual_seed(1)) > 0.5,
    "nothing hidden": torch.ones(2, 33, dtype=torch.bool),
    "one example without keys": torch.tensor([[False], [True]]).expand(2, 33),
}


def variable_length(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    *flags: Any,
    scale: float,
    seqused_k: Tensor,
) -> tuple[Tensor, ...]:
    """What ``aten::_flash_attention_forward`` computes of tokens (B * S, H, D); no CPU has it."""
    assert flags == (0.0, False, False) and {starts_q.dtype, starts_k.dtype} == {torch.int32}
    bounds = [zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True) for starts in (starts_q, starts_k)]
    out = torch.empty_like(q)
    for (q0, q1), (k0, k1), length in zip(*bounds, seqused_k.tolist(), strict=True):
        assert q1 - q0 <= longest_q and k0 + length <= k1 <= k0 + longest_k
        seen = torch.ones(q1 - q0, length, dtype=torch.bool)
        one = attention(q[None, q0:q1], k[None, k0 : k0 + length], v[None, k0 : k0 + length], scale, seen)[0][0]
        out[q0:q1] = one
    return (out,)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNPASS_PROBE", "0")
    for standin, _, _, how in LIBRARIES.values():
        standin.install(monkeypatch, **how)
    pretend_all(monkeypatch, "h100", {library: version for _, library, version, _ in LIBRARIES.values()})
    monkeypatch.setattr(native_flash, "variable_length", variable_length)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_padding_is_exact(kernel: str, padding: str) -> None:
    assert_right(kernel, *qkv(Hkv=2, Sq=20, Sk=33), PADDINGS[padding][:, None, None, :], enable_gqa=True)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_paddings(data: st.DataObject) -> None:
    seen = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=2, max_size=2)))
    q, k, v = qkv(Sq=3, Sk=9, bshd=data.draw(st.booleans()))
    torch._dynamo.reset()
    out = run(lambda q, k, v, m: S(q, k, v, m), q, k, v, seen[:, None, None], kernel="flash3")
    assert kernels_used()[-1:] == ["flash3"]
    assert_near(out, S(q, k, v, seen[:, None, None]))


def spelled_by_transformers(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    B, Sq, Sk = q.shape[0], q.shape[2], k.shape[2]
    batch, key = torch.arange(B)[:, None, None, None], torch.arange(Sk)[None, None, None]
    return S(q, k, v, padding[batch, key].expand(B, 1, Sq, Sk))


def added_lowest(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    mask = (1.0 - padding.to(q.dtype))[:, None, None, :] * torch.finfo(q.dtype).min
    return S(q, k, v, mask)


def filled_with_infinity(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).masked_fill(~padding[:, None, None], -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("spelling", (spelled_by_transformers, added_lowest, filled_with_infinity))
def test_spellings_and_what_they_give_for_an_example_without_keys(
    spelling: Callable[..., Tensor], padding: str
) -> None:
    operands = (*qkv(), PADDINGS[padding].clone())
    out, wanted = run(spelling, *operands, kernel="flash3"), spelling(*operands)
    assert kernels_used() == ["flash3"]
    assert torch.equal(out.isnan(), wanted.isnan())
    assert_near(out.nan_to_num(), wanted.nan_to_num())


def orders_and_reads() -> tuple[int, int]:
    """How often the rewritten graph puts keys in order, and how often it reads a tensor by indices."""
    after = attnpass.last_report().code_after
    return after.count("torch.ops.aten.scatter"), after.count("torch.ops.aten.index.Tensor")


@pytest.mark.parametrize("bshd", (True, False), ids=("BSHD", "BHSD"))
def test_ops(bshd: bool) -> None:
    ops = torch.ops.attnpass
    q, k, v = (x.transpose(1, 2) for x in qkv(bshd=not bshd, Hkv=2))
    lengths = torch.tensor([12, 0], dtype=torch.int32)
    torch.library.opcheck(ops.flash2_padded.default, (q, k, v, lengths, 0.2, 0.0))
    starts = (torch.tensor([0, 33, 66], dtype=torch.int32),) * 2
    torch.library.opcheck(ops.native_flash_padded.default, (q, k, v, lengths, *starts, 0.2))
    for op in (ops.flash3.default, ops.flash4.default):
        torch.library.opcheck(op, (q, k, v, None, lengths, 0.2, -1, -1, 0.0))


class TestGraph:
    @pytest.mark.parametrize("kernel", MOVES)
    def test_layers_share_one_order(self, kernel: str) -> None:
        def layers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            for _ in range(3):
                q = S(q, k, v, mask)
            return q

        q, k, v = qkv()
        run(layers, q, k, v, PADDINGS["left"][:, None, None], kernel=kernel, options={"attnpass.log": "debug"})
        assert kernels_used() == [kernel] * 3
        assert orders_and_reads() == (1, 1 + 3 * MOVES[kernel])  # of the mask; of K and V in each layer

    def test_a_prefix_by_its_meaning_moves_nothing(self) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
            return S(q, k, v, (torch.arange(33) < lengths[:, None])[:, None, None])

        operands = (*qkv(), LENGTHS)
        out = run(model, *operands, kernel="flash3", options={"attnpass.log": "debug"})
        assert kernels_used() == ["flash3"] and orders_and_reads() == (0, 1)
        assert_near(out, model(*operands))

    @pytest.mark.parametrize("kernel", MOVES)
    @pytest.mark.parametrize("spelling", ("at least", "not equal"))
    def test_what_is_no_prefix_is_put_in_order(self, spelling: str, kernel: str) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
            key = torch.arange(33)
            seen = key >= 33 - lengths[:, None] if spelling == "at least" else key != lengths[:, None]
            return S(q, k, v, seen[:, None, None])

        operands = (*qkv(), LENGTHS)
        out = run(model, *operands, kernel=kernel, options={"attnpass.log": "debug"})
        assert kernels_used() == [kernel] and orders_and_reads() == (1, 1 + MOVES[kernel])
        assert_near(out, model(*operands))

    @pytest.mark.parametrize("kernel", MOVES)
    def test_any_length(self, kernel: str) -> None:
        options = {"attnpass.kernel": kernel, "attnpass.compiler": "aot_eager"}
        compiled = torch.compile(spelled_by_transformers, backend="attnpass", options=options)
        for length in (33, 40, 57):
            q, k, v = qkv(Sq=length)
            padding = torch.rand(2, length) > 0.4
            for each, dim in ((q, 2), (k, 2), (v, 2), (padding, 1)):
                torch._dynamo.mark_dynamic(each, dim)
            assert_near(compiled(q, k, v, padding), spelled_by_transformers(q, k, v, padding))
        assert kernels_used() == [kernel]

    def test_a_mask_changed_between_two_layers(self) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
            padding = padding.clone()
            first = S(q, k, v, padding[:, None, None])
            padding.logical_not_()
            return first + S(q, k, v, padding[:, None, None])

        operands = (*qkv(), PADDINGS["right"])
        out = run(model, *operands, kernel="flash3")
        assert kernels_used() == ["flash3"] * 2
        assert_near(out, model(*operands))

    def test_where_examples_begin_is_worked_out_once(self) -> None:
        def layers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return S(S(q, k, v, mask), k, v, mask)

        operands = (*qkv(), PADDINGS["right"][:, None, None])
        out = run(layers, *operands, kernel="native_flash", options={"attnpass.log": "debug"})
        assert kernels_used() == ["native_flash"] * 2
        assert_near(out, layers(*operands))
        after = attnpass.last_report().code_after
        assert after.count("ops.attnpass.native_flash_padded") == 2 and after.count("arange.default(3, dtype") == 1


class TestRefused:
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_in_training(self, kernel: str) -> None:
        assert "mask" in refused(kernel, *qkv(grad=True), PADDINGS["left"][:, None, None])

    @pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "flash4"])  # it has mask functions
    def test_beside_causal(self, kernel: str) -> None:
        def model(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
            causal = torch.ones(33, 33, dtype=torch.bool).tril()
            return S(q, k, v, causal & padding[:, None, None])

        run(model, *qkv(), PADDINGS["left"], kernel=kernel)
        (decision,) = decisions()
        assert not decision.rewritten and codes(decision, kernel) == {"mask"}
        assert "key_padding alone, which is read as a number of keys" in str(decision.rejections(kernel)[0])

    def test_another_padding_for_each_head(self) -> None:
        seen = torch.rand(2, 4, 1, 33) > 0.4
        assert refused("flash3", *qkv(), seen) == {"mask"}

    def test_with_dropout(self) -> None:
        for kernel in ("flash2", "native_flash"):
            assert refused(kernel, *qkv(), PADDINGS["left"][:, None, None], dropout_p=0.1) == {"dropout"}

    def test_on_amd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_all(monkeypatch, "mi300", {})
        assert refused("native_flash", *qkv(), PADDINGS["left"][:, None, None]) == {"mask"}

    @pytest.mark.parametrize(
        "how", ({"without": ("VARLEN",), "raw": True}, {"without": ("PAGEDKV",), "raw": True}, {"raw": False})
    )
    def test_a_build_without_lengths(self, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        flash_attn_3.install(monkeypatch, **how)
        pretend_all(monkeypatch, "h100", {FLASH_ATTN_3: "3.0.0"})
        assert refused("flash3", *qkv(), PADDINGS["left"][:, None, None]) == {"mask"}


def test_the_call_of_pytorchs_op_binds() -> None:
    names = [argument.name for argument in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    tensors, sizes = ["query", "key", "value", "cum_seq_q", "cum_seq_k"], ["max_q", "max_k"]
    assert names[:10] == [*tensors, *sizes, "dropout_p", "is_causal", "return_debug_mask"]
    assert {"scale", "seqused_k"} <= {*names[10:]}


class TestTrial:
    def test_it_is_tried_with_padding_and_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "1")
        assert_right("flash3", *qkv(), PADDINGS["left"][:, None, None])
        (validator,) = _validators.values()
        assert any("key_padding" in name for name in validator.told)

    def test_pytorchs_own_kernel_is_tried_for_padding_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "1")
        assert_right("native_flash", *qkv(), PADDINGS["left"][:, None, None])
        run(lambda q, k, v: S(q, k, v), *qkv(), kernel="native_flash")
        (validator,) = _validators.values()
        assert [("key_padding" in name) for name in validator.told] == [True]

    def test_pytorchs_own_kernel_may_fail_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "1")
        monkeypatch.setattr(native_flash, "variable_length", lambda q, *_, **__: (q,))
        assert refused("native_flash", *qkv(), PADDINGS["left"][:, None, None]) == {"unproved"}

    def test_a_library_that_ignores_lengths_is_caught(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "1")
        monkeypatch.setattr(flash_attn_3, "used", lambda seen, lengths, B: seen)
        assert refused("flash3", *qkv(), PADDINGS["left"][:, None, None]) == {"unproved"}
