"""What figures and tables are made of: result lines, FLOPs, captions. Numbers in lines here are invented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import attnpass
from benchmarks import flops, forms, labels, roofline, subjects, tables
from benchmarks.records import NO_BREAK, ROOT, Source, newest, provenance, state
from benchmarks.roofline import Ceilings, reach

LLAMA = [2, 32, 8, 4096, 4096, 128]
FACTS = {"date": "2026-11-25T02:00:00+00:00", "commit": "63a46d0aaaaa", "torch": "2.11.0", "triton": "3.6.0"}
LIMIT = Ceilings(tflops=800.0, gbs=3000.0)


def cost(**changes: Any) -> dict[str, Any]:
    line = {"benchmark": "costs", "kernel": "flash3", "set": "models", "shape": "llama", "sizes": LLAMA, "ok": True}
    line |= {"dtype": "bfloat16", "mask": "causal", "step": "forward", "ms": 0.5, "gpu_ms": 0.5, "host_ms": 0.05}
    return line | FACTS | changes


def write(folder: Path, benchmark: str, *lines: dict[str, Any]) -> Source:
    text = "".join(json.dumps({"benchmark": benchmark, **line}) + "\n" for line in lines)
    (folder / f"{benchmark}_x.jsonl").write_text(text)
    return Source("x", folder)


def test_the_newest_line_wins_whatever_the_order() -> None:
    lines = [{"k": 1, "sizes": [2], "ms": ms, "date": date} for ms, date in ((3, "b"), (1, "a"), (4, "b"), (2, "a"))]
    assert newest(lines, "k", "sizes") == {(1, (2,)): lines[2]}


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert Source("h100", tmp_path).read("costs") == []


def test_a_name_with_a_dot_belongs_to_its_benchmark(tmp_path: Path) -> None:
    source = write(
        tmp_path, "overhead", {"benchmark": "overhead.compile"}, {"benchmark": "else"}, {"benchmark": "overhead"}
    )
    assert len(source.read("overhead")) == 2


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (None, "not measured"),
        ({"ok": True, "ms": 1.0}, ""),
        ({"ok": True, "refused": ["head_dim is 256, needs at most 128"]}, "refused"),
        ({"ok": False, "oom": True}, "OOM"),
        ({"ok": False, "problem": "OutOfMemoryError: CUDA out of memory."}, "OOM"),
        ({"ok": False, "problem": "RuntimeError: no"}, "failed"),
        ({"ok": True, "ms": None}, "failed"),
    ],
)
def test_what_stands_where_a_time_is_missing(line: dict[str, Any] | None, word: str) -> None:
    assert state(line) == word


def test_a_caption_names_each_value_once() -> None:
    h100 = {"gpu": "NVIDIA H100", "cudnn": 91900}
    lines = [FACTS | {"hardware": h100}, FACTS | {"hardware": h100, "date": "2026-11-22T", "commit": "57b0c1f8980b+"}]
    text = provenance(lines).replace(NO_BREAK, " ")
    versions, days = "torch 2.11.0 · cuDNN 9.19.0 · triton 3.6.0", "2026-11-22 to 2026-11-25"
    assert text == f"NVIDIA H100 · {versions} · {days} · commits 57b0c1f+, 63a46d0"
    many = [FACTS | {"commit": str(number), "date": str(number)} for number in range(5)]
    assert provenance(many).replace(NO_BREAK, " ").endswith("5 commits, 0 to 4")
    assert provenance([]) == ""


def test_flops_by_hand() -> None:
    assert flops.flops((1, 1, 1, 4, 8, 16), "none", "forward") == 4 * 4 * 8 * 16
    assert flops.flops(LLAMA, "none", "forward") == 4 * 2 * 32 * 4096**2 * 128 == 549_755_813_888
    assert flops.flops(LLAMA, "causal", "forward") == 549_755_813_888 / 2
    assert flops.flops(LLAMA, "causal", "train") == 549_755_813_888 / 2 * 3.5


@pytest.mark.parametrize(
    ("mask", "Sq", "Sk", "wanted"),
    [
        ("causal", 4, 4, 8),
        ("causal(2)", 2, 4, 3 + 4),
        ("causal", 4, 2, 1 + 2 + 2 + 2),
        ("causal & window(1)", 4, 4, 1 + 2 + 2 + 2),
        ("window(1, 1)", 4, 4, 2 + 3 + 3 + 2),
        ("causal & window(100)", 4, 4, 10),
        ("window(1)", 4, 4, None),
        ("causal & window(1)", 2, 4, None),
        ("causal & key_padding", 4, 4, None),
        ("tensor", 4, 4, None),
        ("none & bias", 4, 4, None),
    ],
)
def test_pairs_by_hand(mask: str, Sq: int, Sk: int, wanted: float | None) -> None:
    assert flops.pairs(mask, Sq, Sk) == wanted


def test_bytes_by_hand() -> None:
    sizes = (1, 4, 2, 8, 16, 32)
    q, k = 4 * 8 * 32 * 2, 2 * 16 * 32 * 2
    assert flops.least_bytes(sizes, "bfloat16", "forward") == 2 * q + 2 * k == 8192
    assert flops.least_bytes(sizes, "float32", "forward") == 2 * 8192
    assert flops.least_bytes(sizes, "float16", "train") == 6 * q + 6 * k + 2 * 4 * 8 * 4


def test_compute_binds_a_prefill_and_memory_a_decode() -> None:
    prefill = reach(cost(), LIMIT)
    assert prefill.tflops == pytest.approx(549.755813888)
    assert (prefill.bound, prefill.percent) == ("compute", pytest.approx(100 * 549.755813888 / 800))
    decode = reach(cost(sizes=[16, 32, 8, 1, 4096, 128], mask="none", ms=0.1, gpu_ms=0.1), LIMIT)
    data = 2 * (16 * 32 * 128 * 2) + 2 * (16 * 8 * 4096 * 128 * 2)
    assert (decode.bound, decode.gbs) == ("memory", pytest.approx(data / 1e-4 / 1e9))
    assert decode.percent == pytest.approx(100 * data / 1e-4 / 1e9 / 3000)


def test_where_no_ceiling_applies_none_is_given() -> None:
    assert reach(cost(host_ms=0.6), LIMIT).bound == "host"
    for line in (cost(kernel="sage_fp8"), cost(mask="key_padding"), cost(dtype="float32")):
        assert reach(line, LIMIT).percent is None
    assert reach(cost(), None).percent is None
    assert reach(cost(), None).tflops is not None


def test_the_table_of_limits_keeps_the_fastest_exact_kernel(tmp_path: Path) -> None:
    lines = cost(), cost(kernel="flex", ms=0.8), cost(kernel="sage", ms=0.1), cost(kernel="flash4", ms=None, oom=True)
    source = write(tmp_path, "costs", *lines, cost(set="fit", ms=0.01))
    write(tmp_path, "ceilings", FACTS | {"matmul_tflops": 800.0, "copy_gbs": 3000.0})
    (row,) = roofline.table(["models"], best=True, source=source).rows
    assert row[4:] == ["`flash3`", "0.500", "550", "336", "compute", "69 %"]
    assert len(roofline.table(["models"], best=False, source=source).rows) == 3


def test_what_is_no_faster_is_listed_slowest_first(tmp_path: Path) -> None:
    times = {"swin_b": (12.0, 15.0), "llama": (46.0, 29.0), "bert": (11.4, 11.5)}
    lines = [
        FACTS | {"model": model, "compiler": compiler, "step": "forward", "ok": True, "ms": ms}
        for model, pair in times.items()
        for compiler, ms in zip(("inductor", "auto"), pair, strict=True)
    ]
    source = write(tmp_path, "end_to_end", *lines, FACTS | {"model": "gpt2", "compiler": "auto", "step": "train"})
    assert [row[0] for row in tables.no_gain(source).rows] == [labels.MODELS["swin_b"], labels.MODELS["bert"]]
    assert tables.models(source).rows[0][1:5] == ["46.00", "–", "29.00", "1.59×"]
    assert tables.models(source).rows[1][:4] == ["GPT-2, 16 × 1024 tokens, training", "not measured", "–", "failed"]


def test_memory_is_the_newest_lines_even_if_its_time_was_disturbed(tmp_path: Path) -> None:
    old = {"form": "padding", "compiler": "auto", "step": "forward", "ran": "flash3", "ok": True} | FACTS
    old |= {"ms": 0.8, "spread_ms": 0.001, "memory_mib": 97.0}
    new = old | {"ms": 0.81, "spread_ms": 0.2, "memory_mib": 65.0, "date": "2026-11-28"}
    other = new | {"ran": "flash2", "memory_mib": 80.0, "date": "2026-11-29"}
    (shown,) = tables.forms_of(write(tmp_path, "forms", old, new, other)).values()
    assert (shown["ms"], shown["memory_mib"]) == (0.8, 65.0)


def test_every_form_model_and_approximate_kernel_is_known_here() -> None:
    assert set(labels.FORMS) == set(forms.FORMS)
    assert set(labels.MODELS) == set(subjects.CASES) - {"small"}
    assert all(labels.is_exact(kernel.name) == kernel.limits.exact for kernel in attnpass.list_kernels())


def test_the_committed_results_make_tables() -> None:
    assert len(tables.forms().rows) == len(forms.FORMS)
    for table in (tables.models(), tables.costs_of_the_pass(), tables.host()):
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.head)}


def test_the_figures_that_the_readme_shows_are_there() -> None:
    shown = re.findall(r'"(docs/figures/[^"]+)"', (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown) == 4
    assert all((ROOT / path).exists() for path in shown)


def form(ms: float | None, spread: float, day: int) -> dict[str, Any]:
    return {"benchmark": "forms", "form": "fused", "ms": ms, "spread_ms": spread, "date": f"2026-11-{day:02}"}


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        (form(1.0, 0.0, 1), form(2.0, 0.0, 2), 2.0),  # the newer
        (form(1.0, 0.5, 1), form(2.0, 0.0, 2), 2.0),  # the undisturbed
        (form(1.0, 0.0, 1), form(2.0, 0.5, 2), 1.0),
        (form(1.0, 0.0, 1), form(0.98, 0.5, 2), 1.0),
        (form(1.0, 0.0, 1), form(0.9, 0.5, 2), 0.9),  # an upper bound that is lower: something became faster
        (form(None, 0.0, 1), form(2.0, 0.5, 2), 2.0),  # what failed once is replaced
    ],
)
def test_a_disturbed_line_is_an_upper_bound(first: dict[str, Any], second: dict[str, Any], wanted: float) -> None:
    for lines in ((first, second), (second, first)):
        assert newest(lines, "form")[("fused",)]["ms"] == wanted
