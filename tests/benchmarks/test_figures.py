"""The figures are drawn, twice the same, and never from nothing. Numbers in lines here are invented."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks import figures
from benchmarks.labels import FORMS, PICTURES
from benchmarks.plots import costs, end_to_end, regret, sage, style

FACTS = {"date": "2026-11-25T02:00:00+00:00", "commit": "63a46d0aaaaa", "hardware": {"gpu": "Invented GPU"}, "ok": True}


def sweep() -> list[dict[str, Any]]:
    lines = []
    for kernel, ms in (("flash3", 0.5), ("native_math", 2.0), ("sage", 0.4), ("new_kernel", 0.7)):
        for S in costs.LENGTHS:
            line = {"kernel": kernel, "set": "sweep", "sizes": [1, 16, 16, S, S, 128], "mask": "none"}
            line |= {"step": "forward", "dtype": "bfloat16", "ms": ms, "spread_ms": 0.01, **FACTS}
            lines.append(line)
    lines[6] |= {"oom": True, "ok": False, "ms": None}
    lines.append(lines[0] | {"kernel": "flash2", "refused": ["head_dim"], "ms": None})
    built = {"kernel": "flash3", "sizes": [1, 16, 16, 512, 512, 256], "problem": "this build has 64 only"}
    lines.append(lines[0] | built | {"ms": None, "ok": False})
    lines.append(lines[0] | {"kernel": "flex", "refused": ["left out: slow"], "ms": None})
    return [line | {"relative_error": 0.03} if line["kernel"] == "sage" else line for line in lines]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    form = {"step": "forward", "sizes": [2, 4, 4, 64, 64], "spread_ms": 0.1, "memory_mib": 64.0, **FACTS}
    whole = {"model": "llama", "step": "forward", "spread_ms": 1.0, **FACTS}
    ratio = {"sizes": [1], "mask": "none", "step": "train", "chosen": "flex", "best": "flash3", **FACTS}
    lines = {
        "forms": [form | {"form": f, "compiler": c, "ms": 1.0} for f in FORMS for c in ("inductor", "auto")],
        "end_to_end": [
            whole | {"compiler": c, "ms": ms} for c, ms in (("inductor", 40.0), ("auto", 50.0), ("sage", 20.0))
        ],
        "costs": sweep(),
        "regret": [
            ratio | {"shape": s, "ratio": r, "by": t} for s in "ab" for r in (1.0, 1.5) for t in ("table", "clock")
        ],
    }
    lines["forms"][0] |= {"ok": False, "problem": "OutOfMemoryError", "ms": None}
    lines["end_to_end"].append(whole | {"model": "bert", "compiler": "auto", "ms": 5.0})
    for name, records in lines.items():
        text = "".join(json.dumps({"benchmark": name, **record}) + "\n" for record in records)
        (tmp_path / f"{name}_h100.jsonl").write_text(text)
    return tmp_path


def without(svg: str) -> list[str]:
    """What a figure says it has no point of."""
    (said,) = re.findall(r"Without a point: (.*?)NVIDIA|Without a point: (.*?)Invented", " ".join(texts(svg)))
    return "".join(said).strip().split("; ")


def texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def draw(results: Path, out: Path, *names: str) -> dict[str, str]:
    assert figures.main([*names, "--results", str(results), "--out", str(out)]) == 0
    return {path.name: path.read_text() for path in sorted(out.glob("*.svg"))}


def test_every_figure_has_a_text_for_who_cannot_see_it() -> None:
    assert list(figures.FIGURES) == list(PICTURES)


def test_all_are_drawn_for_light_and_dark_and_twice_the_same(results: Path, tmp_path: Path) -> None:
    drawn = draw(results, tmp_path / "one")
    names = set(figures.FIGURES) - {"kernels_train"}  # no line of a training step is there
    assert set(drawn) == {f"{name}_h100_{theme}.svg" for name in names for theme in ("light", "dark")}
    assert drawn == draw(results, tmp_path / "two")
    for text in drawn.values():
        assert "Invented\u00a0GPU" in text
        assert "DejaVu" not in text
        assert "<dc:date>" not in text


def test_what_is_missing_or_slower_is_written(results: Path, tmp_path: Path) -> None:
    drawn = draw(results, tmp_path / "out")
    assert ">OOM<" in drawn["forms_h100_light.svg"]
    assert ">0.80×, 40.00 → 50.00 ms<" in drawn["end_to_end_h100_light.svg"]
    lacking = "Llama, 4 × 4096 tokens (sage); BERT, 32 × 512, mask of ones"
    assert f">Without a bar, since a time was disturbed or is lacking: {lacking}<" in drawn["end_to_end_h100_light.svg"]
    assert without(drawn["kernels_forward_h100_light.svg"]) == [
        "native_math at head dim 128 at 512 (OOM)",
        "flash2 at head dim 128 at 512 (head_dim)",
        "flash3 at head dim 256 at 512 (this build has 64 only)",
        "flex at head dim 128 at 512 (slow)",
    ]
    assert "new_kernel" in drawn["kernels_forward_h100_light.svg"]


SMALLEST = 6.75  # points: 9 px where a figure is as wide as the docs


@pytest.mark.parametrize("figure", sorted(figures.FOLDER.glob("*.svg")), ids=lambda path: path.stem)
def test_the_committed_figures_can_be_read_where_the_docs_show_them(figure: Path) -> None:
    svg = figure.read_text()
    (width,) = re.findall(r'<svg [^>]*width="([\d.]+)pt"', svg)
    assert float(width) == pytest.approx(style.WIDTH * 72)
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[a-z]+ |\d+ )*([\d.]+)px", svg)]
    assert sizes and min(sizes) >= SMALLEST
    assert not [text for text in texts(svg) if text.startswith(("disturbed", "failed", "not measured"))]


def test_a_legend_that_does_not_fit_is_no_figure() -> None:
    figure = style.empty(3.0, "", "", (), style.THEMES[0])
    handles = [figure.add_axes((0, 0, 1, 1)).barh([0], [0]) for _ in range(9)]
    labels = [f"quite a long name, {number}" for number in range(9)]
    with pytest.raises(style.LegendTooWideError):
        style.legend(figure, handles, labels)
    style.legend(figure, handles, labels, columns=3)


def test_a_matrix_product_is_said_to_be_no_bound_where_a_kernel_is_above_it(results: Path, tmp_path: Path) -> None:
    def said(tflops: float) -> str:
        line = {"benchmark": "ceilings", "ok": True, "matmul_tflops": tflops, "copy_gbs": 1.0, **FACTS}
        (results / "ceilings_h100.jsonl").write_text(json.dumps(line) + "\n")
        svg = draw(results, tmp_path / str(tflops), "kernels_forward")["kernels_forward_h100_light.svg"]
        return " ".join(texts(svg))

    assert "no bound" not in said(9999.0)
    assert "no bound: native_math at head dim 128, flash3 at head dim 128, new_kernel" in said(1.0)


def test_a_kernel_has_one_colour_in_all_figures() -> None:
    assert style.colour("native") == style.colour("default") == style.colour("inductor")
    distinct = [
        name for name in style.COLOURS if not name.startswith("sage") and name not in ("by_hand", "native", "default")
    ]
    assert len({style.colour(name) for name in distinct}) == len(distinct)


def test_without_lines_there_is_no_figure_and_the_old_one_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "forms_h100_light.svg"
    old.touch()
    assert draw(tmp_path, tmp_path) == {}
    assert "forms: skipped, no line with the compiler auto in forms_h100.jsonl" in capsys.readouterr().out


def test_a_speedup_has_the_range_of_both_spreads() -> None:
    found = end_to_end.speedup({"ms": 20.0, "spread_ms": 2.0}, {"ms": 10.0, "spread_ms": 2.0})
    assert found == (2.0, 19 / 11, 21 / 9)


def test_gains_are_over_the_fastest_exact_kernel() -> None:
    found = sage.gains([line for line in sweep() if line["ms"] is not None])
    assert found["sage", 128, "none"][1024] == (pytest.approx(0.5 / 0.4), 0.03)


def test_a_regret_is_summed_up_by_its_geometric_mean() -> None:
    assert regret.summary([1.0, 4.0]) == "mean 2.000, worst 4.00, 50 % of 2 within 3 %"
