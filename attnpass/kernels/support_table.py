"""A kernel's limits in words: one row of the support table, in the docs and in ``attnpass kernels``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from attnpass.graph.tensor import dtype_name
from attnpass.ir.limits import ALL_FLOATS, Limits
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine

VERIFIED = Path(__file__).with_name("verified.json")
MANY = 6  # kinds of machine: a kernel that runs on more runs anywhere


def support_rows(kernel: Kernel) -> list[dict[str, str]]:
    """One row for each set of limits that the kernel has: some differ between kinds of machine."""
    kinds: dict[Limits, list[str]] = {}
    for kind in sorted(kernel.limits.devices):
        kinds.setdefault(kernel.limits_for(Machine(kind)), []).append(kind)
    return [
        limits_row(kernel, Machine(same[0]))
        | {"devices": _devices(same), "GPUs": _gpus(limits, same), "verified on": _verified(kernel.name, same)}
        for limits, same in kinds.items()
    ]


def limits_row(kernel: Kernel, machine: Machine | None = None) -> dict[str, str]:
    """Everything that a kernel promises, in words.

    Args:
        kernel: the kernel.
        machine: the machine that the limits are asked for; without one, those of the class.
    """
    limits = kernel.limits if machine is None else kernel.limits_for(machine)
    return {
        "name": kernel.name,
        "title": kernel.title,
        "library": str(limits.library),
        "devices": _devices(limits.devices),
        "GPUs": _gpus(limits, limits.devices),
        "dtypes": _dtypes(limits),
        "head dims": _head_dims(limits),
        "Sq": "any" if limits.queries_max is None else f"<= {limits.queries_max}",
        "Dv != D": _word(limits.value_dim_may_differ),
        "masks": _masks(limits),
        "GQA": _word(limits.gqa),
        "dropout": _word(limits.dropout),
        "softcap": _word(limits.softcap),
        "backward": _word(limits.backward),
        "deterministic": _word(limits.deterministic),
        "exact": _word(limits.exact),
        "verified on": _verified(kernel.name, limits.devices),
        "aliases": ", ".join(kernel.aliases) or "-",
    }


def _verified(name: str, kinds: Iterable[str]) -> str:
    """Where whole models with this kernel were compared with fp32; the CPU's kernels are, in every run of the tests."""
    seen = _seen().get(name, {}) if "cuda" in kinds else {}
    parts = [
        f"{gpu}, {facts['version']}, {facts['date']}" + ("" if facts["trained"] else ", forward")
        for gpu, facts in seen.items()
    ]
    parts += ["CPU (the tests)"] if "cpu" in kinds else []
    return "; ".join(parts) or "its contract only"


@cache
def _seen() -> dict[str, dict[str, dict[str, str]]]:
    """What ``benchmarks/verified.py`` wrote from the committed results."""
    try:
        found: dict[str, dict[str, dict[str, str]]] = json.loads(VERIFIED.read_text(encoding="utf-8"))
    except OSError:
        return {}
    return found


def _devices(kinds: Iterable[str]) -> str:
    names = sorted(kinds)
    return "any" if len(names) > MANY else ", ".join(names)


def _gpus(limits: Limits, kinds: Iterable[str]) -> str:
    """The GPU generations, as far as they matter on these kinds of machine."""
    parts = [limits.generations] if limits.capabilities and "cuda" in kinds else []
    parts += [", ".join(sorted(limits.gfx))] if limits.gfx and "rocm" in kinds else []
    return "; ".join(parts) or ("any" if {"cuda", "rocm"} & set(kinds) else "-")


def _dtypes(limits: Limits) -> str:
    if limits.dtypes >= ALL_FLOATS:
        return "any float"
    return ", ".join(dtype_name(dtype) for dtype in sorted(limits.dtypes, key=lambda d: (-d.itemsize, str(d))))


def _head_dims(limits: Limits) -> str:
    low, high, step = limits.head_dim_min, limits.head_dim_max, limits.head_dim_multiple
    bounds = [f">= {low}"] if low > 1 else []
    bounds += [f"<= {high}"] if high is not None else []
    bounds += [f"multiple of {step}"] if step > 1 else []
    return ", ".join(bounds) or "any"


def _masks(limits: Limits) -> str:
    terms = sorted(term.value for term in limits.terms)
    if limits.padding_by_length:
        where = "inference" if limits.padding_beside_rules else "alone, inference"
        terms = [f"{term} ({where})" if term == Term.KEY_PADDING.value else term for term in terms]
    return ", ".join([*terms, *(["tensor"] if limits.mask_tensor else [])]) or "none"


def _word(claim: bool) -> str:
    return "yes" if claim else "no"
