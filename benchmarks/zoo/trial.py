"""One stranger: its attention calls in eager, in the graphs that Dynamo captures, and what attnpass does."""

from __future__ import annotations

import importlib.metadata
import os
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import attnpass
from attnpass.report.record import Report
from benchmarks.zoo.eager_calls import AttentionCount
from benchmarks.zoo.numbers import judge, seeded
from benchmarks.zoo.stranger import Stranger

RECOMPILATIONS = 64


@dataclass(slots=True)
class Graph:
    """A captured graph: what attnpass says of it, how many calls it makes, and how often it ran."""

    report: Report
    calls: int = 0
    runs: int = 0


class Watch:
    """A backend for ``torch.compile`` that is attnpass, and remembers."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.graphs: list[Graph] = []

    def __call__(self, gm: Any, inputs: Any) -> Callable[..., Any]:
        compiled = attnpass.backend.attnpass(gm, inputs)
        graph = Graph(attnpass.reports()[-1])
        self.graphs.append(graph)

        def run(*args: Any) -> Any:
            if not graph.runs:
                graph.calls = self._calls(gm, args)
            graph.runs += 1
            return compiled(*args)

        return run

    def _calls(self, gm: Any, args: Any) -> int:
        """How many the graph makes, of the same definition as in eager, on copies of what it was called with."""
        kept = torch.get_rng_state()
        with AttentionCount(self.weights) as count, torch.no_grad():
            copies = [_copy(x, count) for x in args]
            gm(*copies)
        torch.set_rng_state(kept)
        return count.tally.total


def _copy(x: Any, count: AttentionCount) -> Any:
    if not isinstance(x, Tensor) or count.is_weight(x):
        return x
    return x.detach().clone()


def run(stranger: Stranger) -> dict[str, Any]:
    """One record. What fails says so in ``problem``: the package, Dynamo, or a wrong number in ``wrong``."""
    record: dict[str, Any] = {"package": stranger.package, "what": stranger.what, "version": version(stranger.package)}
    start = time.monotonic()
    try:
        torch.manual_seed(0)
        subject = stranger.make()
        subject.model.eval()
        spread(subject.model)
        eager = seeded(subject)
        with AttentionCount(_weights(subject.model)) as count:
            seeded(subject)
        record |= {"eager": count.tally.total, "eager_ops": dict(count.tally.calls), "note": stranger.note}
    except Exception as error:
        return {**record, "stage": "eager", "problem": _said(error)}
    watch = Watch(_weights(subject.model))
    try:
        torch._dynamo.config.recompile_limit = RECOMPILATIONS
        compiled = torch.compile(subject.__call__, backend=watch, dynamic=False)
        got = seeded(compiled)
    except Exception as error:
        return {**record, "stage": "compile", "problem": _said(error)}
    verdict = judge(subject, eager, got)
    numbers = {"wrong": verdict.problem, "ratio": verdict.ratio, "yardstick": verdict.yardstick}
    return {**record, **told(watch.graphs), **numbers, "seconds": round(time.monotonic() - start, 1)}


def told(graphs: Iterable[Graph]) -> dict[str, Any]:
    """The counts of all graphs, each as often as it ran, and the sentences."""
    found: Counter[str] = Counter()
    misses: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    errors = []
    for graph in graphs:
        report = graph.report
        found["captured"] += graph.calls * graph.runs
        found["found"] += len(report.decisions) * graph.runs
        found["rewritten"] += report.rewritten * graph.runs
        found["proved"] += sum(bool(one.call.mask.meaning) for one in report.decisions) * graph.runs
        found["masked"] += sum(str(one.call.mask) != "none" for one in report.decisions) * graph.runs
        for miss in report.near_misses:
            misses[miss.reason] += graph.runs
        for one in report.decisions:
            kernels[one.kernel] += graph.runs
        errors += [report.error] if report.error else []
    counts = {name: found[name] for name in ("captured", "found", "rewritten", "masked", "proved")}
    return {**counts, "near_misses": dict(misses), "kernels": dict(kernels), "errors": errors}


def spread(model: nn.Module) -> None:
    """Weights at which each part counts: many packages begin with zeros, behind which no mistake would show.

    Matrices are drawn so that what they multiply keeps its size; vectors are moved a little.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.is_floating_point() or not weight.numel():
                continue
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            is_matrix = weight.ndim >= 2 and weight.numel() > max(weight.shape)
            drawn = noise * (weight.numel() / weight.shape[0]) ** -0.5 if is_matrix else weight + 0.1 * noise
            weight.copy_(drawn)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _weights(model: nn.Module) -> list[Tensor]:
    return list(model.parameters())


def _said(error: Exception) -> str:
    """The first words, without where packages lie here."""
    text = f"{type(error).__name__}: {error}".replace(f"{sysconfig.get_path('purelib')}{os.sep}", "")
    return " ".join(text.split("\n\n")[0].split())[:300]
