"""FLOP counters count our ops as they count PyTorch's attention."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import attnpass
from attnpass.emit import ops
from attnpass.kernels.flash2 import FLASH_ATTN
from tests.helpers.compiled import run
from tests.standins import flash_attn_2, pretend_all

S = F.scaled_dot_product_attention
aten = torch.ops.aten
WITHOUT_ATTENTION = {"fixed_layout", "fixed_layouts", "int8_blocks", "own_buffers"}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def arguments(op: OpOverload, layout: str, B: int, H: int, Hkv: int, Sq: int, Sk: int, D: int, Dv: int) -> list[Any]:
    """Something for every argument: q, k, v and grad in the op's layout."""

    def operand(heads: int, length: int, size: int) -> Tensor:
        return meta(B, heads, length, size) if layout == "BHSD" else meta(B, length, heads, size)

    made: dict[str, Any] = {
        "q": operand(H, Sq, D),
        "k": operand(Hkv, Sk, D),
        "v": operand(Hkv, Sk, Dv),
        "grad": operand(H, Sq, Dv),
        "layout": "HND" if layout == "BHSD" else "NHD",
    }
    by_type = {"Tensor": meta(1), "float": 0.5, "int": 1, "bool": False, "str": "flash"}
    return [made.get(a.name, by_type.get(str(a.type))) for a in op._schema.arguments]


def counted(op: OpOverload, *given: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        op(*given)
    return int(counter.get_total_flops())


class TestFlops:
    @pytest.mark.parametrize("op", ops.attention_ops(), ids=lambda op: op._schema.name.partition("::")[2])
    @pytest.mark.parametrize(
        "shape",
        ((2, 8, 8, 64, 64, 32, 32), (3, 8, 2, 64, 48, 32, 16), (1, 6, 1, 1, 80, 16, 16)),
        ids=("square", "grouped", "decode"),
    )
    def test_as_pytorch_counts(self, op: OpOverload, shape: tuple[int, ...]) -> None:
        attnpass.ops_to_save()
        B, H, _Hkv, Sq, Sk, D, Dv = shape
        q, k, v, grad = (B, H, Sq, D), (B, H, Sk, D), (B, H, Sk, Dv), (B, H, Sq, Dv)  # PyTorch 2.9 counts no groups
        backward = str(op).endswith("_backward.default")
        flash = aten._scaled_dot_product_flash_attention
        formula = flop_registry[aten._scaled_dot_product_flash_attention_backward if backward else flash]
        wanted = formula(grad, q, k, v) if backward else formula(q, k, v)
        either = any(argument.name == "layout" for argument in op._schema.arguments)
        layouts = ("BSHD", "BHSD") if either else (ops.attention_ops()[op],)
        for layout in layouts:
            given = arguments(op, layout, *shape)
            assert counted(op, *given) == wanted
            named = {argument.name: value for argument, value in zip(op._schema.arguments, given, strict=True)}
            assert flop_registry[op.overloadpacket](**named) == wanted

    def test_of_a_training_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPASS_PROBE", "0")
        flash_attn_2.install(monkeypatch)
        pretend_all(monkeypatch, "h100", {FLASH_ATTN: "2.8.3"})
        x = torch.randn(2, 4, 32, 16, dtype=torch.bfloat16, requires_grad=True)
        run(lambda x: S(x, x, x), x, kernel="flash2")  # a compilation is enough to know the formulas
        with FlopCounterMode(display=False) as counter:
            torch.ops.attnpass.flash2_train(*[x.transpose(1, 2)] * 3, 0.5, -1, 0, 0.0, 0.0)[0].sum().backward()
        product = 2 * 2 * 4 * 32 * 32 * 16
        assert dict(counter.get_flop_counts()["Global"]) == {
            torch.ops.attnpass.flash2_train: 2 * product,
            torch.ops.attnpass.flash2_backward: 5 * product,
        }

    def test_of_symbols(self) -> None:
        """Counting must not make numbers of them."""
        shapes = ShapeEnv()
        symbolic = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 4)
        q = FakeTensorMode(shape_env=shapes).from_tensor(torch.empty(2, 32, 4, 16), symbolic_context=symbolic)
        attnpass.ops_to_save()
        counted = flop_registry[torch.ops.attnpass.flash2](q, q, q, 0.5, -1, -1, 0.0, 0.0)
        assert isinstance(counted, torch.SymInt) and not shapes.guards

    def test_of_cudnn_training(self) -> None:
        q = meta(2, 4, 32, 16).requires_grad_()
        attnpass.ops_to_save()
        with FlopCounterMode(display=False) as counter:
            torch.ops.attnpass.cudnn_attention(q, q, q, None, True, 0.2)[0].sum().backward()
        assert counter.get_total_flops() == 7 * 2 * 2 * 4 * 32 * 32 * 16

    @pytest.mark.parametrize("name", ("native_flash", "native_efficient", "flash2"))
    def test_with_sinks_as_without(self, name: str) -> None:
        """On the meta device, where gradients have fakes too: two products forward, five backward."""
        q = meta(2, 4, 32, 16).requires_grad_()
        more = {"native_efficient": (None, False, 0.2), "flash2": (0.2, -1, 0, 0.0, 0.0)}.get(name, (False, 0.2))
        op = getattr(torch.ops.attnpass, f"{name}_sunk")
        attnpass.ops_to_save()
        operands = [q.transpose(1, 2) if name == "flash2" else q] * 3
        with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
            op(meta(4).requires_grad_(), *operands, *more).sum().backward()
        assert counter.get_total_flops() == 7 * 2 * 2 * 4 * 32 * 32 * 16

    def test_no_op_is_forgotten(self) -> None:
        named = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if "attnpass::" in name}
        known = {op._schema.name.partition("::")[2] for op in ops.attention_ops()}
        composed = {"cudnn_attention", "fp8_heads", "fixed_layout_learned"}  # of PyTorch's op, which is counted
        composed |= {name for name in named if name.endswith("_sunk")}  # of ops that are counted
        debugging = {"verify"}
        assert named - known - composed - debugging == WITHOUT_ATTENTION

    def test_importing_attnpass_does_not_import_the_counter(self) -> None:
        code = "import sys, attnpass; print('torch.utils.flop_counter' in sys.modules, 'triton' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["False", "False"]
