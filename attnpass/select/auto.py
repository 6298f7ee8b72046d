"""What ``auto`` means: for each call, the exact kernels to try on this machine, fastest first.

On a machine that was measured (`attnpass.select.costs`), by what each kernel costs for this very call. On one H100,
forward (torch 2.11.0+cu130, ``docs/performance.md``), cuDNN wins the short calls, FlashAttention-3 those of head dim
256, and FlexAttention those whose mask hides whole blocks and is no rule that the others know.

Elsewhere, and in fp32, the order is PyTorch's own (``sdp_utils.cpp``): flash before memory-efficient, cuDNN first only
on sm_90 and sm_10x; FlexAttention first where a mask hides blocks. A call that nothing in the list takes stays as it
is, and PyTorch chooses.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from attnpass.graph.symbolic import hint, known, known_equal, known_multiple
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.mask import RULES, MaskSpec, Term
from attnpass.machine.machine import Machine, sm_number
from attnpass.select.costs import FEW, MASKED_STEPS, Features, cheapest, features, host_ms, predicted

HOPPER_AND_DATACENTER_BLACKWELL = ("native_cudnn", "native_flash", "native_efficient")
OTHER_NVIDIA = ("native_flash", "native_efficient", "native_cudnn")
LIBRARIES = {"flash2": "flash-attn", "flash3": "flash-attn-3", "flash4": "flash-attn-4"}  # kernel -> Library.key
CPU = ("native_flash",)
FLEX = "flex"
DECODING = "flash_decoding"
MASK_FUNCTION = {FLEX: 1.1, "flash4": 1.3}  # what a mask that is computed score by score adds (S4096)
READS_BIAS = 1.5  # `flex` on a bias that it reads, where it fills up the head dim: 0.7 to 1.6 times its curve (H200)
ODD_BIAS = 3.0  # the same where its rows are not aligned: 2 to 3 times at 503, 669 and 1877 keys
READS_TABLE = 3.0  # `flex` on a bias that it computes: BEiT-B took 4.37 ms so, 3.63 with PyTorch's choice
LISTS_MS = 0.3  # the host's time for the lists of its blocks, which all layers share: 0.26 to 0.31 in one call
ORDER_MS = 0.2  # the host's time to put keys in order and move them: BERT of 3 layers took 0.6 ms more so
IN_PLACE = {"flash3": 1.06}  # reads keys where they lie; what it adds to be told how many
HALF_FULL = 0.6  # what `flash_decoding` takes where the mask shows half the keys: 0.52 to 0.66 of what all of them take
PAGES_MS = 0.02  # the keys' order, the tables of pages and a second launch
COPY_GB_A_MS = 3.0  # benchmarks/results/ceilings_h100.jsonl
MOVES_START = 0.006  # two launches
HIDES_BLOCKS = frozenset({Term.CAUSAL, Term.WINDOW, Term.SAME_SEGMENT, Term.FUNCTION})
LONG = 1024  # keys
WIDE = 128  # head dim
NARROW = 64  # from here on `flex` has tiles of its own, on Hopper
SMALL = 64
FILLED = (64, 128)  # head dims that `flex` has tiles for
ALIGNED = 8  # elements of half precision that a GPU loads at once


def auto_order(machine: Machine, call: AttentionCall | None = None, spelled: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the exact kernels to try on this machine, fastest first; empty leaves the choice to PyTorch.

    Args:
        machine: where the call runs.
        call: the call; without one, the names that may be tried for some call.
        spelled: kernels that would read the call's mask as a tensor.
    """
    if machine.kind == "cpu":
        return CPU
    if machine.kind != "cuda":
        return ()
    order = pytorchs_order(machine)
    installed = tuple(name for name, key in LIBRARIES.items() if key in machine.versions)
    if call is None:
        return (FLEX, *order, *installed, DECODING)
    counted = replace(call, mask=call.mask.as_counted())
    read = counted.mask.spelled is None and counted.mask.tensor is not None
    flex = (FLEX,) if call.softcap is not None or read or _hides_blocks(counted, NARROW) else ()
    flex = () if counted.bias_learns else flex
    few = (DECODING,) if "triton" in machine.versions and known(call.Sq <= FEW) else ()
    return _by_cost((*order, *flex, *installed, *few), machine, call, spelled) or _by_rule(order, installed, counted)


