"""A kernel proves itself before it is used: tried once on random data against the reference, at compile time.

Why: on an H100, SageAttention 1.0.6 is off by 28 % (Sk = 77) and 15 % (Sk = 197) in calls without causal, and nothing
tells its user. A library's kernel is tried the first time that it is chosen for a *class* of calls on this machine, and
the verdict is kept on disk until its key changes (kernel, versions, GPU, class). PyTorch's own kernels are held to the
same reference by the conformance tests instead; but `native_flash` with padding, through an op of PyTorch that hardly
anybody calls so, is tried too.

A class is what kernels branch on: dtype, head dims, how many heads share a key, mask, gradients, layout, and of each
length what it is a multiple of. The trial uses a short length of the class, where the error of a badly
handled last block weighs most; so 40 layers of a model are tried once or twice, and lengths do not multiply that.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from attnpass.graph.symbolic import Size, as_int, known, known_equal, known_multiple
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Code, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.kernel import Kernel
from attnpass.machine.library import PYTORCH
from attnpass.machine.machine import Machine
from attnpass.trials.cache import Store, machine_key
from attnpass.trials.sample import Sample, run_trial
from attnpass.trials.standalone import UnfitError
from attnpass.version import __version__

logger = logging.getLogger(__name__)
LENGTHS = {"1": 1, "128": 256, "64": 192, "8": 200, "any": 77}  # class -> the length that is tried
STEP = 128  # what the longer side has more, where q and k have different lengths


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
        learnt = self.told[name]
        if learnt is None or learnt.good:
            return ()
        return (
            Rejection(Code.UNPROVED, "trial on random data", learnt.text, f"an error of at most {learnt.allowed:.2g}"),
        )

    def _try(self, kernel: Kernel, sample: Sample, machine: Machine, key: Mapping[str, str]) -> Verdict | None:
        start = time.perf_counter()
        try:
            good, text, error, allowed = run_trial(kernel, sample, machine)
        except UnfitError as unfit:
            logger.debug("attnpass: %s not tried for %s: %s", kernel.name, sample, unfit)
            return None
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        learnt = Verdict(good, text, error, allowed, date)
        VERDICTS.remember(self.folder, key, learnt)
        word = "proved itself" if good else "is wrong here, and is not used"
        took = (time.perf_counter() - start) * 1000
        logger.log(
            logging.INFO if good else logging.WARNING, "attnpass: %s %s: %s (%.0f ms)", kernel.name, word, text, took
        )
        return learnt


def sample_of(call: AttentionCall) -> Sample:
    """The call's class, as the example that is tried for it."""
    square = known_equal(call.Sq, call.Sk)
    Sq, Sk = LENGTHS[length_class(call.Sq)], LENGTHS[length_class(call.Sk)]
    shifted = any(not known_equal(t.offset, 0) for t in call.mask.terms if t.term in (Term.CAUSAL, Term.WINDOW))
    if not square and Sq == Sk:
        Sq, Sk = (Sq, Sk + STEP) if shifted else (Sq + STEP, Sk)
    H, Hkv = as_int(call.H), as_int(call.Hkv)
    group = H // Hkv if H and Hkv and H % Hkv == 0 else 1
    _B, heads, rows, _D = (0, 0, 0, 0) if call.q.ndim < 4 else call.q.stride
    return Sample(
        shape=(2, 2 * group, 2, Sq, Sk, as_int(call.D) or 64, as_int(call.Dv) or 64),
        dtype=call.dtype,
        device=call.device,
        mask=call.mask,
        shifted=shifted,
        bshd=call.q.ndim == 4 and known(heads < rows),
        scale=call.scale,
        softcap=call.softcap,
        sinks=call.sinks is not None,
        grad=call.needs_grad,
    )


def length_class(size: Size) -> str:
    """What a length is known to be a multiple of: "1" for exactly 1, "128", "64", "8", or "any"."""
    if known_equal(size, 1):
        return "1"
    return next((str(step) for step in (128, 64, 8) if known_multiple(size, step)), "any")


def key_of(kernel: Kernel, sample: Sample, machine: Machine) -> dict[str, str]:
    """Everything that a verdict depends on; a change in any of it calls for a new trial."""
    library = kernel.limits_for(machine).library
    return {
        "kernel": kernel.name,
        "attnpass": f"{__version__} {_source_digest(type(kernel))}",
        "library": f"{library.name} {machine.versions.get(library.key, '')}",
        **machine_key(machine),
        "class": str(sample),
    }


def _source_digest(cls: type) -> str:
    """A digest of the file that defines the kernel, and of those beside it with its name in front (flash3_pages.py).

    Another way to call the library has to prove itself anew.
    """
    try:
        file = Path(inspect.getfile(cls))
        parts = [file, *sorted(file.parent.glob(f"{file.stem}_*.py"))]
        return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:12]
    except (OSError, TypeError):
        return ""
