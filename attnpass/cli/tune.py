"""``attnpass tune``: time the kernels for a model's calls ahead of time, and show what is known.

The outcomes are those that ``ATTNPASS_TUNE=1`` reads and adds to; each is one small file in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch

import attnpass
from attnpass.cli import model_file
from attnpass.cli.explain import HERE, find_machine
from attnpass.cli.setting import setting
from attnpass.cli.shape import add_shape, make_call
from attnpass.cli.table import print_table
from attnpass.errors import ConfigError
from attnpass.kernels.registry import libraries, registry
from attnpass.report.text import block
from attnpass.select.select import select
from attnpass.settings.config import Config
from attnpass.trials.cache import cache_folder
from attnpass.trials.trials import Trials, validator
from attnpass.trials.trials import tuner as tuner_of
from attnpass.trials.tuner import TUNED, Tuned, Tuner

TUNE = "ATTNPASS_TUNE"
EXAMPLE = "attnpass tune --shape 2,32,4096,128 --kv-shape 2,8,4096,128 --causal"


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "tune",
        help="time the kernels on this machine ahead of time, and show what is known",
        description="Times every exact kernel for one call, or for each call of a model, and remembers the fastest.",
        epilog=f"examples: {EXAMPLE}; attnpass tune --model model.py:net; attnpass tune --show",
    )
    command.add_argument("--model", metavar=model_file.METAVAR, help=model_file.HELP)
    command.add_argument("--show", action="store_true", help="print what was timed so far on any machine")
    add_shape(command, "a call, instead of a model")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Time, or show."""
    if sum((args.model is not None, args.shape is not None, args.show)) != 1:
        raise ConfigError(f"reading the command line: give one of --model, --shape and --show; for example: {EXAMPLE}")
    if args.show:
        return _show(args)
    return _tune_model(args) if args.model else _tune_shape(args)


def _tune_shape(args: argparse.Namespace) -> int:
    machine = find_machine(HERE, registry(), libraries())
    decision = select(make_call(args, machine), registry(), machine, Config())
    found = Trials(registry(), validator(Config.load())).candidates(decision, machine)
    tuned = _tuner().fastest(decision.call, found, machine)
    if tuned is None:
        names = ", ".join(candidate.kernel.name for candidate in found) or "no exact kernel"
        raise ConfigError(f"tuning {decision.call.text()}: needs two kernels that take it and may win, found {names}")
    row = _row(decision.call.text(), tuned)
    if args.json:
        print(json.dumps({**row, "ms": dict(tuned.ms), "failed": dict(tuned.failed)}, indent=1))
    else:
        print_table([row])
    return 0


def _tune_model(args: argparse.Namespace) -> int:
    tuner = _tuner()
    with setting(TUNE, "1"), torch.set_grad_enabled(args.training):
        reports = model_file.load_model(args.model).explained_by(attnpass.explain)
    if args.json:
        print(json.dumps([report.to_dict() for report in reports], indent=1))
        return 0
    for report in reports:
        print(block(report))
    kinds = "1 kind of call" if len(tuner.told) == 1 else f"{len(tuner.told)} kinds of call"
    print(f"{kinds}, {tuner.spent:.1f} s of timing")
    return 0


def _show(args: argparse.Namespace) -> int:
    known = TUNED.everything(cache_folder(Config.load().cache))
    if args.json:
        print(json.dumps([{**key, "winner": tuned.winner, "ms": dict(tuned.ms)} for key, tuned in known], indent=1))
        return 0
    rows = [{**_row(key["call"], tuned), "gpu": key["gpu"], "date": tuned.date[:10]} for key, tuned in known]
    print_table(rows)
    if not rows:
        print(f"nothing was timed yet; set {TUNE}=1, or for example: {EXAMPLE}")
    return 0


def _row(call: str, tuned: Tuned) -> dict[str, str]:
    return {"call": call, "fastest": tuned.winner, "times": str(tuned)}


def _tuner() -> Tuner:
    """The tuner that the pass asks too, without its limit: here somebody waits for nothing else."""
    config = Config.load({"attnpass.tune": "1"})
    tuner = tuner_of(config)
    assert tuner is not None
    tuner.in_all = math.inf
    return tuner
