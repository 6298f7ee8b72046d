"""The command line: ``attnpass info | kernels | explain | tune | lock | demo``, each with ``--json``.

Exit codes: 0 fine, 1 the demo found a wrong result or two files differ, 2 the user can mend it (one line on stderr
says how).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import attnpass
from attnpass.cli import demo, explain, info, kernels, lock, tune
from attnpass.errors import AttnpassError

COMMANDS = (info, kernels, explain, tune, lock, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    args = parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except AttnpassError as error:
        print(f"attnpass {args.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return code


def parser() -> argparse.ArgumentParser:
    """All commands with their arguments."""
    top = argparse.ArgumentParser(
        prog="attnpass", description="Which attention kernels can be used here, which call gets which, and why."
    )
    top.add_argument("--version", action="version", version=f"attnpass {attnpass.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for module in COMMANDS:
        module.add_command(commands)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return top
