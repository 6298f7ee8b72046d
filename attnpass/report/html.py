"""The report as one self-contained HTML page: opens offline, loads nothing, runs no script."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import torch

from attnpass.report.groups import counted, group_calls, group_misses, short_source, told_answers
from attnpass.report.record import RENDERINGS, Report
from attnpass.report.text import advice, expected, mask_text, skipped_text, unmatched_text, verdict, why
from attnpass.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = "page.html.j2"


def to_html(report: Report) -> str:
    """Render the page. Everything that comes from the user's program is escaped."""
    from jinja2 import Environment, StrictUndefined

    template = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(
        report=report,
        summary=_summary(report),
        groups=group_calls(report, every_answer=True),
        misses=group_misses(report.near_misses),
        settings=report.config.rows(),
        libraries=_libraries(report),
        data=_embedded(report),
        version=__version__,
        torch_version=str(torch.__version__),
        breakable=_breakable,
        counted=counted,
        told=[text for text in (expected(report), *advice(report).values()) if text],
        mask_text=mask_text,
        short_source=short_source,
        skipped_text=skipped_text,
        told_answers=told_answers,
        unmatched=unmatched_text(report),
        verdict=verdict,
        why=why,
    )


def _summary(report: Report) -> str:
    """One sentence: what happened in this graph."""
    calls = len(report.decisions)
    if report.error:
        return "The pass failed, and the graph runs as it was."
    if not calls:
        return f"No attention call was found among {counted(report.nodes, 'node')}."
    if report.kept == 0:
        return (
            f"All {counted(calls, 'attention call')} rewritten." if calls > 1 else "The attention call was rewritten."
        )
    stay = "stays as it is" if report.kept == 1 else "stay as they are"
    return f"{report.rewritten} of {counted(calls, 'attention call')} rewritten; {report.kept} {stay}."


def _breakable(text: str) -> Markup:
    """A dotted name or a path, escaped, that a narrow column breaks behind a dot or a slash and not within a word."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[./,_])(?=[\w*\[])", text))


def _libraries(report: Report) -> list[str]:
    """Every library that some machine of the report knows a version of."""
    return sorted({name for machine in report.machines.values() for name in (*machine.versions, *machine.unusable)})


def _embedded(report: Report) -> Markup:
    """The JSON form, safe inside a script element: no ``<`` can end it, and no entity can change it."""
    from markupsafe import Markup

    text = report.to_json(indent=None)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


RENDERINGS["html"] = to_html
