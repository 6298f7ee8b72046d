"""What ``auto`` prefers, by the meaning of the mask and by the length, on machines that are not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.decision import Decision, Reason
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.settings.policy import parse

CUDA = torch.device("cuda", 0)


def call(
    S: int, *terms: MaskTerm, bias: bool = False, pattern: Pattern = Pattern.SDPA, D: int = 128, H: int = 16
) -> AttentionCall:
    shape = (2, H, S, D)
    q = TensorSpec(shape, (H * S * D, D, H * D, 1), torch.bfloat16, CUDA)
    spelled = TensorSpec((2, 1, S, S), (S * S, S * S, S, 1), torch.bfloat16 if bias else torch.bool, CUDA)
    mask = MaskSpec(terms, bias=spelled if bias else None, rows_may_be_empty=bool(terms), spelled=spelled)
    return AttentionCall(q=q, k=q, v=q, out=q, mask=mask, pattern=pattern)


def decide(one: AttentionCall, machine: str = "h100", kernel: str = "auto") -> Decision:
    return select(one, registry(), KNOWN_MACHINES[machine], Config(kernel=parse(kernel)))


CAUSAL, PADDING = MaskTerm(Term.CAUSAL), MaskTerm(Term.KEY_PADDING)
WINDOW = MaskTerm(Term.WINDOW, left=511)


@pytest.mark.parametrize(
    ("S", "terms", "kernel", "spelled"),
    [
        (4096, (), "native_cudnn", False),
        (4096, (CAUSAL,), "native_cudnn", False),
        (4096, (CAUSAL, WINDOW), "flex", False),
        (4096, (CAUSAL, PADDING), "flex", False),
        (4096, (MaskTerm(Term.FUNCTION),), "flex", False),
        (4096, (PADDING,), "native_flash", False),
        (512, (PADDING,), "native_cudnn", True),  # moving the keys would cost more
        (512, (CAUSAL, PADDING), "native_cudnn", True),
    ],
)
def test_auto_on_an_h100(S: int, terms: tuple[MaskTerm, ...], kernel: str, spelled: bool) -> None:
    decision = decide(call(S, *terms))
    assert decision.kernel == kernel
    assert (decision.asked.mask.spelled is None) is spelled


@pytest.mark.parametrize(
    ("S", "terms", "kernel", "spelled"),
    [
        (4096, (PADDING,), "flash3", False),
        (256, (PADDING,), "native_cudnn", True),  # moving the keys would cost more
        (4096, (CAUSAL, PADDING), "flex", False),
    ],
)
def test_padding_alone_with_flash_attention_installed(
    S: int, terms: tuple[MaskTerm, ...], kernel: str, spelled: bool
) -> None:
    h100 = KNOWN_MACHINES["h100"]
    machine = replace(h100, versions={**h100.versions, "flash-attn-3": "3.0.0"})
    decision = select(call(S, *terms), registry(), machine, Config())
    assert decision.kernel == kernel
    assert (decision.asked.mask.spelled is None) is spelled


def test_a_kernel_that_cannot_compute_the_mask_reads_it_and_says_nothing_of_it() -> None:
    decision = decide(call(4096, CAUSAL, PADDING), kernel="native_efficient")
    assert decision.kernel == "native_efficient" and decision.asked.mask.tensor is not None
    assert decide(call(4096, CAUSAL), kernel="native_efficient").asked.mask.spelled is not None


def test_a_kernel_without_masks_refuses_what_the_mask_means() -> None:
    refused = decide(call(4096, CAUSAL, PADDING), kernel="native_flash").rejections("native_flash")
    wanted = "mask is causal & key_padding, needs key_padding alone, which is read as a number of keys"
    assert [str(reason) for reason in refused][:1] == [wanted]


def test_padding_beside_causal_with_flash_attention_4_installed() -> None:
    h100 = KNOWN_MACHINES["h100"]
    machine = replace(h100, versions={**h100.versions, "flash-attn-4": "4.0.0b36"})
    for one in (call(4096, CAUSAL, PADDING), call(4096, CAUSAL, PADDING, D=64)):
        assert select(one, registry(), machine, Config()).kernel == "flash4"
    documents = call(4096, CAUSAL, MaskTerm(Term.SAME_SEGMENT))
    assert select(documents, registry(), machine, Config()).kernel == "flex"
    training = replace(call(4096, CAUSAL, PADDING), needs_grad=True)
    assert select(training, registry(), machine, Config()).kernel == "flex"


def test_masks_that_read_data_need_wide_heads_in_flex() -> None:
    """On Hopper `flex` has tiles of its own; elsewhere PyTorch's own spill at head dim 64."""
    assert decide(call(4096, CAUSAL, PADDING, D=64)).kernel == "flex"
    assert decide(call(4096, CAUSAL, PADDING, D=64), "a100").kernel == "native_efficient"
    assert decide(call(4096, CAUSAL, PADDING, D=128), "a100").kernel == "flex"
    assert decide(call(4096, CAUSAL, PADDING, D=32)).kernel == "native_cudnn"
    assert decide(call(4096, CAUSAL, WINDOW, D=64), "a100").kernel == "flex"


