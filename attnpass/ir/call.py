"""What an attention call *is*, independent of how it was spelled and of who will compute it.

Everything here is frozen data. Nothing in this file knows a kernel, a graph or a machine.

Dimension names: B batch, H query heads, Hkv key/value heads, Sq and Sk sequence lengths, D head dim of q and k,
Dv head dim of v. Layout is BHSD, the layout of ``F.scaled_dot_product_attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

import torch

from attnpass.graph.symbolic import Size, as_int, known_equal
from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.graph.values import Source
from attnpass.ir.mask import MaskSpec, Term


class Pattern(Enum):
    """The spelling in which a call was found."""

    SDPA = "sdpa"
    MULTIHEAD = "multihead"
    HANDWRITTEN = "handwritten"
    CHOSEN = "chosen"


class Kind(Enum):
    """Where K comes from, as far as the graph shows it (`attnpass.find.kind`). Stable: it is in the JSON report."""

    SELF = "self"  # from the tensor that Q comes from; a cache of earlier keys may be joined to it
    CROSS = "cross"  # from another sequence
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Context:
    """The program state around a call.

    Attributes:
        autocast: dtype that autocast casts to for this device at this place, or None.
        functorch: names of the functorch transforms around the call, such as ``("vmap", "grad")``.
        sdpa_kernel: backends that the user's ``with sdpa_kernel(...)`` allows at this place, or None.
        nested_in: names of the higher-order ops whose body holds the call, outermost first.
        unreadable: name of an argument of the call that is decided only at run time, or "".
        subclass: class name of an operand that is no plain tensor (DTensor, nested tensor, ...), or "".
    """

    autocast: torch.dtype | None = None
    functorch: tuple[str, ...] = ()
    sdpa_kernel: tuple[str, ...] | None = None
    nested_in: tuple[str, ...] = ()
    unreadable: str = ""
    subclass: str = ""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One attention call in canonical form: ``out = dropout(softmax(scale * q k^T + bias where mask)) v``.

    The softmax is in fp32. Shapes are those of the user's call (2-D to 4-D, the leading dims of BHSD missing);
    the properties read them as BHSD.

    Attributes:
        q: (B, H, Sq, D).
        k: (B, Hkv, Sk, D).
        v: (B, Hkv, Sk, Dv).
        out: what the user's program gets.
        mask: what the mask means.
        scale: factor on the scores, or None for 1/sqrt(D).
        sinks: (H,), one more logit for each head that takes part in the softmax and gives nothing; None for none.
        lse: the log-sum-exp of each row, as the program wants it beside the output; None where it does not.
        softcap: scores become ``softcap * tanh(scores / softcap)``; None for none.
        dropout_p: probability of dropping an attention weight; None if it is not a number in the graph.
        enable_gqa: the call's own flag (Hkv = 1 broadcasts without it).
        needs_grad: gradients flow through this call.
        mask_and_causal: both a mask tensor and ``is_causal=True`` were given, which PyTorch leaves undefined.
        context: the program state around the call.
        node: name of the node in the graph.
        module: qualified name of the module that makes the call, such as ``"blocks.3.attn"``.
        source: file and line in the user's program.
        pattern: how the call was spelled.
        kind: does K come from Q's sequence?
        chosen: who computes it as the program says itself, in words; "" where it does not say so.
    """

    q: TensorSpec
    k: TensorSpec
    v: TensorSpec
    out: TensorSpec
    mask: MaskSpec = field(default_factory=MaskSpec)
    scale: float | None = None
    softcap: float | None = None
    sinks: TensorSpec | None = None
    lse: TensorSpec | None = None
    dropout_p: float | None = 0.0
    enable_gqa: bool = False
    needs_grad: bool = False
    mask_and_causal: bool = False
    context: Context = field(default_factory=Context)
    node: str = ""
    module: str = ""
    source: Source = field(default_factory=Source)
    pattern: Pattern = Pattern.SDPA
    kind: Kind = Kind.UNKNOWN
    chosen: str = ""

    @property
    def B(self) -> Size:
        return _dim(self.q, 0)

    @property
    def H(self) -> Size:
        return _dim(self.q, 1)

    @property
    def Hkv(self) -> Size:
        return _dim(self.k, 1)

    @property
    def Sq(self) -> Size:
        return self.q.shape[-2]

    @property
    def Sk(self) -> Size:
        return self.k.shape[-2]

    @property
    def D(self) -> Size:
        return self.q.shape[-1]

    @property
    def Dv(self) -> Size:
        return self.v.shape[-1]

    @property
    def is_gqa(self) -> bool:
        """Are there (or might there be) fewer key/value heads than query heads?"""
        return not known_equal(self.H, self.Hkv)

    @property
    def is_causal(self) -> bool:
        return self.mask.has(Term.CAUSAL)

    @property
    def bias_learns(self) -> bool:
        """Do gradients flow to what is added to the scores?"""
        return self.needs_grad and self.mask.bias is not None and self.mask.bias.requires_grad

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the kernel computes: autocast's where it applies, else q's."""
        return self.context.autocast or self.q.dtype

    @property
    def device(self) -> torch.device:
        return self.q.device

    def scale_or_default(self) -> float | None:
        """The factor on the scores as a number; None if it depends on a symbolic head dim."""
        if self.scale is not None:
            return self.scale
        D = as_int(self.D)
        return 1.0 / math.sqrt(D) if D else None

    def shape_text(self) -> str:
        """``"B2 H24 S4096 D128"``, ``"S=s27"`` for a symbol; names q's and k's sides apart where they differ."""
        sizes: dict[str, Size] = {"B": self.B, "H": self.H}
        if not known_equal(self.H, self.Hkv):
            sizes["Hkv"] = self.Hkv
        sizes |= {"S": self.Sq} if known_equal(self.Sq, self.Sk) else {"Sq": self.Sq, "Sk": self.Sk}
        sizes["D"] = self.D
        if not known_equal(self.D, self.Dv):
            sizes["Dv"] = self.Dv
        return " ".join(
            f"{name}{size}" if as_int(size) is not None else f"{name}={size}" for name, size in sizes.items()
        )

    def text(self) -> str:
        """One line that says what the call is, for logs: shape, dtype, mask, and what makes it unusual."""
        mask = {"none": "no mask"}.get(str(self.mask), str(self.mask))
        kept = self.mask.tensor
        if kept is not None and mask == "tensor":
            mask = "bool mask" if kept.dtype == torch.bool else f"{dtype_name(kept.dtype)} bias"
        extras = [mask]
        if self.softcap is not None:
            extras.append(f"softcap {self.softcap:g}")
        if self.sinks is not None:
            extras.append("sinks")
        if self.lse is not None:
            extras.append("log-sum-exp")
        if self.dropout_p:
            extras.append(f"dropout {self.dropout_p:g}")
        if self.needs_grad:
            extras.append("training")
        return f"{self.shape_text()} {dtype_name(self.dtype)}, {', '.join(extras)}"


def _dim(spec: TensorSpec, index: int) -> Size:
    """Dimension ``index`` of ``spec`` read as 4-D; leading dims that are not there have size 1."""
    position = index - (4 - spec.ndim)
    return spec.shape[position] if position >= 0 else 1
