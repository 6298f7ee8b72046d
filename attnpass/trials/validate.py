"""A kernel proves itself before it is used: tried once on random data against the reference, at compile time.

Why: on an H100, SageAttention 1.0.6 is off by 28 % (Sk = 77) and 15 % (Sk = 197) in calls without causal, and nothing
tells its user. A library's kernel is tried the first time that it is chosen for a class of calls
(`attnpass.trials.sample`) on this machine, and the verdict is kept on disk until its key changes (kernel, versions,
GPU, class). PyTorch's own kernels are held to the same reference by the conformance tests instead; but `native_flash`
with padding, through an op of PyTorch that hardly anybody calls so, is tried too.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import RULES, MaskSpec, Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import PYTORCH
from attnpass.machine.machine import Machine
from attnpass.trials.accuracy import judge
from attnpass.trials.cache import Store, machine_key, now
from attnpass.trials.example import Example, UnfitError, undisturbed
from attnpass.trials.sample import class_of, sample_of
from attnpass.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one trial of a kernel.

    Attributes:
        good: was it right?
        text: what was tried and what came out, in one line.
        error: the worst error.
        allowed: what it may be at most.
        date: when, in ISO form.
    """

    good: bool
    text: str
    error: float
    allowed: float
    date: str


VERDICTS = Store("verdicts", Verdict, shown=frozenset({"kernel", "library", "gpu"}))


@dataclass(slots=True)
class Validator:
    """Tries kernels of libraries and remembers what came out.

    Attributes:
        folder: the cache folder.
        told: verdicts of this process, by key.
    """

    folder: Path
    told: dict[str, Verdict | None] = field(default_factory=dict)

    def refusals(self, kernel: Kernel, call: AttentionCall, machine: Machine) -> tuple[Rejection, ...]:
        """Why ``kernel`` must not compute ``call`` on this machine; empty if it proved itself, or need not."""
        limits = kernel.limits_for(machine)
        if limits.library == PYTORCH and not (limits.padding_by_length and call.mask.has(Term.KEY_PADDING)):
            return ()
        sample = sample_of(call)
        key = key_of(kernel, sample, machine)
        name = str(key)
        if name not in self.told:
            self.told[name] = VERDICTS.recall(self.folder, key) or self._try(kernel, sample, machine, key)
        verdict = self.told[name]
        if verdict is None or verdict.good:
            return ()
        allowed = f"an error of at most {verdict.allowed:.2g}"
        return (Rejection(Code.UNPROVED, "trial on random data", verdict.text, allowed),)

    def _try(self, kernel: Kernel, sample: AttentionCall, machine: Machine, key: Mapping[str, str]) -> Verdict | None:
        start = time.perf_counter()
        try:
            verdict = validate(kernel, sample, machine)
        except UnfitError as unfit:
            logger.debug("attnpass: %s not tried for %s: %s", kernel.name, class_of(sample), unfit)
            return None
        VERDICTS.remember(self.folder, key, verdict)
        level, word = logging.INFO, "proved itself"
        if not verdict.good:
            level, word = logging.WARNING, "is wrong here, and is not used"
        took = (time.perf_counter() - start) * 1000
        logger.log(level, "attnpass: %s %s: %s (%.0f ms)", kernel.name, word, verdict.text, took)
        return verdict


def validate(kernel: Kernel, sample: AttentionCall, machine: Machine) -> Verdict:
    """Run the kernel once on random data, and compare it with the reference.

    Raises:
        UnfitError: the kernel refuses the sample, or the device cannot be used.
    """
    tried, date = class_of(sample), now()
    with undisturbed(sample.device, sample.needs_grad):
        example = Example(sample, hides=True)
        operands = example.operands()
        given = [x for x in operands if x is not None]
        before = [x.detach().clone() for x in given]
        try:
            run = example.runnable(kernel, machine)
            found = judge(kernel.limits_for(machine), run, operands, _meaning(sample))
        except UnfitError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({tried})"
            return Verdict(False, text, math.inf, 0.0, date)
        if not all(map(torch.equal, given, before)):
            return Verdict(False, f"it changes its operands in place ({tried})", math.inf, 0.0, date)
    worst = max(found, key=lambda one: (not one.good, one.error / max(one.allowed, 1e-30)))
    return Verdict(worst.good, f"{worst} ({tried})", worst.error, worst.allowed, date)


def _meaning(sample: AttentionCall) -> dict[str, Any]:
    """The keyword arguments of the reference; the mask's rules are spelled out as a tensor for it."""
    meaning: dict[str, Any] = {"scale": sample.scale, "enable_gqa": sample.enable_gqa, "softcap": sample.softcap}
    rules = MaskSpec(tuple(term for term in sample.mask.terms if term.term in RULES))
    if rules.terms:
        meaning["seen"] = rules.seen(int(sample.Sq), int(sample.Sk), sample.device)
    return meaning


def key_of(kernel: Kernel, sample: AttentionCall, machine: Machine) -> dict[str, str]:
    """Everything that a verdict depends on; a change in any of it calls for a new trial."""
    library = kernel.limits_for(machine).library
    return {
        "kernel": kernel.name,
        "attnpass": f"{__version__} {_source_digest(type(kernel))}",
        "library": f"{library.name} {machine.versions.get(library.key, '')}",
        **machine_key(machine),
        "class": class_of(sample),
    }


def _source_digest(cls: type) -> str:
    """A digest of the file that defines the kernel, and of those of its family: flash3.py, flash3_pages.py.

    Another way to call the library has to prove itself anew.
    """
    try:
        file = Path(inspect.getfile(cls))
        own = f"{file.stem}_"
        beside = ((part, f"{part.stem}_") for part in sorted(file.parent.glob("*.py")))
        parts = [part for part, name in beside if name.startswith(own) or own.startswith(name)]
        return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:12]
    except (OSError, TypeError):
        return ""
