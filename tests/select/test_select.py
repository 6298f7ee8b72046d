"""select, with machines that nobody here has: which kernel, and the exact reasons of those that refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnpass.errors import KernelUnavailableError, UnknownKernelError
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall, Context
from attnpass.ir.decision import Reason
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.machine import Machine
from attnpass.select.evidence import Learnt
from attnpass.select.select import select
from attnpass.select.wishes import check_policy, resolve_policy
from attnpass.settings.config import Config
from attnpass.settings.policy import Policy, parse

CUDA = torch.device("cuda", 0)


def spec(*shape: int, dtype: torch.dtype = torch.bfloat16, device: torch.device = CUDA) -> TensorSpec:
    stride, step = [], 1
    for size in reversed(shape):
        stride.insert(0, step)
        step *= size
    return TensorSpec(shape, tuple(stride), dtype, device)


def call(
    B: int = 2,
    H: int = 8,
    Hkv: int = 8,
    Sq: int = 128,
    Sk: int = 128,
    D: int = 64,
    Dv: int | None = None,
    **kwargs: object,
) -> AttentionCall:
    dtype, device = kwargs.pop("dtype", torch.bfloat16), kwargs.pop("device", CUDA)
    made = [
        spec(*shape, dtype=dtype, device=device) for shape in ((B, H, Sq, D), (B, Hkv, Sk, D), (B, Hkv, Sk, Dv or D))
    ]
    return AttentionCall(*made, out=spec(B, H, Sq, Dv or D, dtype=dtype, device=device), **kwargs)


LONG = {"B": 4, "H": 16, "Hkv": 16, "Sq": 2048, "Sk": 2048}  # enough work that the device decides, not the host


def causal(**kwargs: object) -> AttentionCall:
    return call(**{"mask": MaskSpec.causal(), **kwargs})


def masked(dtype: torch.dtype = torch.bool, shape: tuple[int, ...] = (2, 1, 1, 128), **kwargs: object) -> AttentionCall:
    return call(mask=MaskSpec.from_tensor(spec(*shape, dtype=dtype)), **kwargs)


def decide(attention: AttentionCall, machine: str | Machine, *wishes: str) -> tuple[str, str]:
    where = KNOWN_MACHINES[machine] if isinstance(machine, str) else machine
    decision = select(attention, registry(), where, Config(kernel=Policy(default=wishes or ("auto",))))
    return decision.kernel, decision.reason.value


def why_not(kernel: str, attention: AttentionCall, machine: str | Machine = "h100") -> list[str]:
    where = KNOWN_MACHINES[machine] if isinstance(machine, str) else machine
    return [
        str(r)
        for r in select(attention, registry(), where, Config(kernel=Policy(default=(kernel,)))).rejections(kernel)
    ]


@pytest.mark.parametrize(
    ("machine", "attention", "kernel"),
    [
        ("h100", call(**LONG), "native_cudnn"),
        ("h100", causal(**{**LONG, "Hkv": 4}, enable_gqa=True), "native_cudnn"),
        ("h100", call(**LONG, needs_grad=True), "native_cudnn"),
        ("h100", call(), "native_efficient"),  # so small that the host decides: 0.027 ms a launch, cuDNN's 0.042
        ("h100", call(D=60), "native_flash"),
        ("h100", call(dtype=torch.float32), "native_efficient"),
        ("h100", masked(shape=(4, 1, 1, 2048), **LONG), "flex"),
        ("h100", masked(needs_grad=True, Sq=192), "native_efficient"),
        ("h100", call(D=512), "native_efficient"),
        ("h100", call(scale=-1.0), "native_efficient"),
        ("b200", call(), "native_cudnn"),
        ("b200", call(D=256), "native_flash"),
        ("a100", call(), "native_flash"),
        ("a100", masked(), "native_efficient"),
        ("rtx4090", call(D=256, needs_grad=True, dropout_p=0.1), "native_efficient"),
        ("rtx4090", call(D=256), "native_flash"),
        ("rtx5090", call(), "native_flash"),
        ("t4", call(dtype=torch.float16), "native_efficient"),
        ("t4", call(dtype=torch.bfloat16), "native"),
    ],
)
def test_auto(machine: str, attention: AttentionCall, kernel: str) -> None:
    assert decide(attention, machine)[0] == kernel


@pytest.mark.parametrize("machine", ("mi300", "ascend", "tpu"))
def test_auto_leaves_unknown_ground_to_pytorch(machine: str) -> None:
    assert decide(call(), machine) == ("native", "auto")


def test_auto_on_cpu() -> None:
    assert decide(call(device=torch.device("cpu"), dtype=torch.float32), "cpu") == ("native_flash", "auto")


def test_the_first_wish_that_fits_wins() -> None:
    assert decide(masked(), "h100", "native_flash", "flex") == ("flex", "requested")
    assert decide(call(), "h100", "native_flash", "flex") == ("native_flash", "requested")
    assert decide(call(**LONG, D=8), "h100", "flex", "auto") == ("native_cudnn", "auto")
    assert decide(call(D=8), "h100", "flex") == ("native", "none_accepted")
    assert decide(call(), "h100", "native") == ("native", "requested")


@pytest.mark.parametrize(
    ("kernel", "attention", "reason"),
    [
        ("native_flash", causal(Sk=256), "length of q and k in a causal call is 128, 256, needs the same"),
        ("native_flash", masked(), "mask is a bool tensor, needs none, causal or key_padding"),
        ("native_flash", masked(torch.bfloat16), "mask is an additive bf16 tensor, needs none, causal or key_padding"),
        ("native_flash", call(D=320), "head_dim is 320, needs at most 256"),
        ("native_flash", call(Dv=32), "value head_dim is 32, needs head_dim, which is 64"),
        ("native_flash", call(dtype=torch.float32), "dtype is fp32, needs bf16 or fp16"),
        ("native_flash", call(scale=-0.5), "scale is -0.5, needs a positive number"),
        ("native_flash", call(Sk=0), "Sk is 0, needs at least 1"),
        ("native_cudnn", call(D=60), "head_dim is 60, needs a multiple of 8"),
        ("native_cudnn", call(Sk=1), "Sk is 1, needs at least 2"),
        ("native_cudnn", call(dropout_p=0.1), "dropout_p is 0.1, needs a multiple of 1/16"),
        (
            "native_cudnn",
            masked(needs_grad=True, Sq=192),
            "Sq is 192, needs Sq % 128 known not to be 64 in training with a mask, pytorch/pytorch#196678",
        ),
        ("flex", call(D=8), "head_dim is 8, needs at least 16"),
        ("flex", call(dropout_p=0.1), "dropout_p is 0.1, needs 0"),
        ("flex", call(context=Context(nested_in=("cond",))), "body of is cond, needs the graph's top level"),
        ("flex", masked(shape=(3, 1, 1, 128)), "mask size over B is 3, needs 1 or 2, known"),
        (
            "native_math",
            call(context=Context(functorch=("vmap", "grad"))),
            "transform around the call is vmap of grad, needs none",
        ),
        ("native_math", call(context=Context(subclass="DTensor")), "operand type is DTensor, needs a plain tensor"),
        ("native_cudnn", masked(torch.float32), "mask dtype is fp32, needs bool or bf16"),
        ("native_math", masked(mask_and_causal=True), "mask is a tensor beside is_causal=True, needs one of the two"),
        ("native_efficient", call(Hkv=3, enable_gqa=True), "number of heads is 8, needs a known multiple of Hkv, 3"),
        ("native_flash", call(Hkv=2), "enable_gqa is False, needs True for 8 heads on 2"),
    ],
)
def test_wording_of_refusals(kernel: str, attention: AttentionCall, reason: str) -> None:
    assert reason in why_not(kernel, attention)


def test_near_misses_are_taken() -> None:
    """The call beside each refusal: one step back and the kernel takes it."""
    assert not why_not("native_flash", causal())
    assert not why_not("native_flash", call(D=256))
    assert not why_not("native_flash", call(Hkv=1))
    assert not why_not("native_cudnn", call(Sk=2))
    assert not why_not("native_cudnn", call(dropout_p=0.125))
    assert not why_not("native_cudnn", masked(needs_grad=True))
    assert not why_not("native_cudnn", masked(Sq=192))
    assert not why_not("flex", call(D=16))


def test_all_reasons_are_collected() -> None:
    reasons = why_not("native_flash", masked(dtype=torch.bool, D=320, scale=-1.0, dropout_p=None))
    assert len(reasons) == 4


def test_alignment() -> None:
    attention = call()
    shifted = replace(attention, q=replace(attention.q, storage_offset=1))
    assert why_not("native_cudnn", shifted) == ["storage offset of q is 1, needs a multiple of 8"]
    ragged = replace(attention, k=replace(attention.k, stride=(8 * 128 * 65, 128 * 65, 65, 1)))
    assert any("stride of k is 65" in reason for reason in why_not("native_cudnn", ragged))
    turned = replace(attention, v=replace(attention.v, stride=(8 * 128 * 64, 128 * 64, 1, 128)))
    assert any(reason.startswith("last stride of v is 128") for reason in why_not("native_cudnn", turned))


def test_expanded_keys_of_efficient() -> None:
    attention = call(Sk=33)
    expanded = replace(attention, k=replace(attention.k, stride=(0, 33 * 64, 64, 1)))
    assert "pytorch/pytorch#191937" in why_not("native_efficient", expanded)[0]
    attention = call(Sk=32)
    assert not why_not("native_efficient", replace(attention, k=replace(attention.k, stride=(0, 32 * 64, 64, 1))))


def test_determinism_and_switches() -> None:
    h100 = KNOWN_MACHINES["h100"]
    deterministic = replace(h100, deterministic=True)
    assert why_not("native_cudnn", call(), deterministic) == [
        "torch.use_deterministic_algorithms is on, needs off for this kernel"
    ]
    assert decide(call(**LONG), deterministic)[0] == "native_flash"
    without_cudnn = replace(h100, sdp_enabled=frozenset({"flash", "efficient", "math"}))
    assert decide(call(**LONG), without_cudnn)[0] == "native_flash"
    assert decide(call(), replace(h100, sdp_enabled=frozenset({"math"}))) == ("native", "user_choice")
    assert decide(call(), replace(h100, sdp_enabled=frozenset({"flash"}))) == ("native", "user_choice")


def test_every_machine_has_an_answer_for_every_kernel() -> None:
    for machine in KNOWN_MACHINES.values():
        decision = select(call(), registry(), machine, Config())
        assert {answer.kernel for answer in decision.answers} == set(registry())
        for answer in decision.answers:
            assert all(str(reason) and reason.wanted for reason in answer.rejections)


def test_aliases_are_diffusers_names() -> None:
    names = ("_native_cudnn", "_native_flash", "_native_efficient", "_native_math")
    assert resolve_policy(Policy(default=names), registry()) == tuple(name[1:] for name in names)


def test_unknown_kernel() -> None:
    with pytest.raises(
        UnknownKernelError, match=r"ATTNPASS_KERNEL names 'flax', which is not a kernel, did you mean flex\?"
    ):
        resolve_policy(parse("flax"), registry())


@pytest.mark.parametrize(("versions", "found"), (({}, "not installed"), ({"torch": "2.4.1"}, "2.4.1")))
def test_missing_or_old_library(versions: dict[str, str], found: str) -> None:
    machine = replace(KNOWN_MACHINES["h100"], versions=versions)
    with pytest.raises(
        KernelUnavailableError, match=rf"whose library torch is {found} here, needs >= 2.9; run: pip install"
    ):
        check_policy(parse("flex"), registry(), machine)


def test_a_failed_verification_is_a_reason_like_any_other() -> None:
    from attnpass.ir.limits import Code, Rejection

    bad = Rejection(Code.VERIFY, "measured error", "0.4", "at most 0.01")
    decision = select(call(**LONG), registry(), KNOWN_MACHINES["h100"], Config(), Learnt({"native_cudnn": [bad]}))
    assert decision.kernel == "native_flash"
    assert decision.reason is Reason.AUTO
    assert decision.rejections("native_cudnn") == (bad,)
