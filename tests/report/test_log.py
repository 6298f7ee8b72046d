"""Who gets to hear what, and that nothing is said twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch._logging import _internal as torch_logging

from attnpass.report import log
from attnpass.report.record import Report
from tests.helpers import report_examples as examples


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not logged yet."""
    root = log.ROOT
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    root.setLevel(logging.NOTSET)
    for name, value in (("_level_set_here", None), ("_calls_seen", False), ("_warned", False)):
        monkeypatch.setattr(log, name, value)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Our records, without PyTorch's trace."""
    return [record for record in caplog.records if record.name.startswith("attnpass")]


@contextmanager
def nobody_listening() -> Iterator[None]:
    """A program that has not set up logging; pytest has."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers


def test_warning_leaves_logging_alone():
    log.configure("warning")
    assert log.ROOT.level == logging.NOTSET
    assert log.ROOT.handlers == []


def test_info_reaches_stderr_once_without_any_setup(capsys: pytest.CaptureFixture[str]):
    with nobody_listening():
        for level in ("info", "debug", "info"):
            log.configure(level)
        log.emit_report(examples.video_model())
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("attnpass graph 0: 40 attention calls")
    assert err.count("attnpass graph 0") == 1
    assert len(log.ROOT.handlers) == 1


def test_a_programs_own_logging_is_not_doubled(capsys: pytest.CaptureFixture[str]):
    with nobody_listening():
        log.configure("info")
        own = logging.StreamHandler()
        own.setFormatter(logging.Formatter("own: %(message)s"))
        logging.getLogger().addHandler(own)
        log.logger.info("hello")
    assert capsys.readouterr().err == "own: hello\n"


def test_a_handler_on_our_logger_is_not_doubled(capsys: pytest.CaptureFixture[str]):
    with nobody_listening():
        log.ROOT.addHandler(logging.StreamHandler())  # as TORCH_LOGS="+attnpass" does
        log.configure("info")
        log.logger.info("hello")
    assert capsys.readouterr().err == "hello\n"


def test_going_back_to_warning_takes_back_what_was_set():
    log.configure("debug")
    assert log.ROOT.level == logging.DEBUG
    log.configure("warning")
    assert log.ROOT.level == logging.NOTSET


def test_a_lower_level_that_somebody_else_set_stays():
    log.ROOT.setLevel(logging.DEBUG)
    log.configure("info")
    log.configure("warning")
    assert log.ROOT.level == logging.DEBUG


def test_the_block_is_info_and_the_rest_is_debug(caplog: pytest.LogCaptureFixture):
    log.configure("debug")
    log.emit_report(examples.video_model())
    block, everything = ours(caplog)
    assert (block.levelname, everything.levelname) == ("INFO", "DEBUG")
    assert block.name == "attnpass.report.log"
    assert "the code before the pass" in everything.getMessage()


def test_the_first_graph_without_calls_warns_once(caplog: pytest.LogCaptureFixture):
    for graph in range(3):
        log.emit_report(examples.report(graph=graph))
    assert [record.levelname for record in ours(caplog)] == ["WARNING"]
    assert ours(caplog)[0].getMessage().startswith("attnpass graph 0: no attention call")


def test_no_warning_after_a_graph_with_calls_or_a_failed_pass(caplog: pytest.LogCaptureFixture):
    log.emit_report(examples.report(error="boom"))
    log.emit_report(examples.video_model())
    log.emit_report(examples.report())
    assert ours(caplog) == []


def test_nothing_is_rendered_that_nobody_listens_to(monkeypatch: pytest.MonkeyPatch):
    rendered: list[object] = []
    for where, name in ((log, "block"), (log, "debug_text"), (Report, "to_json")):
        monkeypatch.setattr(where, name, rendered.append)
    monkeypatch.setattr(torch_logging.trace_log, "handlers", [])
    log.emit_report(examples.video_model())
    assert rendered == []


def test_a_rendering_that_fails_is_said_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(report: object) -> str:
        raise ValueError("boom")

    monkeypatch.setattr(log, "block", broken)
    log.configure("info")
    log.emit_report(examples.video_model())
    assert "telling the report of graph 0 failed with ValueError: boom" in caplog.text


def test_the_trace_gets_two_artifacts(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[dict[str, str], str]] = []

    def record(
        name: str, metadata_fn: Callable[[], dict[str, str]], payload_fn: Callable[[], str], **_: object
    ) -> None:
        assert name == "artifact"
        seen.append((metadata_fn(), payload_fn()))

    monkeypatch.setattr(torch_logging, "trace_structured", record)
    log.emit_report(examples.video_model())
    (json_meta, json_text), (text_meta, text) = seen
    assert json_meta == {"name": "attnpass_report", "encoding": "json"}
    assert len(json.loads(json_text)["calls"]) == 40
    assert text_meta == {"name": "attnpass_report_text", "encoding": "string"}
    assert text.startswith("attnpass graph 0")
