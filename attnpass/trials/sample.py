"""Run one kernel once, on random data of one kind of call, and compare it with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnpass.graph.tensor import dtype_name
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import RULES, MaskSpec, MaskTerm, Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine
from attnpass.trials.accuracy import judge
from attnpass.trials.standalone import UnfitError, runnable_alone, undisturbed


@dataclass(frozen=True, slots=True)
class Sample:
    """A small call that stands for a class of calls.

    Attributes:
        shape: (B, H, Hkv, Sq, Sk, D, Dv).
        dtype: of q, k and v.
        device: where it runs.
        mask: the mask of a call of the class; its rules are taken over, its tensors only by their kind.
        shifted: does the mask's diagonal end bottom-right instead of starting top-left?
        bshd: do q, k and v lie as (B, S, H, D)?
        scale: factor on the scores, or None.
        softcap: or None.
        sinks: are there attention sinks?
        grad: are gradients compared too?
    """

    shape: tuple[int, int, int, int, int, int, int]
    dtype: torch.dtype
    device: torch.device
    mask: MaskSpec
    shifted: bool = False
    bshd: bool = True
    scale: float | None = None
    softcap: float | None = None
    sinks: bool = False
    grad: bool = False

    def __str__(self) -> str:
        B, H, Hkv, Sq, Sk, D, Dv = self.shape
        words = [f"B{B} H{H} Hkv{Hkv} Sq{Sq} Sk{Sk} D{D}" + (f" Dv{Dv}" if Dv != D else ""), dtype_name(self.dtype)]
        words += [str(self.rules)] if self.rules.terms else []
        words += self._data()
        words += [f"softcap {self.softcap:g}"] if self.softcap else []
        words += ["sinks"] if self.sinks else []
        words += ["negative scale"] if self.scale is not None and self.scale <= 0 else []
        words += ["BSHD" if self.bshd else "BHSD"]
        return ", ".join(words + (["training"] if self.grad else []))

    def _data(self) -> list[str]:
        """What of the mask is read from a tensor, in words."""
        kept = self.mask.tensor
        if self.is_padded:
            empty = " with rows without keys" if self.mask.rows_may_be_empty else ""
            return [Term.KEY_PADDING.value + empty]
        return [] if kept is None else ["bool mask" if kept.dtype == torch.bool else f"{dtype_name(kept.dtype)} bias"]

    @property
    def is_padded(self) -> bool:
        """Does the mask's meaning read data? Padding stands for all that it may read."""
        return any(term.term not in (*RULES, Term.TENSOR) for term in self.mask.terms)

    @property
    def rules(self) -> MaskSpec:
        """The mask's causal and window terms at the sample's own lengths; a window of its own size."""
        Sq, Sk = self.shape[3:5]
        offset = Sk - Sq if self.shifted else 0
        terms = []
        for term in self.mask.terms:
            if term.term is Term.CAUSAL:
                terms.append(replace(term, offset=offset))
            elif term.term is Term.WINDOW:
                left = None if term.left is None else max(1, Sk // 3)
                right = term.right if term.right is None or term.right == 0 else max(1, Sk // 4)
                terms.append(MaskTerm(Term.WINDOW, offset, left, right))
        return MaskSpec(tuple(terms))


def run_trial(kernel: Kernel, sample: Sample, machine: Machine) -> tuple[bool, str, float, float]:
    """Was it right, what was tried and came out in words, the worst error, and the error allowed.

    Raises:
        UnfitError: the kernel refuses the sample, or the device cannot be used.
    """
    with undisturbed(sample.device, sample.grad):
        tensors = _tensors(sample)
        given = [x for x in tensors.values() if x is not None]
        before = [x.detach().clone() for x in given]
        try:
            run = _runnable(kernel, sample, machine, tensors)
            found = judge(kernel.limits_for(machine), run, list(tensors.values()), _meaning(sample))
        except UnfitError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({sample})"
            return False, text, float("inf"), 0.0
        worst = max(found, key=lambda one: (not one.good, one.error / max(one.allowed, 1e-30)))
        if not all(map(torch.equal, given, before)):
            return False, f"it changes its operands in place ({sample})", float("inf"), 0.0
        return worst.good, f"{worst} ({sample})", worst.error, worst.allowed


def _tensors(sample: Sample) -> dict[str, Tensor | None]:
    """q, k, v, mask and sinks on the device."""
    B, H, Hkv, Sq, Sk, D, Dv = sample.shape
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def operand(heads: int, length: int, size: int) -> Tensor:
        lying = normal(B, length, heads, size) if sample.bshd else normal(B, heads, length, size)
        there = lying.to(sample.device, sample.dtype).requires_grad_(sample.grad)
        return (there.transpose(1, 2) if sample.bshd else there).detach().requires_grad_(sample.grad)

    mask, kind = None, sample.mask.tensor
    if sample.is_padded:
        mask = torch.rand(B, 1, 1, Sk, generator=generator) > 0.3
        mask[0] = not sample.mask.rows_may_be_empty  # one example without any key, one with scattered ones
        mask[1:, ..., -1] = True
    elif kind is not None and kind.dtype == torch.bool:
        mask = torch.rand(B, 1, Sq, Sk, generator=generator) > 0.3
        mask[..., 0] = True
    elif kind is not None:
        mask = normal(B, H, Sq, Sk).to(kind.dtype)
    try:
        return {
            "q": operand(H, Sq, D),
            "k": operand(Hkv, Sk, D),
            "v": operand(Hkv, Sk, Dv),
            "mask": None if mask is None else mask.to(sample.device),
            "sinks": normal(H).to(sample.device, sample.dtype) if sample.sinks else None,
        }
    except (RuntimeError, AssertionError) as error:
        raise UnfitError(str(error)) from error


def _runnable(
    kernel: Kernel, sample: Sample, machine: Machine, tensors: dict[str, Tensor | None]
) -> Callable[..., Tensor]:
    """The sample, computed by the kernel."""

    def adapt(call: AttentionCall) -> AttentionCall:
        mask = replace(call.mask, terms=(*call.mask.terms, *sample.rules.terms))
        return replace(call, mask=mask, softcap=sample.softcap, needs_grad=sample.grad)

    options = {"scale": sample.scale, "enable_gqa": sample.shape[1] != sample.shape[2]}
    return runnable_alone(kernel, machine, tensors, options, adapt, proved=sample.is_padded)


def _meaning(sample: Sample) -> dict[str, Any]:
    """The keyword arguments of the reference; the mask's rules are spelled out as a tensor for it."""
    Sq, Sk = sample.shape[3:5]
    meaning: dict[str, Any] = {
        "scale": sample.scale,
        "enable_gqa": sample.shape[1] != sample.shape[2],
        "softcap": sample.softcap,
    }
    if sample.rules.terms:
        meaning["seen"] = sample.rules.seen(Sq, Sk, sample.device)
    return meaning
