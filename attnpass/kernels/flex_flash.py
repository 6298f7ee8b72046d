"""flex_flash: FlexAttention's graph on FlashAttention-4's kernels, compiled by Inductor to CuTe DSL.

Since PyTorch 2.11 the option ``BACKEND="FLASH"`` of FlexAttention (``torch/_inductor/kernel/flex/
flex_flash_attention.py``) makes a mask function for ``flash-attn-4`` of the same graph that it makes Triton code of
otherwise. So masks that are no rule (padding beside causal, packed documents, chunks) run at the speed of Hopper's
matrix units: causal & key_padding, B2 H32 Hkv8 S4096 D128, took 0.51 ms, with Triton's code 0.76 ms, and without
padding 0.43 ms with `flash3` (H100, torch 2.11, flash-attn-4 4.0.0b36).

What the sources say (PyTorch 2.11 and 2.13; ``flash_attn/cute/interface.py``, 4.0.0b36):

- a block of the mask must be as wide as a tile of the kernel: 128 keys, which holds up to head dim 128 on sm_90; on
  sm_10x a block is 256 queries high, which nobody ran here;
- the lists must have as many blocks as the lengths say, so lengths have to be numbers;
- a mask that hides nothing goes without lists, which `flash4` does as well; captured numbers must not be symbolic.

It is another program than either library alone, so it proves itself first, as compiled (`attnpass.probe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch.nn.attention import flex_attention as flex

from attnpass.call import AttentionCall
from attnpass.kernels.flash4 import FLASH_ATTN_4
from attnpass.kernels.flex import Flex
from attnpass.limits import HALF, Code, Limits, Rejection
from attnpass.machine import Machine
from attnpass.symbolic import as_int, shown

HAS_BACKENDS = "BACKEND" in getattr(getattr(flex, "FlexKernelOptions", None), "__annotations__", {})


class FlexFlash(Flex):
    """FlexAttention on FlashAttention-4: masks that are read from data, in inference, on Hopper."""

    name = "flex_flash"
    title = "FlexAttention on FlashAttention-4's kernels (flash-attn-4)"
    aliases: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Limits] = replace(
        Flex.limits,
        devices=frozenset({"cuda"}),
        capabilities=("sm_90", "sm_90"),
        library=FLASH_ATTN_4,
        dtypes=HALF,
        head_dim_max=128,
        head_dim_multiple=8,
        value_dim_may_differ=False,
        mask_tensor=False,
        softcap=False,
        positive_scale=True,
        backward=False,
        row_alignment=16,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        yield from super().check(call, machine)
        if not HAS_BACKENDS:
            yield Rejection(Code.LIBRARY, "torch", torch.__version__, "FlexAttention with the option BACKEND")
        if call.mask.spelled is None and not call.mask.terms:
            yield Rejection(Code.MASK, "mask", str(call.mask), "one that hides something; flash4 takes the others")
        if call.mask.bias is not None:
            yield Rejection(Code.MASK, "mask", "a bias beside the rules", "rules")
        for name, size in (("Sq", call.Sq), ("Sk", call.Sk)):
            if as_int(size) is None:
                yield Rejection(Code.DYNAMIC, name, shown(size), "a number")

    def options(self, call: AttentionCall) -> dict[str, Any]:
        return {"BACKEND": "FLASH"}
