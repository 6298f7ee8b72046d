"""One program, compiled with attnpass and compared with itself.

Dynamo captures the program once; the backend then rewrites that graph for each kernel, and both graphs run as they are.
That is several times cheaper than a compilation a kernel. What looks wrong is compiled and judged once more as a user
would run it, and with PyTorch alone, so that no fault of PyTorch's is counted.
"""

from __future__ import annotations

import itertools
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

import attnpass
from attnpass.backend import attnpass as backend
from tests.fuzz.judge import exact_results, results, wrong
from tests.fuzz.scope import Program

KERNELS = ("auto", "flex", "native_math", "native_flash")
BAD = ("wrong", "crashed", "hung")
SECONDS = 20
RESET_EVERY = 50  # programs: it forgets what fake tensors have learnt, which makes the next program 45 ms slower

_count = itertools.count()


class LateError(BaseException):
    """Too slow. Not an `Exception`: the pass would take it for one of its own errors."""


class _EnoughError(Exception):
    """The graph is known; Dynamo need not go on."""


@dataclass
class Outcome:
    """What became of one program with one kernel.

    Attributes:
        kernel: asked for.
        verdict: ok, one of `BAD`, "pytorch" (it is as wrong without attnpass) or "only uncompiled" (the rewritten graph
            is off when it runs as it is, and right when it is compiled).
        text: what is wrong.
        seconds: taken by the pass.
        counts: calls found, rewritten and kept; masks proved and not.
    """

    kernel: str
    verdict: str = "ok"
    text: str = ""
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Trial:
    """What became of one program; ``skipped`` says why it was not tried."""

    skipped: str = ""
    outcomes: list[Outcome] = field(default_factory=list)


