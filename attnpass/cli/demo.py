"""``attnpass demo``: a real model with real weights, in eager, with Inductor and with every kernel that runs here.

The bound is not a magic number: it is a small multiple of the error that PyTorch's own eager run makes against fp64.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

import attnpass
from attnpass.cli import gains
from attnpass.cli.minilm import DIFFERENT, SENTENCES, SIMILAR, MiniLM, cosine, load
from attnpass.cli.setting import setting
from attnpass.cli.shape import DTYPES
from attnpass.cli.table import print_table
from attnpass.errors import AttnpassError, ConfigError
from attnpass.graph.tensor import dtype_name
from attnpass.ir.decision import AUTO, NATIVE
from attnpass.kernels.registry import registry, registry_for
from attnpass.report.record import Report
from attnpass.report.text import block
from attnpass.select.wishes import resolve_policy
from attnpass.settings.config import KERNEL, Config

EAGER, INDUCTOR = "eager", "inductor"
RUNS = 20
SLACK = 2.0  # on top of what the kernel's own tolerance allows: both sides of the comparison are rounded
FLOOR = 1.0  # rounding steps of the largest value: the least noise that is assumed


@dataclass(frozen=True, slots=True)
class Result:
    """One way to run the model.

    Attributes:
        name: eager, inductor, or the wish that was given to attnpass.
        kernels: the kernels that compute, "" where PyTorch chooses.
        calls: attention calls found.
        rewritten: how many of them were rewritten.
        difference: largest absolute difference of an embedding to eager; NaN if it did not run or holds NaN.
        allowed: how large it may be.
        similar: cosine of two sentences that say the same.
        different: cosine of two that do not.
        ms: median time of one run.
        error: what was raised, or "".
    """

    name: str
    kernels: str = ""
    calls: int = 0
    rewritten: int = 0
    difference: float = math.nan
    allowed: float = 0.0
    similar: float = math.nan
    different: float = math.nan
    ms: float = math.nan
    error: str = ""

    @property
    def verdict(self) -> str:
        if self.error:
            return "FAILED"
        return "ok" if self.difference <= self.allowed else "WRONG"

    def to_dict(self) -> dict[str, Any]:
        """JSON form; JSON has no NaN."""
        values = {name: None if value != value else value for name, value in asdict(self).items()}
        return {**values, "result": self.verdict}


def add_command(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "demo",
        help="a real model in eager, with Inductor, and with every kernel that runs here",
        description=f"Embeds {len(SENTENCES)} sentences with MiniLM: eager, plain Inductor, attnpass with each kernel.",
    )
    command.add_argument("--kernel", metavar="NAMES", help="only these kernels, separated by commas (default: all)")
    command.add_argument("--dtype", choices=DTYPES, help="default: fp32 on a CPU, fp16 elsewhere")
    command.add_argument("--device", type=torch.device, help="default: the accelerator if there is one, else cpu")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare everything with eager; exit code 1 if something is wrong."""
    device = args.device or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    dtype = DTYPES[args.dtype or ("fp32" if device.type == "cpu" else "fp16")]
    wishes = _named(args.kernel) if args.kernel else ()
    attnpass.clear_reports()
    minilm = load(device, dtype)
    reference = load(torch.device("cpu"), torch.float64)
    exact = reference.embed(reference.model)
    say = _silent if args.json else print
    say(f"MiniLM (22.7 million real weights) embeds {len(SENTENCES)} sentences on {device} in {dtype_name(dtype)}.")
    results = list(compare(minilm, exact, wishes, say))
    if not args.json:
        _summarise(results)
    gained: list[dict[str, Any]] = []
    if not wishes:
        say(f"\nAttention as it is often written, {gains.H} heads of {gains.S} tokens, in fp32:")
        gained = gains.measure(device, INDUCTOR, say)
    if args.json:
        facts = {"device": str(device), "dtype": dtype_name(dtype)}
        print(json.dumps({**facts, "results": [result.to_dict() for result in results], "gains": gained}, indent=1))
    elif gained:
        _tell_gains(gained)
    return 0 if all(result.verdict == "ok" for result in results) else 1


def _named(text: str) -> tuple[str, ...]:
    """The kernels in a list, which may have no conditions."""
    with setting(KERNEL, text, "--kernel"):
        policy = Config.load().kernel
    if policy.clauses:
        raise ConfigError(
            f"reading the command line: --kernel is {text!r}, needs kernel names without conditions: the demo "
            "measures each kernel by itself"
        )
    return resolve_policy(policy, registry_for(policy.wishes), "--kernel")


