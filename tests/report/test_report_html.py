"""The files of ATTNPASS_REPORT: a page that holds whatever a program is called, and JSON that can be read back."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from attnpass.find.found import NearMiss
from attnpass.ir.call import Source
from attnpass.report.history import write
from attnpass.report.pages.graph_page import to_html
from attnpass.report.record import Report
from attnpass.settings.config import Config
from tests.helpers import report_examples as examples

EVIL = "</script><script>alert('x')</script><!--&amp;"
VOID = {"meta", "link", "br", "wbr", "img", "hr", "input"}


class Page(HTMLParser):
    """Reads a page back: its elements, its text, and what a script element holds."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def evil_report() -> Report:
    call = replace(examples.call(EVIL, file=EVIL), node=EVIL)
    miss = NearMiss(EVIL, EVIL, Source(EVIL, 1))
    report = examples.report(examples.rewritten(call), near_misses=(miss,), error=EVIL)
    machine = replace(examples.H100, name=EVIL, versions={EVIL: EVIL}, unusable={EVIL: EVIL})
    config = Config(compiler=EVIL, origin={"compiler": EVIL})
    return replace(report, machines={examples.DEVICE: machine}, code_before=EVIL, code_after=EVIL * 2, config=config)


def test_the_page_tells_what_happened():
    page = Page(to_html(examples.video_model()))
    assert page.open == []
    assert "38 of 40 attention calls rewritten; 2 stay as they are." in page.words
    for wanted in ("blocks.*.attn", "wan/model.py:212", "kept", "rewritten", "NVIDIA H100, sm_90", "cuDNN 9.19.0"):
        assert wanted in page.words
    assert "native_flash: mask is a bool tensor, needs none or causal" in page.words
    assert "What each kernel answers (2 of 2 would take them)" in page.words
    assert page.count("details") == 6  # two groups with answers and calls, the code before and after


@pytest.mark.parametrize(
    ("report", "summary"),
    [
        (examples.report(examples.rewritten(examples.call("a"))), "The attention call was rewritten."),
        (examples.report(*[examples.rewritten(examples.call("a"))] * 3), "All 3 attention calls rewritten."),
        (examples.report(examples.kept(examples.call("a"))), "0 of 1 attention call rewritten; 1 stays as it is."),
        (examples.report(nodes=1), "No attention call was found among 1 node."),
        (examples.report(error="boom"), "The pass failed, and the graph runs as it was."),
    ],
)
def test_the_summary_is_one_sentence(report: Report, summary: str):
    assert summary in Page(to_html(report)).words


def test_everything_is_escaped():
    html = to_html(evil_report())
    page = Page(html)
    assert page.open == []
    assert page.count("script") == 1  # the data, and none that a module is called
    assert "alert" in page.words
    assert "<script>alert" not in html


def test_the_embedded_json_is_the_report():
    report = evil_report()
    page = Page(to_html(report))
    assert json.loads("".join(page.scripts)) == json.loads(report.to_json())
    assert ("script", {"type": "application/json", "id": "report"}) in page.tags


def test_the_page_loads_nothing_and_follows_the_colour_scheme():
    html = to_html(examples.video_model())
    page = Page(html)
    assert "http:" not in html
    assert "https:" not in html
    assert not {"link", "img", "iframe"} & {name for name, _ in page.tags}
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_the_page_can_be_read_without_seeing_it():
    page = Page(to_html(examples.video_model()))
    assert ("html", {"lang": "en"}) in page.tags
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert all(attrs["aria-labelledby"] in ids for _, attrs in page.tags if "aria-labelledby" in attrs)
    assert all(attrs.get("scope") for name, attrs in page.tags if name == "th")
    scrolling = [attrs for _, attrs in page.tags if attrs.get("class") == "scroll"]
    assert scrolling
    assert all(attrs["tabindex"] == "0" for attrs in scrolling)


def test_write_makes_the_folder_and_names_the_process(tmp_path: Path):
    report = replace(examples.video_model(), graph=7)
    paths = write(report, tmp_path / "a" / "b")
    assert [path.name for path in paths] == [f"attnpass-{os.getpid()}-graph7{end}" for end in (".json", ".html")]
    assert json.loads(paths[0].read_text(encoding="utf-8")) == report.to_dict()
    assert paths[1].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_folder_that_cannot_be_made_is_an_oserror(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(examples.report(), tmp_path / "file" / "folder")
