"""The wording of the log: golden texts."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from attnpass.find.found import NearMiss
from attnpass.ir.call import Pattern, Source
from attnpass.ir.decision import Answer, Reason
from attnpass.report.groups import compress, short_source
from attnpass.report.text import block, debug_text, no_calls_warning
from tests.helpers import report_examples as examples

SOFTMAX = NearMiss("softmax", "softmax between two matrix products", Source("model.py", 80))


def lines(*wanted: str) -> str:
    return "\n".join(wanted)


def test_block_of_a_model_with_kept_calls():
    assert block(examples.video_model()) == lines(
        "attnpass graph 0: 40 attention calls, 38 rewritten, 2 kept (3.1 ms)",
        "  flex           x38  B2 H24 S4096 D128 bf16, no mask         blocks.*.attn        wan/model.py:212",
        "  kept (native)   x2  B2 H24 Sq4096 Sk77 D80 bf16, bool mask  blocks.[0,20].cross  wan/model.py:240",
        "      native_flash: mask is a bool tensor, needs none or causal",
    )


def test_one_call_is_singular_and_an_unknown_place_is_said():
    call = replace(examples.call(""), source=Source())
    assert block(examples.report(examples.rewritten(call))) == lines(
        "attnpass graph 0: 1 attention call, 1 rewritten, 0 kept (3.1 ms)",
        "  flex  x1  B2 H24 S4096 D128 bf16, no mask  (top level)  unknown source",
    )


def test_refusals_before_the_chosen_kernel_are_told_with_all_reasons():
    sage = Answer("sage", (examples.BAD_HEAD_DIM, examples.NEEDS_NO_MASK, examples.BAD_HEAD_DIM))
    text = block(examples.report(examples.rewritten(examples.call("a"), "flex", sage)))
    assert text.splitlines()[2:] == [
        "      sage: head_dim is 80, needs 64, 96 or 128; mask is a bool tensor, needs none or causal"
    ]


def test_kernels_that_nobody_asked_about_are_not_told():
    decision = examples.rewritten(examples.call("a"))
    decision = replace(decision, answers=(*decision.answers, Answer("sage", (examples.BAD_HEAD_DIM,))))
    assert "sage" not in block(examples.report(decision))
    assert "sage" in debug_text(examples.report(decision))


@pytest.mark.parametrize(
    ("reason", "note", "told"),
    [
        (Reason.LIMIT, "ATTNPASS_LIMIT=3 stops before this call", "ATTNPASS_LIMIT=3 stops before this call"),
        (Reason.USER_CHOICE, "the program chose MATH", "the program chose MATH"),
        (Reason.REQUESTED, "", "native was asked for by name"),
        (Reason.AUTO, "auto leaves the choice to PyTorch on tpu", "auto leaves the choice to PyTorch on tpu"),
    ],
)
def test_why_a_call_was_kept(reason: Reason, note: str, told: str):
    text = block(examples.report(examples.kept(examples.call("a"), reason=reason, note=note)))
    assert text.splitlines()[2:] == [f"      {told}"]


def test_a_kept_call_whose_note_says_it_all_lists_no_refusals():
    refusal = Answer("flex", (examples.BAD_HEAD_DIM,))
    decision = examples.kept(examples.call("a"), refusal, reason=Reason.USER_CHOICE, note="the program chose MATH")
    assert "head_dim" not in block(examples.report(decision))


def test_calls_with_different_reasons_are_not_grouped():
    one = examples.kept(examples.call("a"), Answer("flex", (examples.BAD_HEAD_DIM,)))
    other = examples.kept(examples.call("b"), Answer("flex", (examples.NEEDS_NO_MASK,)))
    assert block(examples.report(one, other)).count("x1") == 2


def test_equal_calls_of_several_places_and_another_spelling():
    calls = [examples.call(f"layers.{n}", line=10 + n, pattern=Pattern.MULTIHEAD) for n in range(3)]
    text = block(examples.report(*map(examples.rewritten, calls)))
    assert text.endswith("layers.* (multihead)  wan/model.py:10 and 2 more places")


def test_block_without_calls_lists_three_near_misses():
    misses = tuple(replace(SOFTMAX, node=f"softmax_{n}", source=Source("model.py", n)) for n in range(5))
    assert block(examples.report(near_misses=(*misses, misses[0]))) == lines(
        "attnpass graph 0: no attention call among 512 nodes (3.1 ms)",
        "  almost x2: softmax_0 at model.py:0: softmax between two matrix products",
        "  almost x1: softmax_1 at model.py:1: softmax between two matrix products",
        "  almost x1: softmax_2 at model.py:2: softmax between two matrix products",
        "  almost: 2 more places (ATTNPASS_LOG=debug lists them)",
    )


def test_near_misses_are_not_told_among_many_rewritten_calls():
    decisions = [examples.rewritten(examples.call(f"a.{n}")) for n in range(2)]
    assert "almost" not in block(examples.report(*decisions, near_misses=(SOFTMAX,)))
    assert "almost" in block(examples.report(*decisions, near_misses=(SOFTMAX,) * 2))


def test_a_failed_pass_is_told():
    assert block(examples.report(error="ValueError: boom")) == lines(
        "attnpass graph 0: the pass failed (3.1 ms)",
        "  ValueError: boom; the graph runs as it was",
    )


def test_debug_text_has_every_answer_and_the_code():
    refusal = Answer("sage", (examples.BAD_HEAD_DIM,))
    decision = examples.rewritten(examples.call("blocks.0"), "flex", refusal)
    report = examples.report(decision, compile_id="0/1", code_before="before\n", code_after="after\n")
    assert debug_text(report) == lines(
        "attnpass graph 0: 1 attention call, 1 rewritten, 0 kept (3.1 ms) [compilation 0/1]",
        "  call sdpa_blocks.0 (sdpa) in blocks.0, wan/model.py:212",
        "      B2 H24 S4096 D128 bf16, no mask, on cuda:0",
        "      flex, because flex was asked for by name; considered: sage, flex",
        "      native  takes it",
        "      sage    head_dim is 80, needs 64, 96 or 128",
        "      flex    takes it",
        "---- attnpass graph 0: the code before the pass, 512 nodes ----",
        "before",
        "---- attnpass graph 0: the code after the pass, 3.1 ms ----",
        "after",
    )


def test_debug_text_says_when_the_code_is_unchanged():
    text = debug_text(examples.report(near_misses=(SOFTMAX,), code_before="same", code_after="same"))
    assert text.splitlines()[1:] == [
        "  almost x1: softmax at model.py:80: softmax between two matrix products",
        "---- attnpass graph 0: the code, which the pass left as it was ----",
        "same",
    ]


def test_no_calls_warning_is_one_line_that_says_what_to_do():
    assert no_calls_warning(examples.report(near_misses=(SOFTMAX,))) == (
        "attnpass graph 0: no attention call among 512 nodes, nothing rewritten; nearest: softmax at model.py:80: "
        "softmax between two matrix products. `attnpass explain FILE.py` shows what is found in a model; later graphs "
        "without a call are not announced"
    )
    without = no_calls_warning(examples.report())
    assert "looked for F.scaled_dot_product_attention" in without
    assert "\n" not in without


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["layers.3.attn"], "layers.3.attn"),
        ([f"layers.{n}.attn" for n in range(12)], "layers.*.attn"),
        (["layers.0.cross", "layers.11.cross"], "layers.[0,11].cross"),
        ([f"layers.{n}.attn" for n in (0, 1, 2, 4, 5, 8)], "layers.[0-2,4,5,8].attn"),
        (["", ""], "(top level)"),
        (["encoder.attn", "decoder.attn"], "[decoder,encoder].attn"),
        (["attn", "attn.inner"], "attn, attn.inner"),
        ([f"down.{a}.blocks.{b}" for a in (0, 1) for b in (0, 1)], "down.*.blocks.*"),
        (["down.0.blocks.0", "down.1.blocks.0", "down.1.blocks.1"], "down.0.blocks.0, down.1.blocks.*"),
        (["a", "b.c", "d.e.f", "g.h.i.j", "k.l.m.n.o"], "a, b.c, d.e.f and 2 more"),
    ],
)
def test_module_names_are_compressed(names: list[str], text: str):
    everything = [*names, *(f"layers.{n}.attn" for n in range(12))]
    assert compress(names, everything) == text


def test_a_star_is_only_used_for_all_numbers_there_are():
    first = [f"blocks.{n}.attn" for n in range(3)]
    assert compress(first, first) == "blocks.*.attn"
    assert compress(first, [*first, "blocks.3.cross"]) == "blocks.[0-2].attn"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("/opt/py/lib/site-packages/transformers/bert.py", "transformers/bert.py:7"),
        (os.path.join(os.getcwd(), "model.py"), "model.py:7"),
        ("/somewhere/else/wan/model.py", "wan/model.py:7"),
        ("model.py", "model.py:7"),
        ("", "unknown source"),
    ],
)
def test_sources_are_shortened(file: str, text: str):
    assert short_source(Source(file, 7)) == text