@dataclass
class Captured:
    """The graph of a program, and where its inputs are among the program's; what is not there is ``given``."""

    gm: GraphModule
    given: list[Any]
    places: dict[int, int]

    def arguments(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, which takes the graph's inputs, as a function of the program's."""

        def run(*inputs: Tensor) -> Any:
            return call(*[inputs[self.places[i]] if i in self.places else x for i, x in enumerate(self.given)])

        return run


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `LateError` in what takes longer; not to be nested."""

    def late(_: int, __: FrameType | None) -> None:
        raise LateError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(program: Program, kernels: Sequence[str], compiled: bool = False) -> Trial:
    """Try one program with each of ``kernels``; ``compiled`` as a user would run it, which is slow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if next(_count) % RESET_EVERY == 0:
            torch._dynamo.reset()
        function = program.function()
        if compiled:
            return _compiled(program, function, kernels)
        captured, rewritten = _captured(program, function, kernels)
        if isinstance(captured, str):
            return Trial(captured)
        try:
            own = results(captured.arguments(captured.gm.forward), program, program.fresh())
        except Exception as error:
            return Trial(f"the graph raises {type(error).__name__}")
        exact = exact_results(captured.arguments(captured.gm.forward), program)
        outcomes = []
        for call, outcome in rewritten:
            if outcome.verdict == "ok":
                _run(outcome, captured.arguments(call), program, own, exact)
            if outcome.verdict != "ok":
                outcome = _confirmed(outcome, program, function)
            outcomes.append(outcome)
        return Trial(outcomes=outcomes)


Rewritten = tuple[Callable[..., Any], Outcome]


def _captured(
    program: Program, function: Callable[..., Any], kernels: Sequence[str]
) -> tuple[Captured | str, list[Rewritten]]:
    """Dynamo's graph of the program, or why there is none; and what the backend made of it for each kernel."""
    inputs = program.fresh()
    found: list[Captured] = []
    rewritten: list[Rewritten] = []

    def record(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        at = {id(tensor): index for index, tensor in enumerate(inputs)}
        places = {i: at[id(x)] for i, x in enumerate(example_inputs) if id(x) in at}
        given = [x.node.hint if isinstance(x, torch.SymInt) else x for x in example_inputs]
        found.append(Captured(gm, given, places))
        rewritten.extend(_rewritten(gm, example_inputs, kernel) for kernel in kernels)
        raise _EnoughError

    try:
        with torch.set_grad_enabled(program.grad), in_time():
            torch.compile(function, backend=record, fullgraph=True, dynamic=program.dynamic)(*inputs)
    except (Exception, LateError) as error:
        return (found[0] if found else f"not captured: {type(error).__name__}"), rewritten
    return "no graph", rewritten


def _rewritten(gm: GraphModule, example_inputs: Sequence[Any], kernel: str) -> Rewritten:
    outcome = Outcome(kernel)
    options = {"attnpass.kernel": kernel, "attnpass.compiler": "eager"}
    start = time.perf_counter()
    call: Callable[..., Any] = gm.forward
    try:
        with in_time():
            call = backend(gm, example_inputs, options=options)
        _read_report(outcome)
    except LateError:
        outcome.verdict, outcome.text = "hung", "the pass hangs"
    except Exception as error:
        outcome.verdict, outcome.text = "crashed", _said(error)
    outcome.seconds = time.perf_counter() - start
    return call, outcome


def _said(error: Exception) -> str:
    lines = f"{type(error).__name__}: {error}".splitlines()
    return " ".join(lines[:3])


def _read_report(outcome: Outcome) -> None:
    report = attnpass.reports()[-1]
    if report.error:
        outcome.verdict, outcome.text = "crashed", report.error
    for decision in report.decisions:
        mask = decision.call.mask
        outcome.counts["found"] += 1
        outcome.counts["rewritten" if decision.rewritten else "kept"] += 1
        if mask.stop or mask.meaning:
            outcome.counts["not proved" if mask.stop else "proved"] += 1


def _run(
    outcome: Outcome, call: Callable[..., Any], program: Program, own: list[Tensor], exact: list[Tensor] | None
) -> None:
    try:
        with in_time():
            got = results(call, program, program.fresh())
        outcome.text = wrong(got, own, exact, program.dtype)
        outcome.verdict = "wrong" if outcome.text else "ok"
    except LateError:
        outcome.verdict, outcome.text = "hung", "the rewritten program hangs"
    except Exception as error:
        outcome.verdict, outcome.text = "crashed", f"the rewritten program raises {_said(error)}"


def _compiled(program: Program, function: Callable[..., Any], kernels: Sequence[str]) -> Trial:
    """The whole way, for each kernel: capture, pass, ahead-of-time graphs."""
    try:
        own = results(function, program, program.fresh())
    except Exception as error:
        return Trial(f"eager raises {type(error).__name__}")
    exact = exact_results(function, program)
    outcomes = []
    for kernel in kernels:
        torch._dynamo.reset()
        attnpass.clear_reports()
        outcome = Outcome(kernel)
        options: dict[str, Any] = {"attnpass.kernel": kernel, "attnpass.compiler": "aot_eager"}
        compiled = torch.compile(function, backend="attnpass", options=options, dynamic=program.dynamic)
        _run(outcome, compiled, program, own, exact)
        if attnpass.reports():
            text, verdict = outcome.text, outcome.verdict
            _read_report(outcome)
            outcome.text, outcome.verdict = (text, verdict) if verdict != "ok" else (outcome.text, outcome.verdict)
        if outcome.verdict != "ok" and _is_pytorchs(program, function, own, exact):
            outcome.verdict = "pytorch"
        outcomes.append(outcome)
    return Trial(outcomes=outcomes)


def _is_pytorchs(program: Program, function: Callable[..., Any], own: list[Tensor], exact: list[Tensor] | None) -> bool:
    torch._dynamo.reset()
    plain = Outcome("none")
    _run(plain, torch.compile(function, backend="aot_eager", dynamic=program.dynamic), program, own, exact)
    return plain.verdict != "ok"


def _confirmed(outcome: Outcome, program: Program, function: Callable[..., Any]) -> Outcome:
    """The verdict of the whole way."""
    if outcome.verdict == "hung":
        return outcome
    trial = _compiled(program, function, [outcome.kernel])
    verdict = trial.outcomes[0].verdict if trial.outcomes else "only uncompiled"
    outcome.verdict = "only uncompiled" if verdict == "ok" else verdict
    outcome.text = (trial.outcomes[0].text if trial.outcomes else "") or outcome.text
    return outcome
