"""What ``auto`` means: for each kind of machine, the exact kernels to try, fastest first.

Measured on one H100 (torch 2.11.0+cu130, 2026-11-22; forward unless it says otherwise, ms):

=====================================  ============  ============  ================  =====
call                                   native_cudnn  native_flash  native_efficient  flex
=====================================  ============  ============  ================  =====
Llama prefill B2 H32 Hkv8 S4096 D128   0.522         0.890         --                0.759
the same, forward + backward           2.136         3.526         --                3.05
BERT B32 H12 S512 D64                  0.074         0.111         0.221
GPT-2 B8 H12 S1024 D64, fwd + bwd      0.221         0.291         0.588
head dim 256, causal, S4096            0.265         0.548         1.060
=====================================  ============  ============  ================  =====

Elsewhere the order is PyTorch's own (``sdp_utils.cpp``): flash before memory-efficient, cuDNN first only on sm_90 and
sm_10x. A call that nothing in the list takes stays as it is, and PyTorch chooses.
"""

from __future__ import annotations

from attnpass.call import AttentionCall, Pattern
from attnpass.machine import Machine, sm_number
from attnpass.masks import Term
from attnpass.symbolic import known, known_equal

HOPPER_AND_DATACENTER_BLACKWELL = ("native_cudnn", "native_flash", "native_efficient")
OTHER_NVIDIA = ("native_flash", "native_efficient", "native_cudnn")
CPU = ("native_flash",)
FLEX = "flex"
HIDES_BLOCKS = frozenset({Term.CAUSAL, Term.WINDOW, Term.SAME_SEGMENT, Term.FUNCTION})
LONG = 1024  # keys
SMALL = 64


def auto_order(machine: Machine, call: AttentionCall | None = None) -> tuple[str, ...]:
    """Names of the exact kernels to try on this machine, fastest first; empty leaves the choice to PyTorch.

    Without a ``call``, the names that may be tried for some call.
    """
    if machine.kind == "cpu":
        return CPU
    if machine.kind != "cuda":
        return ()
    generation = sm_number(machine.capability) or 0
    order = HOPPER_AND_DATACENTER_BLACKWELL if 90 <= generation < 110 else OTHER_NVIDIA
    return order if call is not None and not _skips_blocks(call) else (FLEX, *order)


def _skips_blocks(call: AttentionCall) -> bool:
    """Does the mask hide blocks that FlexAttention skips, in a call long enough for that to pay?

    Padding alone hides too little: BERT at 512 tokens took 12.07 ms with FlexAttention, 11.42 ms with PyTorch's choice.
    Causal and padded at 4096 tokens took 0.80 ms, 1.67 ms with the mask as a tensor. Training was not measured.
    """
    if call.needs_grad:
        return False
    terms = call.mask.terms
    plain = {term.term for term in terms} <= {Term.CAUSAL} and all(known_equal(t.offset, 0) for t in terms)
    hides = any(term.term in HIDES_BLOCKS for term in terms)
    return call.mask.spelled is not None and hides and not plain and known(call.Sk >= LONG)


def faster_as_written(machine: Machine, call: AttentionCall) -> str:
    """Why ``auto`` leaves a chain written by hand to the compiler, or "".

    Swin-B (windows of 49 tokens, a bias for each head): 12.65 ms as it is, 15.20 ms with cuDNN's attention.
    """
    tensor = call.mask.tensor is not None or call.mask.bias is not None
    small = known(call.Sq <= SMALL) and known(call.Sk <= SMALL)
    if machine.kind == "cuda" and call.pattern is Pattern.HANDWRITTEN and tensor and small:
        return f"auto leaves windows of at most {SMALL} tokens with a bias to the compiler, which is faster there"
    return ""
