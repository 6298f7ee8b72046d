"""The facts that every result line carries, and the file that they go into."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import ROOT

LIBRARIES = (
    "triton",
    "transformers",
    "diffusers",
    "timm",
    "torchvision",
    "flash-attn",
    "flash-attn-4",
    "tokenspeed-fa3",
)
LIBRARIES += ("sageattention", "xformers")
COMMIT_VARIABLE = "BENCHMARK_COMMIT"  # for a copy of the sources without their repository


def facts(device: str) -> dict[str, Any]:
    """Hardware, versions, commit and date."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: version for name in LIBRARIES if (version := _version(name))},
    }


def append(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Add one line of JSON. One write, so that lines of several processes do not mix."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_json(record), allow_nan=False, default=str) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def commit() -> str:
    """The commit of these sources, with ``+`` if they differ from it; "" if unknown."""
    given = os.environ.get(COMMIT_VARIABLE)
    if given:
        return given
    head = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "--", "attnpass") if head else ""
    return f"{head}+" if changed else head


def _json(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    if isinstance(value, dict):
        return {key: _json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def hardware(device: str) -> dict[str, Any]:
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return {
            "gpu": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        }
    return {
        "cpu": f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}",
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
