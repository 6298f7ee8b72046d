"""The files of ATTNPASS_REPORT: a page that holds whatever a program is called, and JSON that can be read back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from attnpass.find.found import NearMiss
from attnpass.ir.call import Source
from attnpass.report.history import write
from attnpass.report.pages import docs
from attnpass.report.pages.graph_page import to_html
from attnpass.report.record import Report, calls_of
from attnpass.settings.config import Config
from tests.helpers import report_examples as examples
from tests.test_docs import ROOT

EVIL = "</script><script>alert('x')</script><!--&amp;"
MISS = NearMiss("tanh", "tanh instead of softmax", Source("model.py", 3))
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
    assert "native_flash: mask is a bool tensor, needs none or causal mask" in page.words  # the last word is the code
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
        (
            examples.report(nodes=9, near_misses=(MISS, MISS)),
            "No attention call was found among 9 nodes; 2 places are almost attention.",
        ),
        (
            examples.report(examples.rewritten(examples.call("a")), near_misses=(MISS,)),
            "The attention call was rewritten; 1 place is almost attention.",
        ),
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


def test_every_code_leads_to_the_docs() -> None:
    page = Page(to_html(examples.video_model()))
    links = {str(attrs["href"]) for name, attrs in page.tags if name == "a"}
    assert links == {f"{(ROOT / 'docs' / 'why_kept.md').as_uri()}#mask"}


def test_a_release_links_to_its_own_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    urls = ["Source, https://host/a", "Documentation, https://host/a/blob/main/docs/index.md"]
    monkeypatch.setattr(docs.metadata, "metadata", lambda _: SimpleNamespace(get_all=lambda _: urls))
    docs.reasons.cache_clear()
    try:
        assert docs.reasons() == "https://host/a/blob/main/docs/why_kept.md"
        page = Page(to_html(examples.video_model()))
        assert not {"link", "img", "iframe"} & {name for name, _ in page.tags}  # followed, not loaded
    finally:
        docs.reasons.cache_clear()


def compiled(*programs: Callable[..., Tensor]) -> Page:
    """The page of programs that are called with one (2, 4, 32, 16) tensor."""
    x = torch.randn(2, 4, 32, 16)
    with torch.no_grad():
        for program in programs:
            torch.compile(program, backend="attnpass", options={"attnpass.kernel": "native_math"})(x)
    report = attnpass.last_report()
    assert report is not None
    return Page(to_html(report))


def test_the_node_before_and_after() -> None:
    page = compiled(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True))
    assert "torch._C._nn.scaled_dot_product_attention(" in page.words and "is_causal=True)" in page.words
    assert "# after" in page.words and "torch.ops.aten._scaled_dot_product_attention_math" in page.words
    assert [attrs["viewbox"] for name, attrs in page.tags if name == "svg"] == ["0 0 32 32"]


def test_a_chain_written_by_hand_is_told_node_by_node() -> None:
    page = compiled(lambda x: (x @ x.mT).softmax(-1) @ x)
    assert "The nodes, before and after" in page.words
    before = page.words.partition("# before")[2].partition("# after")[0]
    assert before.index("operator.matmul") < before.index(".softmax(-1)") < before.rindex("operator.matmul")


def test_where_nothing_is_rewritten_there_is_no_after() -> None:
    (report,) = attnpass.explain(F.scaled_dot_product_attention, *[torch.randn(1, 1, 4, 8)] * 3)
    words = Page(to_html(report)).words
    assert "# as it is written" in words and "# after" not in words


def test_an_invented_machine_is_called_so() -> None:
    (report,) = attnpass.explain_on("a100", F.scaled_dot_product_attention, *[torch.randn(1, 1, 4, 8)] * 3)
    assert "invented machineNVIDIA A100, sm_80" in Page(to_html(report)).words


def test_equal_calls_stand_in_the_json_once() -> None:
    told = examples.video_model().to_dict()
    assert len(told["calls"]) == 40 and [call["group"] for call in told["calls"]] == [0] * 38 + [1] * 2
    assert len(told["groups"]) == 2
    assert calls_of(told)[39]["module"] == "blocks.20.cross" and "rejections" not in told["calls"][39]
    assert told["calls"][39]["refused"] == ["native_flash"] and "native_flash" in calls_of(told)[39]["rejections"]
    assert json.dumps(told).count('"rejections"') == 2


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
