"""The index of a folder: every graph of every process, equal ranks once, and filters that are no script."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import distributed

from attnpass.find.found import NearMiss
from attnpass.ir.call import Source
from attnpass.report import history
from attnpass.report.history import write
from attnpass.report.pages import index_page
from attnpass.report.pages.index_page import index_html, write_index
from attnpass.report.record import Report
from attnpass.settings.config import Config
from tests.helpers import report_examples as examples
from tests.report.test_report_html import EVIL, Page, evil_report

MISS = NearMiss("tanh", "tanh instead of softmax", Source("model.py", 3))


def index(folder: Path) -> Page:
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def small() -> Report:
    return examples.report(examples.rewritten(examples.call("head"), "reference"), graph=1, near_misses=(MISS,))


def test_all_graphs_are_told(tmp_path: Path) -> None:
    write(examples.video_model(), tmp_path)
    write(small(), tmp_path)
    page = index(tmp_path)
    assert page.open == []
    assert "39 of 41 attention calls in 2 graphs rewritten; 1 place is almost attention." in page.words
    for wanted in ("blocks.*.attn", "blocks.[0,20].cross", "wan/model.py:212", "mask is a bool tensor", "tanh instead"):
        assert wanted in page.words
    links = {str(attrs["href"]) for name, attrs in page.tags if name == "a"}
    assert {f"attnpass-{os.getpid()}-graph{n}.html" for n in (0, 1)} < links
    assert all((tmp_path / link).exists() for link in links if link.startswith("attnpass"))
    assert any(link.endswith("why_kept.md#mask") for link in links)


def hidden_by(html: str, choice: str) -> list[int]:
    """The rows that the style sheet hides where ``choice`` is checked."""
    rule = re.search(rf"body:has\(#{choice}:checked\) tbody\.row:not\(\.([\w-]+)\)", html)
    assert rule is not None
    rows = re.findall(r'<tbody class="row ([^"]*)"', html)
    return [number for number, classes in enumerate(rows) if rule[1] not in classes.split()]


def test_calls_are_filtered_by_kernel_and_by_refusal(tmp_path: Path) -> None:
    write(examples.video_model(), tmp_path)
    write(small(), tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    choices = {str(attrs["id"]) for name, attrs in page.tags if name == "input"}
    wanted = {f"kernel-{n}" for n in range(4)} | {"refused-0", "refused-kept", "refused-any", "code-1"}
    assert choices == wanted  # all, flex, native, reference; all, kept, refused, mask
    assert [hidden_by(html, f"kernel-{n}") for n in (1, 2, 3)] == [[1, 2], [0, 2], [0, 1]]
    assert [hidden_by(html, name) for name in ("refused-kept", "refused-any", "code-1")] == [[0, 2]] * 3
    assert "flex 38 native 2 reference 1" in page.words and page.count("script") == 0


def test_ranks_that_got_the_same_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(3):
        monkeypatch.setattr(history.os, "getpid", lambda rank=rank: 100 + rank)
        kernel = "flex" if rank < 2 else "reference"
        odd = examples.rewritten(examples.call("odd", Sk=77), kernel)
        write(examples.report(examples.rewritten(examples.call("a")), odd, rank=rank), tmp_path)
    assert (tmp_path / "attnpass-rank2-102-graph0.html").exists()
    words = index(tmp_path).words
    assert "6 of 6 attention calls in 3 graphs of 3 processes rewritten." in words
    assert "2 rows are not the same on all 3 ranks." in words
    assert "rank 0, graph 0; rank 1, graph 0; rank 2, graph 0" in words
    assert "flex 5 reference 1" in words


def test_a_report_knows_its_rank(tmp_path: Path) -> None:
    assert history.new_report(Config()).rank is None
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        paths = write(history.new_report(Config()), tmp_path)
    finally:
        distributed.destroy_process_group()
    assert paths[0].name.startswith(f"attnpass-rank0-{os.getpid()}-graph")
    assert json.loads(paths[0].read_text(encoding="utf-8"))["rank"] == 0


def test_ranks_that_agree_are_said_to(tmp_path: Path) -> None:
    for rank in range(2):
        write(examples.report(examples.rewritten(examples.call("a")), rank=rank), tmp_path)
    assert "All 2 ranks got the same." in index(tmp_path).words


def test_processes_that_are_no_ranks_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in (7, 8):
        monkeypatch.setattr(history.os, "getpid", lambda pid=pid: pid)
        write(examples.report(examples.rewritten(examples.call("a"))), tmp_path)
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<tbody class="row', html)) == 2
    assert "process 7, graph 0" in Page(html).words


def test_a_folder_without_a_call_says_what_came_nearest(tmp_path: Path) -> None:
    write(examples.report(nodes=5, near_misses=(MISS,)), tmp_path)
    assert "No attention call was found in 1 graph; 1 place is almost attention." in index(tmp_path).words


def test_files_of_other_versions_are_counted_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "attnpass-1-graph0.json").write_text('{"schema": 1, "calls": []}')
    (tmp_path / "attnpass-1-graph1.json").write_text('{"schema"')
    (tmp_path / "notes.json").write_text("{}")
    write(small(), tmp_path)
    assert "2 files could not be read: of another version than schema 2" in index(tmp_path).words


def test_a_report_that_comes_meanwhile_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writes its report, and the index, between our look at the folder and our page."""
    write(small(), tmp_path)
    rendered = index_page.rendered

    def slow(*args: str, **values: object) -> str:
        text = rendered(*args, **values)
        late = tmp_path / "attnpass-999-graph0.json"
        if not late.exists():
            late.write_text(json.dumps(examples.video_model().to_dict()))
        return text

    monkeypatch.setattr(index_page, "rendered", slow)
    write_index(tmp_path)
    assert "process 999, graph 0" in index(tmp_path).words
    assert not list(tmp_path.glob(".index*"))


def test_a_report_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    write(small(), tmp_path)
    write(replace(small(), decisions=()), tmp_path)
    assert "No attention call was found in 1 graph" in index(tmp_path).words


def test_everything_is_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    write(evil_report(), tmp_path)
    html = index_html(tmp_path)
    page = Page(html)
    assert page.open == [] and page.count("script") == 0 and EVIL not in html and "alert" in page.words
    assert not {"link", "img", "iframe"} & {name for name, _ in page.tags}
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html
    assert all(attrs["tabindex"] == "0" for _, attrs in page.tags if attrs.get("class") == "scroll")
