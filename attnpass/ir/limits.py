"""A kernel's constraints as data, and the form of a refusal.

Four things are printed from `Limits`: the checks of `attnpass.select.checks`, the support table of the docs, ``attnpass
kernels`` and the generated conformance tests. A refusal is never a bare False: it is a `Rejection` with the value that
was met and the value that is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch

from attnpass.ir.mask import Term
from attnpass.machine.library import PYTORCH, Library


class Code(str, Enum):
    """Why a kernel was refused. The docs have one heading per code; hints link there."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Code:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    LIBRARY = ("library", "The kernel's library is not installed, too old, or cannot be imported.")
    DEVICE = ("device", "The kernel does not run on this kind of device.")
    CAPABILITY = ("capability", "The kernel does not run on this GPU generation.")
    DISABLED = ("disabled", "This PyTorch kernel is switched off in your program.")
    DTYPE = ("dtype", "The kernel does not compute in this dtype, or q, k and v have different ones.")
    RANK = ("rank", "The tensors have more than 4 dimensions, or different numbers of them.")
    HEAD_DIM = ("head_dim", "The kernel has no code for this head dim.")
    VALUE_DIM = ("value_dim", "V has another head dim than q and k, and the kernel wants the same.")
    BROADCAST = ("broadcast", "Batch or head sizes differ and PyTorch would broadcast them; the kernel would not.")
    GQA = ("gqa", "There are fewer key/value heads than query heads, in a way that the kernel does not take.")
    LENGTH = ("length", "The kernel does not take these sequence lengths.")
    MASK = ("mask", "The kernel does not take this kind of mask.")
    MASK_AND_CAUSAL = ("mask_and_causal", "A mask and is_causal=True together: PyTorch leaves the meaning undefined.")
    MASK_DTYPE = ("mask_dtype", "The mask's dtype is not one that the kernel reads.")
    MASK_SHAPE = ("mask_shape", "The mask's shape is not known well enough to hand it to the kernel.")
    MASK_GRAD = ("mask_grad", "Gradients flow into the mask, and the kernel computes none for it.")
    CAUSAL_ALIGNMENT = ("causal_alignment", "is_causal is top-left; the kernel aligns it elsewhere when Sq != Sk.")
    EMPTY_ROWS = ("empty_rows", "A query may see no key at all, and the kernel does not give 0 for such a row.")
    SCALE = ("scale", "The kernel does not take this softmax scale.")
    SOFTCAP = ("softcap", "The kernel has no softcap.")
    DROPOUT = ("dropout", "The kernel does not drop out attention weights, or not with this probability.")
    BACKWARD = ("backward", "Gradients flow through this call and the kernel has no backward.")
    DETERMINISTIC = ("deterministic", "torch.use_deterministic_algorithms is on and the kernel is not deterministic.")
    STRIDES = ("strides", "The kernel reads tensors of this layout wrongly or not at all.")
    ALIGNMENT = ("alignment", "The kernel's vector loads need aligned rows, and these are not (known to be) aligned.")
    DYNAMIC = ("dynamic", "A size is symbolic and the kernel's rule about it cannot be proved.")
    FUNCTORCH = ("functorch", "The call stands inside vmap, grad or jvp, where kernels are not proved right.")
    AUTOCAST = ("autocast", "Autocast is on at this place in a way that the kernel does not follow.")
    SUBCLASS = ("subclass", "An operand is a tensor subclass (DTensor, nested, ...).")
    NESTED = ("nested", "The call stands in the body of a higher-order op that cannot hold this kernel.")
    KNOWN_BUG = ("known_bug", "A known bug of the kernel would be met here.")
    OUTPUT_LAYOUT = ("output_layout", "The kernel's output cannot be given the strides that the program expects.")
    VERIFY = ("verify", "ATTNPASS_VERIFY compared this call with the reference and found it off.")
    SINKS = ("sinks", "The call has attention sinks and the kernel does not take them.")
    LOG_SUM_EXP = ("log_sum_exp", "The program reads the log-sum-exp beside the output, which is not given so.")
    UNPROVED = ("unproved", "The kernel was tried here on random data of this kind of call, and was wrong.")


@dataclass(frozen=True, slots=True)
class Rejection:
    """One reason why one kernel does not take one call.

    >>> str(Rejection(Code.HEAD_DIM, "head_dim", 80, "64, 96 or 128"))
    'head_dim is 80, needs 64, 96 or 128'
    """

    code: Code
    field: str
    actual: object
    wanted: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.field} is {self.actual}, needs {self.wanted}"
        return f"{text} ({self.hint})" if self.hint else text


HALF = frozenset({torch.float16, torch.bfloat16})
FLOATS = HALF | {torch.float32}
ALL_FLOATS = FLOATS | {torch.float64}


class Alignment(Enum):
    """Where the diagonal of a causal mask or window starts when Sq != Sk."""

    TOP_LEFT = "top-left"  # q 0 sees k 0: PyTorch's is_causal
    BOTTOM_RIGHT = "bottom-right"  # the last q sees the last k: most libraries


SQUARE_ONLY: frozenset[Alignment] = frozenset()
TOP_LEFT = frozenset({Alignment.TOP_LEFT})
BOTTOM_RIGHT = frozenset({Alignment.BOTTOM_RIGHT})


