"""Tables on a terminal (rich: colours, wrapped to the window) and in a pipe (plain, aligned, one line a row)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from attnpass.report.text import aligned

STYLES = {"yes": "green", "no": "dim", "takes it": "green", "WRONG": "bold red"}


def print_table(rows: Sequence[Mapping[str, str]], title: str = "") -> None:
    """Print rows that all have the same keys, which are the column heads."""
    if title:
        print(title)
    if not rows:
        return
    if sys.stdout.isatty():
        _print_rich(rows)
    else:
        print("\n".join(plain(rows)))


def plain(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The table as lines, with the heads in the first."""
    return aligned([list(rows[0]), *(list(row.values()) for row in rows)])


def _print_rich(rows: Sequence[Mapping[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold underline")
    for number, head in enumerate(rows[0]):
        table.add_column(Text(head), style="cyan" if number == 0 else None, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row.values()))
    Console(highlight=False).print(table)
