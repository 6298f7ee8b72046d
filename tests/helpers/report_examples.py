"""Reports made by hand, for the tests of what is told: no graph, no machine and no kernel is needed."""

from __future__ import annotations

import torch

from attnpass.find.found import NearMiss
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall, Pattern, Source
from attnpass.ir.decision import Answer, Decision, Reason
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import MaskSpec
from attnpass.machine.machine import Machine
from attnpass.report.record import Report
from attnpass.settings.config import Config
from attnpass.settings.policy import Policy

NEEDS_NO_MASK = Rejection(Code.MASK, "mask", "a bool tensor", "none or causal")
BAD_HEAD_DIM = Rejection(Code.HEAD_DIM, "head_dim", 80, "64, 96 or 128")
DEVICE = torch.device("cuda", 0)
H100 = Machine("cuda", "NVIDIA H100", "sm_90", {"torch": "2.13.0", "sageattention": "2.1.1"}, cudnn=91900)


def spec(*shape: int, dtype: torch.dtype = torch.bfloat16) -> TensorSpec:
    stride = [1]
    for size in reversed(shape[1:]):
        stride.insert(0, stride[0] * size)
    return TensorSpec(shape, tuple(stride), dtype, DEVICE)


def call(
    module: str,
    line: int = 212,
    *,
    Sk: int = 4096,
    D: int = 128,
    mask: MaskSpec | None = None,
    file: str = "wan/model.py",
    pattern: Pattern = Pattern.SDPA,
) -> AttentionCall:
    q, k = spec(2, 24, 4096, D), spec(2, 24, Sk, D)
    node = f"sdpa_{module}"
    source = Source(file, line, "forward")
    return AttentionCall(q, k, k, q, mask or MaskSpec(), node=node, module=module, source=source, pattern=pattern)


def rewritten(attention: AttentionCall, kernel: str = "flex", *refused: Answer) -> Decision:
    names = (*(answer.kernel for answer in refused), kernel)
    answers = (Answer("native", ()), *refused, Answer(kernel, ()))
    return Decision(attention, kernel, Reason.REQUESTED, names, answers)


def kept(attention: AttentionCall, *refused: Answer, reason: Reason = Reason.NONE_ACCEPTED, note: str = "") -> Decision:
    tried = tuple(answer.kernel for answer in refused)
    return Decision(attention, "native", reason, tried, (Answer("native", ()), *refused), note)


def cross(module: str, line: int = 240) -> AttentionCall:
    mask = MaskSpec.from_tensor(spec(2, 1, 4096, 77, dtype=torch.bool))
    return call(module, line, Sk=77, D=80, mask=mask)


def report(*decisions: Decision, graph: int = 0, near_misses: tuple[NearMiss, ...] = (), **fields: object) -> Report:
    values = {
        "config": Config(kernel=Policy(default=("flex",))),
        "machines": {DEVICE: H100},
        "nodes": 512,
        "pass_ms": 3.1,
        **fields,
    }
    return Report(graph=graph, decisions=decisions, near_misses=near_misses, **values)  # type: ignore[arg-type]


def video_model() -> Report:
    """38 calls rewritten, 2 kept."""
    refused = (Answer("native_flash", (NEEDS_NO_MASK,)),)
    decisions = [rewritten(call(f"blocks.{number}.attn")) for number in range(38)]
    decisions += [kept(cross(f"blocks.{number}.cross"), *refused) for number in (0, 20)]
    return report(
        *decisions, code_before="def forward(self):\n    before\n", code_after="def forward(self):\n    after\n"
    )
