"""The report of one graph as a self-contained HTML page: opens offline, loads nothing, runs no script."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch

from attnpass.graph.lines import line
from attnpass.ir.decision import Decision
from attnpass.ir.limits import Code
from attnpass.report.groups import counted, group_calls, group_misses, short_source, told_answers
from attnpass.report.pages.docs import reasons
from attnpass.report.pages.mask_picture import picture, to_svg
from attnpass.report.record import RENDERINGS, Report
from attnpass.report.text import advice, expected, mask_text, skipped_text, unmatched_text, verdict, why
from attnpass.version import __version__

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE, STYLE = "graph.html.j2", "style.css"


def to_html(report: Report) -> str:
    """Render the page. Everything that comes from the user's program is escaped."""
    return rendered(
        TEMPLATE,
        report=report,
        summary=summary(report),
        groups=group_calls(report, every_answer=True),
        misses=group_misses(report.near_misses),
        settings=report.config.rows(),
        libraries=_libraries(report),
        data=_embedded(report),
        told=[text for text in (expected(report), *advice(report).values()) if text],
        mask_picture=_mask_picture,
        mask_text=mask_text,
        line=line,
        skipped_text=skipped_text,
        told_answers=told_answers,
        unmatched=unmatched_text(report),
        verdict=verdict,
        why=why,
    )


def rendered(template: str, **values: Any) -> str:
    """A page made from a template of this folder."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text, style = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in (template, STYLE))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text).render(
        style=Markup(style),
        version=__version__,
        torch_version=str(torch.__version__),
        breakable=_breakable,
        counted=counted,
        meanings={code.value: code.meaning for code in Code},
        reasons=reasons(),
        short_source=short_source,
        **values,
    )


def summary(report: Report) -> str:
    """One sentence: what happened in this graph, and whether there was almost more."""
    calls, places = len(report.decisions), len(report.near_misses)
    if report.error:
        return "The pass failed, and the graph runs as it was."
    almost = f"; {counted(places, 'place')} {'is' if places == 1 else 'are'} almost attention" if places else ""
    if not calls:
        return f"No attention call was found among {counted(report.nodes, 'node')}{almost}."
    if report.kept == 0:
        found = f"All {counted(calls, 'attention call')} rewritten" if calls > 1 else "The attention call was rewritten"
        return f"{found}{almost}."
    stay = "stays as it is" if report.kept == 1 else "stay as they are"
    return f"{report.rewritten} of {counted(calls, 'attention call')} rewritten; {report.kept} {stay}{almost}."


def _mask_picture(decision: Decision) -> Markup | None:
    drawn = picture(decision)
    return None if drawn is None else to_svg(drawn)


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
