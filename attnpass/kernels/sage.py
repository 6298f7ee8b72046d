"""sage: SageAttention 2, built from source (>= 2.1.1; PyPI has 1.0.6) (https://github.com/thu-ml/SageAttention).

Scores in int8, the product with V in fp16 or fp8: approximate, so taken only by name. `sage` is the entry point for the
GPU (the table of the library's own ``sageattn``); the others name one.

What the source says (``sageattention/core.py``, 2.2.0):

- all entry points take ``**kwargs`` and ignore them: ``sageattn(..., attn_mask=m)`` drops the mask;
- the Triton entry point adds a float mask in the log2 domain without the factor: masks are refused here altogether;
- the head dim is at most 128 and padded to 64 or 128; the value head dim has to be the same;
- causal is documented only for Sq == Sk;
- which GPUs are compiled in shows only as an AssertionError at the call; ``SM80_ENABLED`` and its like say it before;
- a negative scale turns the maximum, which is taken before the scale, into the minimum, and the weights overflow;
- ``smooth_k``, on by default, subtracts K's mean: off here, the graph does; there is no backward;
- its kernels are launched on the default stream, also while a CUDA graph is recorded on another: the graph does not
  hold them (a Flux-like model replayed with an error of 0.51), so Inductor keeps this op out of its graphs.

Met on an H200 (2.2.0, by bad luck with what lies in memory): NaN. `sage_fp16` reads values beyond the last key where Sk
is no multiple of 64 and multiplies them by 0; `sage_triton` reads one scale beyond the last key block of a causal call
where the number of blocks of 64 keys is odd. `sage_fp8_sm90` pads, and was always right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.emit.layout import either_layout, from_layout, multiple_of
from attnpass.emit.undecorated import undecorated_inside
from attnpass.graph.symbolic import known_multiple, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import SQUARE_ONLY, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.sage1 import EVEN_BLOCKS, KEY_BLOCK, has_even_blocks, without_mean
from attnpass.machine.library import Build, Library
from attnpass.machine.machine import Machine


def _read_build() -> Build:
    """Which binaries the build has; the Triton entry point needs none."""
    from sageattention import core

    return {name: bool(getattr(core, f"{name.upper()}_ENABLED", False)) for name in ("sm80", "sm89", "sm90")}


SAGE = Library(
    "sageattention",
    "2.1.1",
    modules=("sageattention", "sageattention.core"),
    build=_read_build,
    install="python setup.py install in github.com/thu-ml/SageAttention, or ATTNPASS_KERNEL=sage1 with PyPI's 1.0.6",
)


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One function of the library.

    Attributes:
        function: its name.
        binary: the part of the build that it needs; "" for none (Triton).
        gpus: GPU generations that it runs on.
        options: arguments that ``sageattn`` gives it.
    """

    function: str
    binary: str
    gpus: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


UP_TO_HOPPER = ("sm_80", "sm_86", "sm_89", "sm_90")
TRITON = EntryPoint("sageattn_qk_int8_pv_fp16_triton", "", UP_TO_HOPPER)
FP16 = EntryPoint("sageattn_qk_int8_pv_fp16_cuda", "sm80", UP_TO_HOPPER, {"pv_accum_dtype": "fp32"})
FP8 = EntryPoint("sageattn_qk_int8_pv_fp8_cuda", "sm89", ("sm_89",), {"pv_accum_dtype": "fp32+fp16"})
FP8_120 = replace(FP8, gpus=("sm_120", "sm_121"), options={**FP8.options, "qk_quant_gran": "per_warp"})
FP8_90 = EntryPoint("sageattn_qk_int8_pv_fp8_cuda_sm90", "sm90", ("sm_90",), {"pv_accum_dtype": "fp32+fp32"})
BY_GPU = {
    "sm_80": FP16,
    "sm_86": TRITON,
    "sm_89": FP8,
    "sm_90": FP8_90,
    "sm_120": FP8_120,
    "sm_121": FP8_120,
}

FP8_ERROR = 0.05  # 0.041 at most on an H200; the fp16 entry points 0.014
LIMITS = Limits(
    devices=frozenset({"cuda"}),
    capabilities=("sm_80", "sm_121"),
    library=SAGE,
    head_dim_max=128,
    head_dim_padding=64,
    gqa=True,
    terms=frozenset({Term.CAUSAL}),
    alignments=SQUARE_ONLY,
    positive_scale=True,
    backward=False,
    vmap=True,
    row_alignment=16,
    exact=False,
    relative_error=FP8_ERROR,
)