def pytorchs_order(machine: Machine) -> tuple[str, ...]:
    """The kernels of an NVIDIA GPU in the order in which PyTorch asks them."""
    generation = sm_number(machine.capability) or 0
    return HOPPER_AND_DATACENTER_BLACKWELL if 90 <= generation < 110 else OTHER_NVIDIA


def expected_ms(
    machine: Machine,
    call: AttentionCall,
    spelled: Collection[str] = (),
    names: Collection[str] = (*OTHER_NVIDIA, FLEX, *LIBRARIES, DECODING),
) -> dict[str, float]:
    """What a run costs with those of ``names`` of which measurements say it, whether they take the call or not.

    Args:
        machine: where the call runs.
        call: the call.
        spelled: kernels that would read the call's mask as a tensor.
        names: kernels, installed or not.
    """
    if call.dtype.itemsize != 2 or machine.kind != "cuda":
        return {}
    table = call.mask.bias is not None and call.mask.spelled is not None
    call = replace(call, mask=call.mask.as_counted())
    found = predicted(call, machine, {name: name in spelled for name in names})
    counted, alone = _is_counted(call), call.mask.is_only(Term.KEY_PADDING)
    if counted:  # at worst nothing is hidden; where a block is full or hidden, its mask is not read
        found |= predicted(replace(call, mask=MaskSpec()), machine, {FLEX: False} if FLEX in found else {})
    if counted or (call.mask.spelled is not None and _reads_data(call)):
        found |= _with_functions(machine, found, {FLEX} if alone or counted else set(MASK_FUNCTION))
    if FLEX in found and (bias := features(call, FLEX in spelled)) is not None and bias.mask == "bias":
        rows = 1.0 if call.D in FILLED else READS_BIAS
        rows = rows if known_multiple(call.Sk, ALIGNED) else ODD_BIAS
        found[FLEX] *= READS_TABLE if table and FLEX not in spelled else rows
    if DECODING in found and (read := _read_by(call, DECODING in spelled)) is not None:
        found[DECODING] = max(found[DECODING] * HALF_FULL, host_ms(DECODING, read, machine))
    if alone:
        least = 0.0 if machine.cuda_graphs else ORDER_MS
        by_length = set(found) - {FLEX, *spelled}
        found |= {name: max(_in_order(name, found[name], call), least) for name in by_length}
    return found


def _by_cost(
    names: tuple[str, ...], machine: Machine, call: AttentionCall, spelled: Collection[str]
) -> tuple[str, ...]:
    """``names``, the cheapest first, those of unknown cost last. Empty where nothing was measured."""
    left = expected_ms(machine, call, spelled, names)
    unknown = tuple(name for name in names if name not in left) if left else ()
    order: list[str] = []
    while left:
        order.append(cheapest(names, left))  # `names` stand in order: PyTorch's own, then the libraries
        del left[order[-1]]
    return (*order, *unknown)


def _read_by(call: AttentionCall, spelled: bool) -> Features | None:
    """The numbers of a call whose mask is read as a tensor; None for others. How full a cache is, nobody knows."""
    found = features(call, spelled)
    return found if found is not None and found.mask in MASKED_STEPS else None


