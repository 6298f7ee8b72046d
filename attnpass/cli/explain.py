"""``attnpass explain``: which kernel takes a call, and why the others do not. Nothing is compiled or rewritten.

Two questions: a shape (``--shape 2,24,4096,128``; no model and not even the machine is needed), or a Python file that
makes a model and its inputs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import attnpass
from attnpass.cli import model_file
from attnpass.cli.info import devices, machine_name
from attnpass.cli.setting import setting
from attnpass.cli.shape import add_shape, make_call
from attnpass.cli.table import print_table
from attnpass.errors import ConfigError
from attnpass.ir.decision import AUTO
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.registry import libraries, registry_for
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine
from attnpass.report.groups import group_calls, status
from attnpass.report.record import Report
from attnpass.report.text import (
    advice,
    answered,
    block,
    elsewhere_text,
    group_lines,
    skipped_text,
    split_by_device,
    why,
)
from attnpass.select.machines import invented
from attnpass.select.select import select
from attnpass.select.wishes import resolve_policy, with_hint
from attnpass.settings.config import KERNEL, Config

HERE = "here"
INVENTED = "(an invented machine, on which the library of every kernel is installed)"
ARGUMENT = "--kernel"
EXAMPLE = "attnpass explain --shape 2,24,4096,128 --dtype bf16 --machine h100"


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "explain",
        help="which kernel takes a call, and why the others do not",
        description="Answers for one shape, without a model, or for every attention call of a model in a Python file.",
        epilog=f"examples: {EXAMPLE}; attnpass explain model.py:net --machine a100",
    )
    command.add_argument("file", nargs="?", metavar=model_file.METAVAR, help=model_file.HELP)
    add_shape(command, "a call, instead of a file")
    add_machine(command)
    command.add_argument(ARGUMENT, metavar="WISH", help="as in ATTNPASS_KERNEL, which it overrides")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer for a file or for a shape."""
    if (args.file is None) == (args.shape is None):
        raise ConfigError(f"reading the command line: give either FILE.py or --shape; for example: {EXAMPLE}")
    return _explain_shape(args) if args.file is None else _explain_file(args)


def _explain_shape(args: argparse.Namespace) -> int:
    with setting(KERNEL, args.kernel, ARGUMENT):
        config = Config.load()
    kernels = registry_for(config.wishes, config.trust_remote_code)
    config, _ = with_hint(config, kernels)
    named = set(resolve_policy(config.kernel, kernels, config.kernel_origin)) - {AUTO}
    machine = find_machine(args.machine, kernels, {kernels[name].limits.library for name in named})
    decision = select(make_call(args, machine), kernels, machine, config)
    if args.json:
        report = Report(graph=0, config=config, machines={decision.call.device: machine}, decisions=(decision,))
        print(report.to_json())
        return 0
    print(f"{decision.call.text()}, on {machine_name(machine.to_dict())}")
    if args.machine != HERE:
        print(INVENTED)
    print(f"{config.kernel} -> {status(decision)}: {why(decision)}")
    print("".join(f"{skipped_text(each)}\n" for each in decision.skipped))
    chosen = {decision.kernel: " (chosen)"}
    here, elsewhere = split_by_device(decision)
    print_table([{"kernel": t.kernel, "answer": answered(decision, t) + chosen.get(t.kernel, "")} for t in here])
    if elsewhere:
        print(elsewhere_text(elsewhere))
    return 0


def _explain_file(args: argparse.Namespace) -> int:
    with setting(KERNEL, args.kernel, ARGUMENT):
        config = Config.load()  # a bad name is an error before the model is loaded
        resolve_policy(config.kernel, registry_for(config.kernel.wishes), config.kernel_origin)
        reports = explained(args)
    if args.json:
        print(json.dumps([report.to_dict() for report in reports], indent=1))
        return 0
    machine = "" if args.machine == HERE else machine_name(invented(args.machine, registry_for(())).to_dict())
    if machine:
        print(f"on {machine}\n{INVENTED}")
    for report in reports:
        print("\n".join([block(report), *(f"  {text}" for text in advice(report).values())]))
        for group in group_calls(report, every_answer=True):
            print("\n".join(group_lines(group, machine)))
    if not reports:
        print(f"{args.file}: nothing was captured, so there is no graph to look at")
    return 0


def add_machine(command: argparse.ArgumentParser) -> None:
    """Declare ``--machine``."""
    machines = (HERE, *KNOWN_MACHINES)
    command.add_argument("--machine", choices=machines, default=HERE, help="where it would run; default: here")


def explained(args: argparse.Namespace) -> list[Report]:
    """What the model in ``args.file`` would get on ``args.machine``."""
    there = attnpass.explain if args.machine == HERE else partial(attnpass.explain_on, args.machine)
    return model_file.load_model(args.file).explained_by(there)


def find_machine(name: str, kernels: Mapping[str, Kernel], wished: Iterable[Library]) -> Machine:
    """The machine that is asked about: ``here`` with the libraries in ``wished`` looked into, or an invented one."""
    if name == HERE:
        return Machine.look(devices()[0], libraries(kernels), wished)
    return invented(name, kernels, wished)
