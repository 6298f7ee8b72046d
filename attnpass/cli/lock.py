"""``attnpass lock``: write which kernel computes which call, to hold another process to it; compare two such files."""

from __future__ import annotations

import argparse
import json
from typing import Any

import attnpass
from attnpass.cli import model_file
from attnpass.cli.explain import add_machine, explained
from attnpass.cli.table import print_table
from attnpass.errors import ConfigError
from attnpass.report.groups import counted
from attnpass.settings.decisions import DecisionsError, differences, load

EXAMPLE = "attnpass lock model.py --out decisions.json"


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "lock",
        help="write which kernel computes which call, to hold another process to it",
        description="ATTNPASS_DECISIONS=FILE gives each call the kernel that the file names. "
        "`attnpass.lock(FILE)` writes what a running program was given.",
        epilog=f"examples: {EXAMPLE}; attnpass lock --diff yesterday.json today.json",
    )
    command.add_argument("file", nargs="?", metavar=model_file.METAVAR, help=model_file.HELP)
    command.add_argument("--out", metavar="FILE", default="decisions.json", help="default: decisions.json")
    add_machine(command)
    command.add_argument("--diff", nargs=2, metavar=("BEFORE", "AFTER"), help="what differs between two files")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write a file, or compare two; exit code 1 where they differ."""
    if (args.file is None) == (args.diff is None):
        raise ConfigError(f"reading the command line: give either FILE.py or --diff; for example: {EXAMPLE}")
    return _diff(args) if args.file is None else _write(args)


def _write(args: argparse.Namespace) -> int:
    reports = explained(args)
    calls = [decision for report in reports for decision in report.decisions]
    try:
        path = attnpass.lock(args.out, reports)
    except OSError as error:
        raise ConfigError(f"writing {args.out}: {error.strerror}") from error
    if args.json:
        print(path.read_text(encoding="utf-8"))
    else:
        print(f"{path}: {counted(len(calls), 'call')}; ATTNPASS_DECISIONS={path} holds a program to it")
    return 0


def _diff(args: argparse.Namespace) -> int:
    try:
        found = differences(*map(load, args.diff))
    except DecisionsError as error:
        raise ConfigError(f"comparing decisions: {error}") from None
    if args.json:
        print(json.dumps([{"call": call, "before": one, "after": other} for call, one, other in found], indent=1))
    elif found:
        print_table([{"before": one or "-", "after": other or "-", "call": call} for call, one, other in found])
    else:
        print("the same kernels for the same calls")
    return 1 if found else 0