def _with_functions(machine: Machine, costs: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """What those of ``names`` cost that compute the mask score by score, from lists of its blocks.

    Of two that the host holds up the one with less work for the device is the cheaper: in a model layers share lists.
    """
    device = {name: costs[name] * MASK_FUNCTION[name] for name in names if name in costs}
    if machine.cuda_graphs:
        return device
    return {name: max(ms, LISTS_MS + ms / 4) for name, ms in device.items()}


def _in_order(name: str, ms: float, call: AttentionCall) -> float:
    """What a kernel costs whose keys have an order: read where they lie, or K and V moved at the speed of a copy."""
    if name in IN_PLACE:
        return ms * IN_PLACE[name] + PAGES_MS
    sizes = [hint(size) for size in (call.B, call.Hkv, call.Sk, call.D)]
    moved = 4 * math.prod(size or 0 for size in sizes) * call.dtype.itemsize
    return ms + MOVES_START + moved / 1e9 / COPY_GB_A_MS


def _is_counted(call: AttentionCall) -> bool:
    """Is the mask a bool tensor of which no more is known, with another row for each query?"""
    tensor = call.mask.tensor
    if tensor is None or call.mask.spelled is not None or tensor.dtype != torch.bool:
        return False
    return known(tensor.shape[-2] >= FEW) and known(call.Sk >= LONG)


def _reads_data(call: AttentionCall) -> bool:
    """Is the mask more than causal and windows?"""
    return call.mask.bias is not None or any(term.term not in RULES for term in call.mask.terms)


def _hides_blocks(call: AttentionCall, narrowest: int = WIDE) -> bool:
    """Does a proved mask hide blocks that FlexAttention skips, in a call long enough for that to pay?

    PyTorch's own causal is not meant: every kernel has it. Padding alone hides too little: BERT at 512 tokens took
    12.07 ms with FlexAttention, 11.42 ms with PyTorch's choice. Causal and padded at 4096 tokens took 0.74 ms, 1.64 ms
    with the mask as a tensor (H100, head dim 128).

    Below the head dim ``narrowest`` a mask that reads data makes FlexAttention slow: with PyTorch's own tiles for head
    dim 64 Llama with a mask of ones took 46.6 ms, 44.5 ms without FlexAttention, and 32.4 ms with the tiles that
    `flex` has for Hopper.
    """
    mask = call.mask
    if _reads_data(call) and not known(narrowest <= call.D):
        return False
    plain = mask.bias is None and all(t.term is Term.CAUSAL and known_equal(t.offset, 0) for t in mask.terms)
    hides = any(term.term in HIDES_BLOCKS for term in mask.terms)
    return hides and not plain and known(call.Sk >= LONG)


def _by_rule(order: tuple[str, ...], installed: tuple[str, ...], call: AttentionCall) -> tuple[str, ...]:
    """Where the mask hides blocks, or may, first who skips them: libraries that have such a mask, then FlexAttention.

    A window of an eighth of 7000 keys: flash-attn 2 and 3 take half and a third of FlexAttention's time (H200, D 128).
    A tensor that hides nothing costs it no more than others, which read all of it.
    """
    skips = _hides_blocks(call) or _is_counted(call)
    return (*installed, FLEX, *order) if skips and not call.needs_grad else order


def only_if_named(kernel: str, call: AttentionCall) -> bool:
    """Does ``auto``, timed or not, leave this kernel to who names it?

    FlexAttention in training, where no block is hidden: its backward takes half as long again as the others'. And where
    a bias learns: all scores add to a few numbers, one after the other (41.8 ms a step for B16 H12 S512, on an H200).
    """
    return kernel == FLEX and call.needs_grad and (call.bias_learns or not _hides_blocks(call, NARROW))


def faster_as_written(machine: Machine, call: AttentionCall) -> str:
    """Why ``auto`` leaves a chain written by hand to the compiler, or "".

    Swin-B (windows of 49 tokens, a bias for each head): 12.65 ms as it is, 15.20 ms with cuDNN's attention.
    """
    tensor = call.mask.tensor is not None or call.mask.bias is not None
    small = known(call.Sq <= SMALL) and known(call.Sk <= SMALL)
    if machine.kind == "cuda" and call.pattern is Pattern.HANDWRITTEN and tensor and small:
        return f"auto leaves windows of at most {SMALL} tokens with a bias to the compiler, which is faster there"
    return ""