def test_lists_of_blocks_have_to_pay() -> None:
    """B8 H16 S1024 D64, as large: 0.26 ms for documents with FlexAttention, 0.16 ms with the mask as a tensor."""
    for term in (PADDING, MaskTerm(Term.SAME_SEGMENT)):
        one = call(2048, CAUSAL, term, D=64)
        assert decide(one).kernel.startswith("native_")
    h100 = replace(KNOWN_MACHINES["h100"], cuda_graphs=True)
    assert select(one, registry(), h100, Config()).kernel == "flex"  # CUDA graphs: the host launches nothing


def test_the_order_of_keys_has_to_pay() -> None:
    """BERT of 3 layers at 256 tokens: 2.2 ms with keys put in order, 1.6 ms without; 0.45 and 0.51 in CUDA graphs."""
    h100 = replace(KNOWN_MACHINES["h100"], versions={**KNOWN_MACHINES["h100"].versions, "flash-attn-3": "3.0.0"})
    one = call(1024, PADDING, D=64, H=64)
    assert select(one, registry(), h100, Config()).kernel == "native_cudnn"
    assert select(one, registry(), replace(h100, cuda_graphs=True), Config()).kernel == "flash3"


def test_auto_trains_with_flex_where_it_was_measured_and_hides_blocks() -> None:
    padded, short = (replace(call(S, CAUSAL, PADDING), needs_grad=True) for S in (4096, 512))
    assert decide(padded).kernel == "flex"
    assert decide(short).kernel == "native_cudnn"
    assert decide(replace(padded, mask=MaskSpec())).kernel == "native_cudnn"
    assert decide(padded, "a100").kernel == "native_efficient"
    assert decide(short, "a100", kernel="flex").kernel == "flex"


def test_small_windows_by_hand_stay_on_a_gpu_unless_a_kernel_is_named() -> None:
    window = call(49, bias=True, pattern=Pattern.HANDWRITTEN)
    decision = decide(window)
    assert decision.reason is Reason.AS_WRITTEN and not decision.rewritten and "64 tokens" in decision.note
    assert decide(window, kernel="native_cudnn").kernel == "native_cudnn"
    assert decide(call(49, bias=True)).reason is Reason.AUTO


def table_bias(S: int, terms: tuple[MaskTerm, ...] = (), learns: bool = False) -> AttentionCall:
    """A bias that is read from a table; the program has made a tensor of it."""
    one = call(S, *terms, bias=True, D=64)
    table = replace(one.mask.bias or one.q, shape=(32, 16), stride=(16, 1), requires_grad=learns)
    spelled = replace(one.mask.spelled or one.q, requires_grad=learns)
    return replace(one, mask=replace(one.mask, bias=table, spelled=spelled), needs_grad=learns)


@pytest.mark.parametrize("learns", (False, True))
@pytest.mark.parametrize("machine", ("h100", "a100", "t4"))
@pytest.mark.parametrize("S", (8, 128, 512, 4096))
def test_a_table_is_preferred_to_nothing_that_its_tensor_is_not(S: int, machine: str, learns: bool) -> None:
    proved = table_bias(S, learns=learns)
    tensor = replace(proved, mask=proved.mask.as_spelled())
    kernels = [decide(each, machine).kernel for each in (proved, tensor)]
    assert kernels[0] in (kernels[1], "native_cudnn") and kernels[0] != "flex"  # which computes it in 3 times its time


def test_a_bias_that_learns_beside_causal_is_not_left_to_flex() -> None:
    assert decide(table_bias(4096, (CAUSAL,))).kernel == "flex"
    learned = decide(table_bias(4096, (CAUSAL,), learns=True))
    assert learned.kernel != "flex" and not learned.rejections("flex")
    assert decide(table_bias(4096, (CAUSAL,), learns=True), kernel="flex").kernel == "flex"
