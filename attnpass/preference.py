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

from attnpass.call import AttentionCall
from attnpass.machine import Machine, sm_number
from attnpass.masks import Term
from attnpass.symbolic import known_equal

HOPPER_AND_DATACENTER_BLACKWELL = ("native_cudnn", "native_flash", "native_efficient")
OTHER_NVIDIA = ("native_flash", "native_efficient", "native_cudnn")
CPU = ("native_flash",)
FLEX = "flex"


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
    """Is the mask proved, and more than causal? FlexAttention then skips the blocks that it hides."""
    mask = call.mask
    plain = {term.term for term in mask.terms} <= {Term.CAUSAL} and all(known_equal(t.offset, 0) for t in mask.terms)
    return mask.spelled is not None and not plain
