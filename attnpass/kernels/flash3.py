"""flash3: FlashAttention-3 for Hopper (https://github.com/Dao-AILab/flash-attention, ``hopper/``).

It comes under several distributions with different things compiled in; ``flash_attn_config`` in the build says which.
What the source says (``hopper/flash_attn_interface.py``, ``flash_api.cpp``):

- the host checks only that the GPU is sm_80 or newer, and sends everything from sm_90 on to code for sm_90a, so newer
  GPUs have no kernel image: sm_90 only;
- the fourth positional argument is the scale, where FlashAttention-2 has dropout_p: keywords only;
- causal and windows are bottom-right; there is no dropout and no mask tensor;
- a negative scale turns the maximum, taken before the scale, into the minimum: the weights overflow;
- a head dim that is no multiple of 8 is an error (FlashAttention-2 pads; here the graph does);
- Dv != D passes the host's checks even if its kernels are not compiled in: refused;
- its own op's autograd is wrong for causal calls (25 gradients for 26 arguments), so it is not used;
- ``seqused_k`` of its C++ op is how many keys of each example are read, and none gives 0; ``page_table`` says where
  they lie;
- its Python functions make two empty tensors a call on the GPU, and go through an autograd function and a
  ``custom_op``: its C++ op is called where it takes our arguments by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attnpass.emit import ops
from attnpass.emit.emitter import Emitted, Emitter, Operands
from attnpass.emit.layout import bhsd, bshd, multiple_of
from attnpass.emit.padding import by_order
from attnpass.emit.undecorated import undecorated
from attnpass.graph.symbolic import known, shown
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import BOTTOM_RIGHT, Code, Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels import flash3_pages
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import Build, Library
from attnpass.machine.machine import Machine

HEAD_DIMS = (64, 96, 128, 192, 256)  # of which a build has some


def _read_build() -> Build:
    """What ``setup.py`` wrote beside the binary, as features; an old build without the file has everything."""
    import flash_attn_interface

    try:
        from flash_attn_config import CONFIG
    except ImportError:
        flags: dict[str, bool] = {}
    else:
        flags = CONFIG["build_flags"]
    names = ("VARLEN", "PAGEDKV", "BACKWARD", "SOFTCAP", "LOCAL", "FP16", "FP8", *(f"HDIM{size}" for size in HEAD_DIMS))
    build = {name.lower(): not flags.get(f"FLASHATTENTION_DISABLE_{name}", False) for name in names}
    _, arguments = _raw_op(flash_attn_interface)
    return {
        **build,
        "fp8": build["fp8"] and _takes("q_descale"),
        "sinks": _takes("sinks"),
        "lengths": build["varlen"] and build["pagedkv"] and arguments >= flash3_pages.ARGUMENTS,
    }


def _takes(argument: str) -> bool:
    """Does the library's function take this argument?"""
    import flash_attn_interface

    return argument in inspect.signature(flash_attn_interface.flash_attn_func).parameters


FLASH_ATTN_3 = Library(
    "flash-attn-3",
    modules=("flash_attn_3._C", "flash_attn_interface"),
    also=("flash_attn_3", "tokenspeed-fa3", "flash-attn-hopper"),
    build=_read_build,
    install="pip install tokenspeed-fa3 (forward only), or build hopper/ of Dao-AILab/flash-attention",
)


class Flash3(Kernel):
    """FlashAttention-3: the fastest forward on an H100 at long sequences and at head dim 256."""

    name = "flash3"
    stores_as_asked = True
    title = "FlashAttention-3 for Hopper (flash_attn_interface)"
    aliases = ("_flash_3", "_flash_varlen_3", "flash_attention_3")
    limits = Limits(
        devices=frozenset({"cuda"}),
        capabilities=("sm_90", "sm_90"),
        library=FLASH_ATTN_3,
        head_dim_max=256,
        head_dim_padding=8,
        gqa=True,
        terms=frozenset({Term.CAUSAL, Term.WINDOW, Term.KEY_PADDING}),
        padding_by_length=True,
        alignments=BOTTOM_RIGHT,
        positive_scale=True,
        softcap=True,
        sinks=True,
        log_sum_exp=True,
        vmap=True,
        row_alignment=16,
    )

    def limits_for(self, machine: Machine) -> Limits:
        def built(feature: str) -> bool:
            return machine.has_built(FLASH_ATTN_3, feature)

        return replace(
            with_terms_built(self.limits, machine),
            backward=built("backward"),
            softcap=built("softcap"),
            sinks=built("sinks"),
            dtypes=self.limits.dtypes if built("fp16") else frozenset({torch.bfloat16}),
        )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        yield from head_dim_not_built(call, machine)
        if call.needs_grad and machine.deterministic and not known(call.D < 256):
            yield Rejection(Code.DETERMINISTIC, "head_dim", shown(call.D), "below 256 for a deterministic backward")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        args, lengths, order = by_order(emitter, call, args)
        q, k, v = bshd(emitter, args, multiple_of(8, call.D))
        numbers = (args.scale, *call.mask.band(), call.softcap or 0.0)
        if lengths is not None and order is not None:
            out = flash3_pages.emit(emitter, (q, k, v), order, lengths, (args.scale, numbers[-1]), args.heads_first)
            return bhsd(emitter, out, call.Dv)
        own, behind = None, args.sinks
        if args.sinks is not None and not call.needs_grad and _takes("sinks"):
            own, behind = emitter.cast(args.sinks, torch.bfloat16), None
        operands = (q, k, v, own, lengths, *numbers, args.heads_first)
        return bhsd(emitter, _attention.emit_more(emitter, call, *operands, sinks=behind), call.Dv)


