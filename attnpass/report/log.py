"""Where attnpass logs. Loggers are called ``attnpass.<module>``, so ``TORCH_LOGS="+attnpass"`` works as for any module.

A library installs no handlers of its own, with one exception: a user who asks for ``ATTNPASS_LOG=info`` and has not set
up logging must see something. The handler for that steps back as soon as anybody else listens, so nothing is doubled.
"""

from __future__ import annotations

import logging
import sys
from itertools import chain

from attnpass.errors import ISSUES_HINT
from attnpass.report.record import Report
from attnpass.report.text import advice, block, debug_text, headline, no_calls_warning, unmatched_text, why
from attnpass.settings.config import LOG_LEVELS, unknown_variables

ROOT = logging.getLogger("attnpass")
logger = logging.getLogger(__name__)

_level_set_here: int | None = None
_calls_seen = False
_warned = False
_globs_said: set[str] = set()
_advised: set[str] = set()


class _Stderr(logging.Handler):
    """Prints bare messages on stderr, unless a handler of somebody else's gets the record as well."""

    def emit(self, record: logging.LogRecord) -> None:
        others = ROOT.handlers if not ROOT.propagate else chain(ROOT.handlers, logging.getLogger().handlers)
        if any(handler is not self for handler in others):
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure(level: str) -> None:
    """Make the setting ``ATTNPASS_LOG`` take effect. May be called for every graph.

    Args:
        level: ``warning``, ``info`` or ``debug``. ``warning``, the default, takes back what an earlier call set, and
            never touches a level that somebody else set.
    """
    global _level_set_here
    wanted = LOG_LEVELS[level]
    if ROOT.level not in (logging.NOTSET, _level_set_here):
        wanted = min(wanted, ROOT.level)  # TORCH_LOGS or the program asked for more
    elif wanted == logging.WARNING:
        wanted = logging.NOTSET
    if wanted == ROOT.level:
        return
    ROOT.setLevel(wanted)
    _level_set_here = wanted
    if not any(isinstance(handler, _Stderr) for handler in ROOT.handlers):
        ROOT.addHandler(_Stderr())


def emit_report(report: Report) -> None:
    """Tell one report: the block at INFO, everything at DEBUG, and the artifacts that ``tlparse`` lists.

    The first graph without a call, in a process that has had none with one, is a WARNING: silence would leave the user
    guessing. Nothing is rendered that nobody listens to, and a rendering that fails does not break the program.
    """
    try:
        _tell(report)
        _trace(report)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        logger.warning("attnpass: telling the report of graph %s failed with %s; %s", report.graph, text, ISSUES_HINT)


def _tell(report: Report) -> None:
    global _calls_seen, _warned
    if _warned and report.decisions and not _calls_seen:
        logger.warning("attnpass graph %s has attention calls after all: %s", report.graph, headline(report))
    _calls_seen = _calls_seen or bool(report.decisions)
    if not (_calls_seen or _warned or report.error):
        _warned = True
        logger.warning("%s", no_calls_warning(report))
    elif logger.isEnabledFor(logging.INFO):
        logger.info("%s", "\n".join([block(report), *_fresh_advice(report)]))
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", debug_text(report))
    _warn_of_unmatched_modules(report)
    _warn_of_other_kernels(report)


def _warn_of_other_kernels(report: Report) -> None:
    """A file of decisions that cannot be kept to is said, each call once in a process; so is a call that it lacks."""
    locked = report.config.decisions
    for decision in report.decisions if locked is not None else ():
        wanted = locked.kernel_of(decision.call) if locked is not None else None
        place = decision.call.module or decision.call.node
        if wanted is None:
            say_once(f"attnpass: {locked} has no entry for {place}: {decision.call.text()}; it gets {decision.kernel}")
        elif wanted != decision.kernel:
            reasons = "; ".join(map(str, decision.rejections(wanted))) or why(decision)
            say_once(f"attnpass: {locked} names {wanted} for {place}, which gets {decision.kernel}: {reasons}")


def _fresh_advice(report: Report) -> list[str]:
    """What would be worth installing, each library once in a process."""
    fresh = {kernel: text for kernel, text in advice(report).items() if kernel not in _advised}
    _advised.update(fresh)
    return [f"  {text}" for text in fresh.values()]


def _warn_of_unmatched_modules(report: Report) -> None:
    """A typing mistake in a module pattern must not be silent; a pattern for another model is said once at most."""
    globs = report.config.kernel.unmatched(()) if report.decisions else ()
    fresh = set(report.unmatched) - _globs_said
    _globs_said.update(globs)
    if fresh:
        logger.warning("attnpass graph %s, %s: %s", report.graph, report.config.kernel_origin, unmatched_text(report))


def _trace(report: Report) -> None:
    from torch._logging._internal import trace_structured

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "attnpass_report", "encoding": "json"},
        payload_fn=report.to_json,
        expect_trace_id=False,
    )
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "attnpass_report_text", "encoding": "string"},
        payload_fn=lambda: debug_text(report),
        expect_trace_id=False,
    )


_said: set[str] = set()


def say_unknown_variables() -> None:
    """Warn of each ``ATTNPASS_*`` variable that is no setting."""
    for message in unknown_variables():
        say_once(f"attnpass: {message}")


def say_once(message: str) -> None:
    """Warn, once in a process."""
    if message not in _said:
        _said.add(message)
        logger.warning("%s", message)
