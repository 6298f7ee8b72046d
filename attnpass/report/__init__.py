"""What happened, told: the record (data), and its renderings as text, JSON and HTML."""

from attnpass.find.found import NearMiss
from attnpass.report.files import to_json, write
from attnpass.report.html import to_html
from attnpass.report.record import Report
from attnpass.report.text import block, debug_text, no_calls_warning, unmatched_text

__all__ = [
    "NearMiss",
    "Report",
    "block",
    "debug_text",
    "no_calls_warning",
    "to_html",
    "to_json",
    "unmatched_text",
    "write",
]
