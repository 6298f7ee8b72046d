"""``attnpass info``: this machine, its versions, which kernels are usable here, and the settings in force.

Every probe is guarded: a probe that fails becomes a value, and the rest is still printed. So the output is what to
paste into a bug report.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

import attnpass
from attnpass.cli.table import print_table
from attnpass.errors import ConfigError
from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import NATIVE
from attnpass.ir.limits import Code
from attnpass.kernels.registry import libraries, registry
from attnpass.machine.library import Library
from attnpass.machine.machine import Machine
from attnpass.select.select import select
from attnpass.settings.config import Config, unknown_variables
from attnpass.settings.policy import Policy
from attnpass.trials.cache import cache_folder
from attnpass.trials.tuner import TUNED
from attnpass.trials.validate import VERDICTS

COMPANIONS = (Library("triton"), Library("transformers"), Library("diffusers"))
MACHINE_CODES = {Code.LIBRARY, Code.DEVICE, Code.CAPABILITY, Code.DISABLED, Code.DETERMINISTIC}


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "info",
        help="this machine, which kernels are usable on it, the settings in force",
        description="Versions, devices, which kernels are usable on this machine and why the others are not, settings.",
    )
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print everything that a bug report needs."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _print(facts)
    return 0


def collect() -> dict[str, Any]:
    """All facts, as JSON would have them."""
    needed = libraries(registry())
    everything = {*needed, *COMPANIONS}
    machines = {str(device): Machine.look(device, everything, needed) for device in devices()}
    packages = sorted({library.key for library in everything})
    problems, config = unknown_variables(), Config()
    settings: list[tuple[str, str, str]] = []
    try:
        config = Config.load()
        settings = config.rows()
    except ConfigError as error:
        problems.append(str(error))
    folder = cache_folder(config.cache)
    return {
        "attnpass": attnpass.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "libraries": {package: _version(package, machines) for package in packages},
        "machines": {device: machine.to_dict() for device, machine in machines.items()},
        "kernels": {device: usable(torch.device(device), machines[device]) for device in machines},
        "settings": [{"name": name, "value": value, "from": origin} for name, value, origin in settings],
        "verdicts": [{**key, **asdict(verdict)} for key, verdict in VERDICTS.everything(folder)],
        "tuned": len(TUNED.everything(folder)),
        "problems": problems,
    }


def devices() -> list[torch.device]:
    """Every device that this PyTorch can use, accelerators first."""
    found: list[torch.device] = []
    try:
        current = torch.accelerator.current_accelerator(check_available=True)
        if current is not None:
            found = [torch.device(current.type, index) for index in range(torch.accelerator.device_count())]
    except RuntimeError:
        pass  # a driver that is there but does not answer
    return [*found, torch.device("cpu")]


def usable(device: torch.device, machine: Machine) -> dict[str, list[str]]:
    """For each kernel what this machine itself has against it; nothing means that it is usable here."""
    call = _easy_call(device)
    decision = select(call, registry(), machine, Config(kernel=Policy(default=(NATIVE,))))
    return {
        answer.kernel: [str(reason) for reason in answer.rejections if reason.code in MACHINE_CODES]
        for answer in decision.answers
    }


def machine_name(machine: Mapping[str, Any]) -> str:
    """``"NVIDIA H100, sm_90"``, ``"CPU with AVX512"``."""
    if machine["kind"] == "cpu":
        return f"CPU with {machine['name']}"
    return ", ".join(fact for fact in (machine["name"], machine["capability"]) if fact) or str(machine["kind"])


def _easy_call(device: torch.device) -> AttentionCall:
    """A call that is easy for every kernel, so that what is refused is refused because of the machine."""
    spec = TensorSpec((1, 8, 512, 64), (8 * 512 * 64, 512 * 64, 64, 1), torch.float16, device)
    return AttentionCall(q=spec, k=spec, v=spec, out=spec)


def _version(package: str, machines: Mapping[str, Machine]) -> str:
    versions = (machine.versions.get(package) for machine in machines.values())
    return next((version for version in versions if version), "-")


def _print(facts: Mapping[str, Any]) -> None:
    keys = ("attnpass", "python", "platform", "cuda", "hip")
    lines = {key: facts[key] or "-" for key in keys} | facts["libraries"]
    width = max(map(len, lines))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in lines.items()))
    for device, machine in facts["machines"].items():
        print()
        rows = [
            {"kernel": kernel, "usable": "no" if reasons else "yes", "why not": "; ".join(reasons) or "-"}
            for kernel, reasons in facts["kernels"][device].items()
        ]
        print_table(rows, title=f"Kernels on {device}: {machine_name(machine)}")
    print()
    print_table(facts["settings"], title="Settings")
    if facts["verdicts"]:
        print()
        rows = [
            {
                "kernel": tried["kernel"],
                "library": tried["library"],
                "GPU": tried["gpu"],
                "verdict": "proved" if tried["good"] else "WRONG",
                "trial": tried["text"],
                "date": tried["date"],
            }
            for tried in facts["verdicts"]
        ]
        print_table(rows, title="Kernels that were tried on this machine")
    if facts["tuned"]:
        print(f"\n{facts['tuned']} kinds of call were timed; `attnpass tune --show` lists them")
    for problem in facts["problems"]:
        print(f"problem: {problem}")