def compare(minilm: MiniLM, exact: torch.Tensor, wishes: Sequence[str], say: Callable[[str], None]) -> Iterator[Result]:
    """Run eager, Inductor, then attnpass with each wish (``auto`` and all that can run, if none is given)."""
    eager = minilm.embed(minilm.model)
    distance = _distance(eager, exact)
    noise = max(distance, FLOOR * torch.finfo(eager.dtype).eps * float(eager.abs().max()))
    say(
        f"  {cosine(eager, SIMILAR):.2f}  {SENTENCES[SIMILAR[0]]!r} and {SENTENCES[SIMILAR[1]]!r}\n"
        f"  {cosine(eager, DIFFERENT):.2f}  {SENTENCES[DIFFERENT[0]]!r} and {SENTENCES[DIFFERENT[1]]!r}\n"
        f"Eager is {distance:.1e} away from fp64. A run that differs from eager by more than `allowed` is wrong.\n"
    )
    bench = Bench(minilm, eager, noise)
    yield bench.measure(EAGER, minilm.model)
    yield bench.measure(INDUCTOR, _compile(minilm, INDUCTOR))
    queue = list(wishes or (AUTO,))
    while queue:
        wish = queue.pop(0)
        attnpass.clear_reports()
        result = bench.measure(wish, _compile(minilm, "attnpass", {"attnpass.kernel": wish}))
        reports = attnpass.reports()
        say("\n".join([f"[{wish}] {block(report)}" for report in reports] + [result.error] * bool(result.error)))
        yield result
        if not wishes and wish == AUTO:
            queue += _others(reports)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every run is compared with."""

    minilm: MiniLM
    eager: torch.Tensor
    noise: float

    def measure(self, name: str, model: Callable[..., Any]) -> Result:
        """Run ``model``; an exception becomes the result."""
        run: dict[str, Any] = {}
        try:
            embeddings = self.minilm.embed(model)
            run = {"difference": _distance(embeddings, self.eager), "ms": self._median_ms(model)}
            run |= {"similar": cosine(embeddings, SIMILAR), "different": cosine(embeddings, DIFFERENT)}
        except AttnpassError:
            raise
        except Exception as error:
            run["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        decisions = [decision for report in attnpass.reports() for decision in report.decisions]
        names = dict.fromkeys(decision.kernel for decision in decisions if decision.rewritten)
        tolerance = max((registry()[kernel].limits.tolerance for kernel in names), default=2.0)
        return Result(
            name=name,
            kernels=", ".join(names),
            calls=len(decisions),
            rewritten=sum(decision.rewritten for decision in decisions),
            allowed=SLACK * (1 + tolerance) * self.noise,
            **run,
        )

    def _median_ms(self, model: Callable[..., Any]) -> float:
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            self.minilm.embed(model).cpu()
            times.append((time.perf_counter() - start) * 1000)
        return statistics.median(times)


def _compile(minilm: MiniLM, backend: str, options: dict[str, Any] | None = None) -> Callable[..., Any]:
    torch._dynamo.reset()
    compiled: Callable[..., Any] = torch.compile(minilm.model, backend=backend, options=options)
    return compiled


def _others(reports: Sequence[Report]) -> list[str]:
    """The kernels that would take every call, without the one that ``auto`` took and ``native``, which keeps."""
    decisions = [decision for report in reports for decision in report.decisions]
    done = {NATIVE, *(decision.kernel for decision in decisions)}
    refusing = {answer.kernel for decision in decisions for answer in decision.answers if not answer.accepted}
    return [name for name in registry() if decisions and name not in done | refusing]


def _distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest absolute difference; NaN if there is one."""
    return float((left.double().cpu() - right.double().cpu()).abs().max())


def _silent(text: str) -> None:
    """Say nothing: ``--json`` prints JSON and nothing else."""


def _tell_gains(rows: Sequence[dict[str, Any]]) -> None:
    print()
    print_table(
        [
            {
                "form": row["form"],
                **{f"{run}, ms": f"{ms:.1f}" for run, ms in row["ms"].items()},
                "gain": f"{row['ms'][INDUCTOR] / row['ms']['attnpass']:.2f}",
                "error, eager / attnpass": f"{row['error'][EAGER]:.1e} / {row['error']['attnpass']:.1e}",
            }
            for row in rows
        ]
    )


def _summarise(results: Sequence[Result]) -> None:
    rows = [
        {
            "run": result.name,
            "kernel": result.kernels or "PyTorch's choice",
            "rewritten": f"{result.rewritten} of {result.calls}" if result.calls else "-",
            "difference to eager": "-" if result.error else f"{result.difference:.1e}",
            "allowed": f"{result.allowed:.1e}",
            "similar": "-" if result.error else f"{result.similar:.3f}",
            "different": "-" if result.error else f"{result.different:.3f}",
            "ms": "-" if result.error else f"{result.ms:.2f}",
            "result": result.verdict,
        }
        for result in results
    ]
    print()
    print_table(rows)
