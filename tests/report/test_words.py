"""Small words in reports that have to be true: source lines, symbols, brackets, what cures a refusal."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.graph.values import source_of
from attnpass.index.expr import Apply, Lin, axis, number, plus
from attnpass.ir.mask import MaskSpec
from attnpass.report.record import Reports
from tests.helpers.compiled import decisions, qkv, run

LESS = plus(axis("k"), Lin((), 1), -1)


def test_a_source_line_points_into_the_model() -> None:
    frame = '  File "{}", line {}, in forward\n    x = f(x)\n'
    model, einops, torchs = "/home/me/net.py", "/lib/site-packages/einops/einops.py", "/lib/torch/nn/functional.py"
    trace = "".join(frame.format(file, line) for line, file in enumerate((model, einops, torchs), start=7))
    assert str(source_of({"stack_trace": trace})) == "/home/me/net.py:7"
    assert str(source_of({"stack_trace": frame.format(torchs, 9)})) == f"{torchs}:9"  # better than nowhere
    assert str(source_of({})) == "unknown source"


def test_meanings_keep_their_brackets() -> None:
    divided = Apply("floordiv", (LESS, number(4)), torch.int64)
    assert str(divided) == "(k - 1) // 4"
    assert str(Apply("le", (LESS, axis("q")), torch.bool)) == "k - 1 <= q"
    assert str(Apply("mod", (divided, number(2)), torch.int64)) == "((k - 1) // 4) % 2"
    assert str(Apply("floordiv", (axis("k"), number(4)), torch.int64)) == "k // 4"


def test_symbols_are_told_from_numbers() -> None:
    q, k, v = qkv(Sq=20)
    for x in (q, k, v):
        torch._dynamo.mark_dynamic(x, 2)
    torch._dynamo.reset()
    run(F.scaled_dot_product_attention, q, k, v)
    text = decisions()[-1].call.shape_text()
    assert text.startswith("B2 H4 Sq=s") and text.endswith(" D64")


def test_a_numpy_scale_is_refused_with_its_cure() -> None:
    scale = np.float64(0.3)

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)

    torch._dynamo.reset()
    q, k, v = qkv()
    run(attention, q, k, v, scale)
    (decision,) = decisions()[-1:]
    told = "; ".join(map(str, decision.rejections("native_flash")))
    assert decision.rewritten or "float(scale)" in told
    attnpass.clear_reports()
    run(attention, q, k, v, float(scale))
    assert decisions()[-1].rewritten


def test_reasons_are_of_the_spelling_that_was_asked() -> None:
    """On a CPU the memory-efficient kernel is refused for the device, not for a mask that it would read as a tensor."""
    q, k, v = qkv(dtype=torch.float32)

    def windowed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        i = torch.arange(33)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(i[:, None] - i).abs() < 5)

    torch._dynamo.reset()
    run(windowed, q, k, v)
    (decision,) = decisions()[-1:]
    assert decision.call.mask != MaskSpec() and {r.code.value for r in decision.rejections("native_efficient")} == {
        "device"
    }
    assert decision.rewritten and decision.mask_is_read  # the CPU's kernel has no windows


def test_a_report_prints_as_its_block_and_shows_as_its_page() -> None:
    q, k, v = qkv()
    torch._dynamo.reset()
    run(F.scaled_dot_product_attention, q, k, v)
    report = attnpass.last_report()
    assert report is not None
    assert str(report).startswith(f"attnpass graph {report.graph}: 1 attention call, 1 rewritten")
    assert repr([report]) == f"[<attnpass.Report of graph {report.graph}: 1 call, 1 rewritten>]"
    page = report._repr_html_()
    assert page.startswith("<iframe") and "&lt;!doctype html&gt;" in page and "<script" not in page


def test_the_reports_of_a_dry_run_print_one_below_the_other() -> None:
    found = attnpass.explain(F.scaled_dot_product_attention, *qkv())
    assert str(found) == str(found[0]) and str(found).startswith("attnpass graph ") and isinstance(found, list)
    both = Reports([*found, *found])
    assert str(both).count("1 attention call") == 2 and both._repr_html_().count("<iframe") == 2
    assert str(attnpass.explain(lambda x: x, torch.ones(2))) == "no graph was captured"


def test_what_a_model_would_get_elsewhere() -> None:
    q = torch.randn(2, 8, 2048, 64, dtype=torch.bfloat16)
    (report,) = attnpass.explain_on("h100", lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), q)
    (decision,) = report.decisions
    assert decision.ms and decision.basis is not None and decision.basis.value == "table"
    assert next(iter(report.machines.values())).capability == "sm_90"
    assert not any(reason.code.value in ("device", "library") for reason in decision.rejections("flash3"))