def with_terms_built(limits: Limits, machine: Machine) -> Limits:
    """``limits`` with the masks that this build computes."""
    needed = {Term.WINDOW: "local", Term.KEY_PADDING: "lengths"}
    missing = {term for term, feature in needed.items() if not machine.has_built(FLASH_ATTN_3, feature)}
    return replace(limits, padding_by_length=Term.KEY_PADDING not in missing, terms=limits.terms - missing)


def head_dim_not_built(call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
    """Is the head dim larger than all that this build has?"""
    sizes = [size for size in HEAD_DIMS if machine.has_built(FLASH_ATTN_3, f"hdim{size}")]
    if not any(known(size >= call.D) for size in sizes):
        yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), f"at most {max(sizes, default=0)} in this build")


@cache
def _raw_op(library: Any) -> tuple[Any, frozenset[str]]:
    """The library's C++ op and the names of its arguments; None and no names in a distribution without it."""
    op = getattr(getattr(getattr(library, "flash_attn_3_gpu", None), "fwd", None), "default", None)
    return op, frozenset() if op is None else frozenset(argument.name for argument in op._schema.arguments)


def _forward(operands: dict[str, Tensor], lse: bool, scale: float, left: int, right: int, softcap: float) -> Any:
    """The output, alone or as the first of several; ``lse`` asks for the log-sum-exp as the second.

    ``operands["out"]``, if the C++ op takes it, is where the output is written.
    """
    import flash_attn_interface

    causal = left < 0 and right == 0
    splits = flash3_pages.splits(operands["q"])
    given = {**operands, "softmax_scale": scale, "softcap": softcap, "num_splits": splits}
    raw = {**given, "is_causal": causal, "window_size_left": left, "window_size_right": right}
    op, names = _raw_op(flash_attn_interface)
    if names.issuperset(raw):
        return op(**raw)
    given.pop("out", None)
    more = {"return_attn_probs": True} if lse else {}
    return flash_attn_interface.flash_attn_func(**given, causal=causal, window_size=(left, right), **more)


def attend(given: dict[str, Any], heads_first: bool, *numbers: Any) -> Tensor:
    """The output (B, Sq, H, D), stored so or, ``heads_first``, as BHSD.

    The library writes into any tensor whose last stride is 1.

    Args:
        given: the library's arguments that are tensors, by name; q, k and v are BSHD.
        heads_first: how the output is stored.
        numbers: the scale, the window to the left and to the right (-1 for no bound), and the softcap (0 for none).
    """
    stored = flash3_pages.empty_output(given["q"], heads_first=True) if heads_first else None
    found = _forward({name: x for name, x in {**given, "out": stored}.items() if x is not None}, False, *numbers)
    out: Tensor = found if isinstance(found, Tensor) else found[0]
    if stored is None or out.data_ptr() == stored.data_ptr():
        return out if stored is None else stored
    return stored.copy_(out)  # a distribution that cannot write there


def _infer(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    lengths: Tensor | None,
    scale: float,
    left: int,
    right: int,
    softcap: float,
    heads_first: bool = False,
) -> Tensor:
    """As `attend`; ``lengths``: (B,) int32, how many keys are read."""
    given = {"q": q, "k": k, "v": v, "sinks": sinks, "seqused_k": lengths}
    return attend(given, heads_first, scale, left, right, softcap)


def output(q: Tensor, *rest: Any) -> Tensor:
    """The fake of `attend`'s output, from an op's arguments of which ``heads_first`` is the last."""
    return flash3_pages.empty_output(q, heads_first=rest[-1] is True)


def _train(q: Tensor, k: Tensor, v: Tensor, *numbers: Any) -> tuple[Tensor, Tensor]:
    """The output and its log-sum-exp, (B, H, Sq) in fp32."""
    out, lse, *_ = _forward({"q": q, "k": k, "v": v}, True, *numbers)
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *numbers: Any
) -> tuple[Tensor, Tensor, Tensor]:
    import flash_attn_interface

    scale, left, right, softcap = numbers
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    undecorated(flash_attn_interface._flash_attn_backward)(
        dout=ops.aligned(grad),
        q=q,
        k=k,
        v=v,
        out=out,
        softmax_lse=lse,
        dq=dq,
        dk=dk,
        dv=dv,
        softmax_scale=scale,
        is_causal=left < 0 and right == 0,
        window_size_left=left,
        window_size_right=right,
        softcap=softcap,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return dq, dk, dv


_attention = ops.attention(
    "flash3(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? lengths, "
    "float scale, SymInt left, SymInt right, float softcap, bool heads_first=False)",
    _infer,
    _train,
    _backward,
    output=output,
    gradients=ops.gradients_like_operands,
    inference_only=("sinks", "lengths", "heads_first"),
    vmap=True,
)
