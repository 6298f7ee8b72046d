"""Every op of ours on a GPU, against the rules of ``torch.library``: the real libraries, where they are installed.

On the CPU the same ops are checked with stand-ins, in the test file of each kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attnpass.emit.mask_blocks import band_blocks
from attnpass.emit.padding import in_order
from attnpass.kernels import flash3_pages
from attnpass.kernels.flash3_fp8 import LEAST, fp8_heads
from attnpass.kernels.registry import registry
from attnpass.machine.machine import Machine
from tests.helpers.compiled import qkv, skip_without

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

Checked = tuple[Any, tuple[Any, ...]]
CHECKS = {  # those that can be done, where not all can
    # without dropout flash-attn 2 leaves the state of random numbers as it finds it, so two runs are not equal
    "attnpass::flash2_train": ("test_schema", "test_autograd_registration", "test_faketensor"),
    # whether an operand was changed is asked with ``allclose``, which has no fp8
    "attnpass::flash3_fp8": ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
}
SCALE = 0.2
CAUSAL = (SCALE, -1, 0, 0.0)
UNBOUNDED = (SCALE, -1, -1, 0.0)
LENGTHS = torch.tensor([48, 0], dtype=torch.int32)  # of keys, in a batch of two


def bshd(**shape: Any) -> list[Tensor]:
    return [x.cuda().transpose(1, 2) for x in qkv(Sq=64, **shape)]


def leaves(*operands: Tensor) -> list[Tensor]:
    return [x.detach().requires_grad_() for x in operands]


def native_cudnn() -> Iterator[Checked]:
    ops = torch.ops.attnpass
    q, k, v = (x.cuda() for x in qkv(Hkv=2, Sk=48, Dv=32))
    bias = torch.randn(2, 4, 33, 48, device="cuda", dtype=q.dtype)
    for given in (None, bias):
        out, lse = ops.cudnn_attention(q, k, v, given, False, SCALE)
        yield ops.cudnn_attention_backward.default, (out, q, k, v, given, out, lse, False, SCALE)
        yield ops.cudnn_attention.default, (*leaves(q, k, v), given, False, SCALE)


def native_flash() -> Iterator[Checked]:
    q, k, v = bshd(Hkv=2)
    starts = torch.tensor([0, 64, 128], dtype=torch.int32, device="cuda")
    yield torch.ops.attnpass.native_flash_padded.default, (q, k, v, LENGTHS.cuda(), starts, starts, SCALE)


def flash2() -> Iterator[Checked]:
    ops, numbers = torch.ops.attnpass, (*CAUSAL, 0.0)
    q, k, v = bshd(Hkv=2)
    yield ops.flash2.default, (q, k, v, *numbers)
    yield ops.flash2_padded.default, (q, k, v, LENGTHS.cuda(), SCALE, 0.0)
    out, lse, rng_state = ops.flash2_train(q, k, v, *numbers)
    yield ops.flash2_backward.default, (out, q, k, v, out, lse, rng_state, *numbers)
    yield ops.flash2_train.default, (*leaves(q, k, v), *numbers)


def flash3() -> Iterator[Checked]:
    ops = torch.ops.attnpass
    q, k, v = bshd(Hkv=2)
    yield ops.flash3.default, (q, k, v, None, None, *CAUSAL)
    yield ops.flash3.default, (q, k, v, None, None, *CAUSAL, True)
    yield ops.flash3.default, (q, k, v, None, LENGTHS.cuda(), *UNBOUNDED)
    k, v = (x.repeat(1, 4, 1, 1) for x in (k, v))
    seen = torch.stack([torch.arange(256) < 200, torch.arange(256) % 3 > 0]).cuda()
    lengths = seen.sum(1, dtype=torch.int32)
    tables = flash3_pages.tables_of(in_order(seen, lengths), lengths, q.shape[1], flash3_pages.page_size(q.shape[-1]))
    yield ops.flash3_paged.default, (q, k, v, lengths, *tables, SCALE, 0.0, False)
    out, lse = ops.flash3_train(q, k, v, *CAUSAL)
    yield ops.flash3_train.default, (q, k, v, *CAUSAL)
    library = registry()["flash3"].limits.library
    if Machine.look(q.device, [library], [library]).has_built(library, "backward"):
        yield ops.flash3_backward.default, (out, q, k, v, out, lse, *CAUSAL)
        yield ops.flash3_train.default, (*leaves(q, k, v), *CAUSAL)


def flash3_fp8() -> Iterator[Checked]:
    q, k, v = bshd(Hkv=2)
    for lengths in (None, LENGTHS.cuda()):
        rounded, worth = zip(*[fp8_heads(x, 2, None, x is k, LEAST["q"]) for x in (q, k, v)], strict=True)
        yield torch.ops.attnpass.flash3_fp8.default, (*rounded, *worth, lengths, *UNBOUNDED[:3], True)


def flash4() -> Iterator[Checked]:
    ops = torch.ops.attnpass
    q, k, v = bshd(Hkv=2)
    yield ops.flash4.default, (q, k, v, None, None, *CAUSAL)
    yield ops.flash4.default, (q, k, v, None, LENGTHS.cuda(), *UNBOUNDED)
    lists = band_blocks(64, 64, None, 0, q.device)[:4]
    keys = torch.ones(2, 192, dtype=torch.int32, device=q.device)
    yield ops.flash4_masked.default, (q, k, v, *lists, keys, None, 0, SCALE, 0.0)
    out, lse = ops.flash4_train(q, k, v, *CAUSAL)
    yield ops.flash4_backward.default, (out, q, k, v, out, lse, *CAUSAL)
    yield ops.flash4_train.default, (*leaves(q, k, v), *CAUSAL)


def xformers() -> Iterator[Checked]:
    ops = torch.ops.attnpass
    q, k, v = bshd()
    bias = torch.randn(2, 4, 64, 64, device="cuda", dtype=q.dtype)
    for operator, given in (("flash", None), ("cutlass", bias)):
        numbers = (operator, False, SCALE)
        yield ops.xformers.default, (q, k[:, :, :2], v[:, :, :2], given, *numbers)
        out, lse = ops.xformers_train(q, k, v, given, *numbers)
        yield ops.xformers_backward.default, (out, q, k, v, given, out, lse, *numbers)
        yield ops.xformers_train.default, (*leaves(q, k, v), given, *numbers)


def sage() -> Iterator[Checked]:
    for q, k, v in (bshd(Hkv=2), bshd(Hkv=2, bshd=False)):
        yield torch.ops.attnpass.sage.default, (q, k, v, "sage", "NHD", False, SCALE)


def sage1() -> Iterator[Checked]:
    ops = torch.ops.attnpass
    for q, k, v in (bshd(), bshd(bshd=False)):
        (q, q_steps), (k, k_steps) = ops.int8_blocks(q, "NHD", 128, SCALE), ops.int8_blocks(k, "NHD", 64, 1.0)
        yield ops.sage1.default, (q, k, v.half(), q_steps, k_steps, "NHD", False, torch.bfloat16)


OPS = (native_cudnn, native_flash, flash2, flash3, flash3_fp8, flash4, xformers, sage, sage1)


@pytest.mark.parametrize("checked", OPS, ids=lambda function: function.__name__)
def test_opcheck_on_cuda(checked: Any) -> None:
    skip_without(registry()[checked.__name__].limits.library)
    for op, arguments in checked():
        more = {"test_utils": CHECKS[op._schema.name]} if op._schema.name in CHECKS else {}
        torch.library.opcheck(op, arguments, **more)
