"""The machine, as data. This is the only file that looks at it; everything else receives a `Machine`.

So selection is a pure function, and a test (or ``attnpass explain --machine h100``) can invent any machine on a laptop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from attnpass.machine import library
from attnpass.machine.library import Build, Library

DRIVERS = {"cuda": "/proc/driver/nvidia/version", "rocm": "/sys/module/amdgpu/version"}
SDP_BACKENDS = ("flash", "efficient", "math", "cudnn")
LITTLE_SHARED_MEMORY = (86, 89, 120, 121)  # NVIDIA generations on which FlashAttention-2's backward is short of it


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about one device and its software.

    Attributes:
        kind: ``cuda`` (NVIDIA), ``rocm``, ``cpu``, ``npu``, ``tpu``, ``xpu``, ``mps``.
        name: what the device calls itself, such as ``NVIDIA H100 80GB HBM3``.
        capability: ``sm_90``, ``gfx942``, or "" where it has no meaning or is unknown.
        versions: version of PyTorch and of each kernel library (by `Library.key`); one that is not there is missing.
        unusable: for a library that is there but broken, what importing it said.
        builds: for each library that was imported, what was compiled into its build.
        driver: the GPU driver's version, "" if unknown.
        cudnn: cuDNN's version as PyTorch counts it (91900 is 9.19.0), None without cuDNN.
        sdp_enabled: PyTorch's SDPA backends that are switched on in this process (`SDP_BACKENDS` by default).
        deterministic: is ``torch.use_deterministic_algorithms(True)`` in force?
        cuda_graphs: will the compiled program replay its launches from CUDA graphs? Their time on the host does not
            count then.
    """

    kind: str
    name: str = ""
    capability: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    builds: Mapping[str, Build] = field(default_factory=dict)
    driver: str = ""
    cudnn: int | None = None
    sdp_enabled: frozenset[str] = frozenset(SDP_BACKENDS)
    deterministic: bool = False
    cuda_graphs: bool = False

    @classmethod
    def look(cls, device: torch.device, libraries: Iterable[Library] = (), imported: Iterable[Library] = ()) -> Machine:
        """Read the facts about ``device``. A probe that fails becomes a value, never an exception.

        Args:
            device: the device.
            libraries: whose versions are read.
            imported: those of them that are imported too, to see whether they work and what is in the build.
        """
        kind, name, capability = _device_facts(device.type, device.index or 0)
        found = library.look((one for one in libraries if one is not library.PYTORCH), imported)
        versions = {one.key: there.version for one, there in found.items() if there.version}
        return cls(
            kind=kind,
            name=name,
            capability=capability,
            versions={"torch": str(torch.__version__), **versions},
            unusable={one.key: there.problem for one, there in found.items() if there.problem},
            builds={one.key: there.build for one, there in found.items() if there.build},
            driver=_driver(kind),
            cudnn=torch.backends.cudnn.version() if kind == "cuda" else None,
            sdp_enabled=sdp_enabled(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )

    def is_between(self, low: str, high: str) -> bool:
        """Is this GPU's generation in the inclusive range, such as ``("sm_80", "sm_121")``?"""
        here = sm_number(self.capability)
        return here is not None and (sm_number(low) or 0) <= here <= (sm_number(high) or 0)

    def library_problem(self, library: Library) -> str:
        """Why the library cannot be used here: not installed, its too old version, the import error; "" if fine."""
        return self.unusable.get(library.key) or library.version_problem(self.versions.get(library.key))

    def has_built(self, library: Library, feature: str) -> bool:
        """Was ``feature`` compiled into this build of the library? True where that is not known."""
        return self.builds.get(library.key, {}).get(feature, True)

    def user_choice(self) -> str:
        """Did the program around us already choose a backend with ``sdpa_kernel``? Its choice in words, or "".

        A list without ``math``, or ``math`` alone, is a choice; one fast backend switched off is only a restriction.
        """
        if "math" in self.sdp_enabled and len(self.sdp_enabled) > 1:
            return ""
        return ", ".join(sorted(self.sdp_enabled)) or "no backend"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "sdp_enabled": sorted(self.sdp_enabled)}


SWITCHES = {  # SDPBackend -> its name in `Machine.sdp_enabled`, and what asks for its switch in torch.backends.cuda
    "FLASH_ATTENTION": ("flash", "flash_sdp_enabled"),
    "EFFICIENT_ATTENTION": ("efficient", "mem_efficient_sdp_enabled"),
    "MATH": ("math", "math_sdp_enabled"),
    "CUDNN_ATTENTION": ("cudnn", "cudnn_sdp_enabled"),
}


def sdp_enabled() -> frozenset[str]:
    """PyTorch's SDPA backends that are switched on in this process."""
    return frozenset(name for name, switch in SWITCHES.values() if getattr(torch.backends.cuda, switch)())


def sm_number(capability: str) -> int | None:
    """``"sm_90"`` -> 90, ``"sm_121"`` -> 121; None for anything else."""
    digits = capability.removeprefix("sm_")
    return int(digits) if digits != capability and digits.isdigit() else None


@cache
def _device_facts(kind: str, index: int) -> tuple[str, str, str]:
    """Kind, name and capability. Guarded: a CPU-only PyTorch meets cuda tensors when it traces with fake ones."""
    if kind == "cuda":
        try:
            properties = torch.cuda.get_device_properties(index)
        except (AssertionError, RuntimeError):
            return "cuda", "", ""
        if torch.version.hip is not None:
            return "rocm", properties.name, properties.gcnArchName.split(":")[0]
        return "cuda", properties.name, f"sm_{properties.major}{properties.minor}"
    if kind == "cpu":
        return "cpu", torch.backends.cpu.get_cpu_capability(), ""
    return ("tpu" if kind == "xla" else kind), "", ""


@cache
def _driver(kind: str) -> str:
    """``580.159.04``; as the kernel module says it, which costs no process and no driver call."""
    try:
        text = Path(DRIVERS.get(kind, "")).read_text(encoding="utf-8")
    except OSError:
        return ""
    numbers = re.findall(r"\d+(?:\.\d+)+", text)
    return numbers[0] if numbers else ""


Machines = Mapping[torch.device, Machine]
