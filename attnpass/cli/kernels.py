"""``attnpass kernels``: what each kernel can take, printed from its `Limits`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from typing import Any

from attnpass.cli.table import print_table
from attnpass.kernels.registry import registry
from attnpass.kernels.support_table import support_rows

WIDE = 140  # columns of a terminal in which the table stays legible
COLUMNS = ("name", "devices", "GPUs", "dtypes", "head dims", "Sq", "masks")
ABILITIES = ("GQA", "Dv != D", "dropout", "softcap", "backward", "deterministic")


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "kernels",
        help="what each kernel can take",
        description="Every registered kernel with its limits. `attnpass info` says which are usable on this machine.",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the support table, then what the names mean."""
    rows = [row for kernel in registry().values() for row in support_rows(kernel)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = [{column: row[column] for column in COLUMNS} | _abilities(row) for row in rows]
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:
        print("\n\n".join("\n".join(_as_block(row)) for row in table))
    else:
        print_table(table)
    print()
    names = {row["name"]: row for row in rows}.values()
    print_table([{"name": row["name"], "what it is": row["title"], "also accepted": row["aliases"]} for row in names])
    return 0


def _as_block(row: dict[str, str]) -> list[str]:
    """A row as lines, one for each column: where the table would be broken within its cells."""
    name, *columns = row
    return [row[name], *(f"  {column:9} {row[column]}" for column in columns)]


def _abilities(row: dict[str, str]) -> dict[str, str]:
    able = [ability for ability in ABILITIES if row[ability] == "yes"]
    return {"also": ", ".join(able) or "-", "exact": row["exact"]}