class SageKernel(Kernel):
    """What all entry points share."""

    limits = LIMITS
    entries: tuple[EntryPoint, ...] = ()

    def entry(self, capability: str) -> EntryPoint | None:
        """The function that this kernel calls on a GPU of this generation."""
        return next((entry for entry in self.entries if capability in entry.gpus), None)

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        entry = self.entry(machine.capability)
        if entry is None:
            gpus = sorted({gpu for entry in self.entries for gpu in entry.gpus})
            yield Rejection(Code.CAPABILITY, "GPU", machine.capability or "unknown", f"one of {', '.join(gpus)}")
        elif entry.binary and not machine.has_built(SAGE, entry.binary):
            yield Rejection(
                Code.LIBRARY, "this build of sageattention", f"without {entry.binary}", f"{entry.binary} built"
            )
        elif entry.binary == "sm80" and not known_multiple(call.Sk, KEY_BLOCK):
            yield Rejection(Code.KNOWN_BUG, "Sk", shown(call.Sk), f"a known multiple of {KEY_BLOCK} (NaN else)")
        elif not entry.binary and call.is_causal and not has_even_blocks(call.Sk):
            yield Rejection(Code.KNOWN_BUG, "Sk of a causal call", shown(call.Sk), EVEN_BLOCKS)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        layout, q, k, v = either_layout(emitter, args, multiple_of(64, call.D))
        smooth = without_mean(emitter, k, layout)
        out = _attention.emit(emitter, call, q, smooth, v, self.name, layout, call.is_causal, args.scale)
        return from_layout(emitter, out, layout, call.Dv)


class Sage(SageKernel):
    """The best entry point for the GPU."""

    name = "sage"
    title = "SageAttention 2, the entry point that suits the GPU"
    aliases = ("sage2", "sage_varlen")
    entries = tuple(replace(entry, gpus=(gpu,)) for gpu, entry in BY_GPU.items())


class SageTriton(SageKernel):
    """Needs no binary: any GPU that Triton compiles for."""

    name = "sage_triton"
    title = "SageAttention 2 (int8 scores, fp16 values, Triton)"
    aliases = ("_sage_qk_int8_pv_fp16_triton",)
    entries = (TRITON,)


class SageFp16(SageKernel):
    """The most exact entry point, for Ampere and newer."""

    name = "sage_fp16"
    title = "SageAttention 2 (int8 scores, fp16 values)"
    aliases = ("_sage_qk_int8_pv_fp16_cuda",)
    entries = (FP16,)


class SageFp8(SageKernel):
    """For Ada and consumer Blackwell."""

    name = "sage_fp8"
    title = "SageAttention 2 (int8 scores, fp8 values)"
    aliases = ("_sage_qk_int8_pv_fp8_cuda",)
    entries = (FP8, FP8_120)


class SageFp8Sm90(SageKernel):
    """For Hopper."""

    name = "sage_fp8_sm90"
    title = "SageAttention 2 for Hopper (int8 scores, fp8 values)"
    aliases = ("_sage_qk_int8_pv_fp8_cuda_sm90",)
    entries = (FP8_90,)


KERNELS = {kernel.name: kernel for kernel in (Sage(), SageTriton(), SageFp16(), SageFp8(), SageFp8Sm90())}


@cache
def _function(kernel: str, device: torch.device) -> tuple[Any, Mapping[str, Any]]:
    """The library's function on this device, and its options."""
    import sageattention

    entry = KERNELS[kernel].entry("sm_{}{}".format(*torch.cuda.get_device_capability(device)))
    assert entry is not None, f"{kernel} was chosen for a GPU that it does not run on"
    return undecorated_inside(getattr(sageattention, entry.function)), {**entry.options, "smooth_k": False}


def _forward(q: Tensor, k: Tensor, v: Tensor, kernel: str, layout: str, is_causal: bool, scale: float) -> Tensor:
    """(B, Sq, H, D), twice (B, Sk, Hkv, D) -> (B, Sq, H, D), contiguous; "HND" is BHSD. K is best `without_mean`."""
    function, options = _function(kernel, q.device)
    if _is_on_default_stream(q.device):
        out: Tensor = function(q=q, k=k, v=v, tensor_layout=layout, is_causal=is_causal, sm_scale=scale, **options)
        return out
    with on_default_stream(q, k, v) as keep:
        out = function(q=q, k=k, v=v, tensor_layout=layout, is_causal=is_causal, sm_scale=scale, **options)
        keep(out)
    return out


def _is_on_default_stream(device: torch.device) -> bool:
    """Is there nothing to do? Asked at each call, so by the stream's handle and without stream objects."""
    return device.type != "cuda" or torch._C._cuda_getCurrentRawStream(device.index) == 0


@contextmanager
def on_default_stream(*operands: Tensor) -> Iterator[Callable[[Tensor], None]]:
    """Run on the device's default stream, in order with the current one, which is another.

    The library launches its kernels there whatever the current stream is (``<<<grid, block>>>`` in ``csrc/``), and
    PyTorch's other streams do not wait for it.
    """
    if _is_on_default_stream(device := operands[0].device):
        yield lambda _: None
        return
    current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(current)
    with torch.cuda.stream(default):
        for operand in operands:
            operand.record_stream(default)
        yield lambda out: out.record_stream(current)
    current.wait_stream(default)


_attention = ops.attention(
    "sage(Tensor q, Tensor k, Tensor v, str kernel, str layout, bool is_causal, float scale)",
    _forward,
    vmap=True,
    graphs=False,
)