@dataclass(frozen=True, slots=True)
class Limits:
    """What a kernel can take. Every field is a promise that the conformance tests hold it to.

    Attributes:
        devices: kinds of machine: ``cuda`` (NVIDIA), ``rocm``, ``cpu``, ``npu``, ``tpu``, ``xpu``, ``mps``.
        capabilities: inclusive range of NVIDIA generations such as ``("sm_80", "sm_121")``; None for no bound.
        gfx: AMD generations, such as ``{"gfx942"}``; None for no bound.
        library: the distribution that provides the kernel, and the versions of it that work.
        dtypes: dtypes of q, k and v.
        queries_max: longest Sq; None for no bound.
        head_dim_max: largest head dim; None for no bound.
        head_dim_min: smallest head dim.
        head_dim_multiple: head dims are multiples of this.
        head_dim_padding: the head dim is zero-padded to the next multiple of this in the graph, which also aligns it.
        head_dim_may_be_symbolic: is a head dim that is no number (``dynamic=True`` on bare tensors) taken?
        value_dim_may_differ: may Dv differ from D?
        gqa: may Hkv be smaller than H (and divide it)?
        broadcasts: does the kernel broadcast batch and head sizes as PyTorch does?
        terms: mask terms that it computes by itself.
        padding_by_length: does it take KEY_PADDING as a number of keys (`attnpass.emit.padding`)? Then, unless
            `padding_beside_rules`, only where that is the whole mask; without sinks or dropout, and in inference. Off
            wherever `terms` lacks KEY_PADDING.
        padding_beside_rules: does it take KEY_PADDING beside its other terms too, then at any diagonal, in inference
            and without sinks?
        mask_tensor: does it take a bool or additive mask tensor?
        mask_dtype_may_differ: is an additive mask of another dtype than q's read as it is? (A cast could turn a large
            finite value, which leaves a fully masked row an average, into -inf, which makes it 0.)
        hidden_rows_train: is its backward right where an additive mask hides a whole row by a large finite number? (The
            row is an average; a kernel that keeps one log-sum-exp a row loses log(Sk) beside such a number.)
        mask_grad: does it give the mask tensor a gradient?
        table_grad: does it give one to what a bias that it computes by itself is read from?
        alignments: diagonals at which its causal masks and windows can start; where Sq == Sk both are one.
        empty_rows_are_zero: does a row that sees no key come out as 0?
        empty_lengths: does it take Sq = 0, Sk = 0 or B = 0?
        positive_scale: must the softmax scale be positive?
        dropout: does it really drop out?
        softcap: does it have a softcap?
        sinks: does it take attention sinks (one more logit for each head, that takes part in the softmax only) by
            itself, in inference?
        log_sum_exp: does it give the log-sum-exp of each row, and reads its backward no more of the forward than that
            and the output? Sinks are then computed behind it (`attnpass.emit.sinks`), in training too, and where the
            program wants the log-sum-exp beside the output ``emit`` returns both.
        backward: does it have a backward?
        deterministic: is it deterministic under ``torch.use_deterministic_algorithms(True)``?
        functorch: is it right inside vmap, grad and jvp?
        vmap: is it right inside vmap?
        last_stride_one: must the innermost stride of q, k and v be 1?
        row_alignment: rows and storage offsets are multiples of this many bytes; 1 for no rule.
        exact: exact, or approximate (quantised)?
        tolerance: allowed error as a multiple of the error that PyTorch itself makes in this dtype.
        relative_error: of an approximate kernel: allowed norm of the error over the norm of the result.
    """

    devices: frozenset[str]
    capabilities: tuple[str, str] | None = None
    gfx: frozenset[str] | None = None
    library: Library = PYTORCH
    dtypes: frozenset[torch.dtype] = HALF
    queries_max: int | None = None
    head_dim_max: int | None = None
    head_dim_min: int = 1
    head_dim_multiple: int = 1
    head_dim_padding: int = 1
    head_dim_may_be_symbolic: bool = False
    value_dim_may_differ: bool = False
    gqa: bool = False
    broadcasts: bool = False
    terms: frozenset[Term] = field(default_factory=frozenset)
    padding_by_length: bool = False
    padding_beside_rules: bool = False
    mask_tensor: bool = False
    mask_dtype_may_differ: bool = False
    hidden_rows_train: bool = True
    mask_grad: bool = False
    table_grad: bool = False
    alignments: frozenset[Alignment] = TOP_LEFT
    empty_rows_are_zero: bool = True
    empty_lengths: bool = False
    positive_scale: bool = False
    dropout: bool = False
    softcap: bool = False
    sinks: bool = False
    log_sum_exp: bool = False
    backward: bool = True
    deterministic: bool = True
    functorch: bool = False
    vmap: bool = False
    last_stride_one: bool = True
    row_alignment: int = 1
    exact: bool = True
    tolerance: float = 3.0
    relative_error: float | None = None

    @property
    def generations(self) -> str:
        """Its NVIDIA GPU generations: ``sm_80 to sm_90``, or the one; "" for any."""
        return " to ".join(dict.fromkeys(self.capabilities or ()))
