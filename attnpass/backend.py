"""The Dynamo backend: ``torch.compile(model, backend="attnpass")``.

config -> pass -> report -> compiler. An entry point of the group ``torch_dynamo_backends`` names `attnpass`, so a
program needs no import. User errors (a wrong name, a strict refusal) are raised; an error of our own never breaks a
program: the untouched graph is compiled and the failure is said once.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from attnpass.compilation.compiler import Downstream, compile_graph
from attnpass.compilation.guards import guard, guard_buffers
from attnpass.compilation.recomputation import attention_is_expensive
from attnpass.errors import ISSUES_HINT, AttnpassError, PassError
from attnpass.pipeline import Given, Rewritten, run_pass
from attnpass.report import log
from attnpass.report.history import new_report, publish
from attnpass.report.log import say_once, say_unknown_variables
from attnpass.settings.config import Config, refuse_unprefixed, split_options
from attnpass.trials import verify
from attnpass.understand import buffers

logger = logging.getLogger(__name__)
NAME = "attnpass"


def attnpass(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
    **_: Any,
) -> Callable[..., Any]:
    """Compile one Dynamo graph: rewrite its attention, then hand it to Inductor (or ``ATTNPASS_COMPILER``).

    Args:
        gm: the graph, before autograd.
        example_inputs: real tensors and SymInts, as Dynamo gives them.
        mode: ``torch.compile``'s mode, for Inductor.
        options: ``torch.compile``'s options; ``attnpass.*`` are ours, the others Inductor's.

    Raises:
        ConfigError: a setting is not legal.
        UnknownKernelError: no kernel has the name.
        KernelUnavailableError: the library of a named kernel is missing or too old.
        StrictError: ``ATTNPASS_STRICT=1`` and a call was kept.
    """
    ours, theirs = split_options(options)
    config = Config.load(ours)
    log.configure("info" if config.verify and config.log == "warning" else config.log)
    say_unknown_variables()
    guard()
    if config.compiler == "inductor":
        refuse_unprefixed(theirs)
    downstream = Downstream(config.compiler, mode, theirs)
    rewritten = _guarded_pass(gm, config, downstream.uses_cuda_graphs)
    guard_buffers(rewritten.assumptions.used)
    publish(rewritten.report, config)
    machine = next(iter(rewritten.report.machines.values()), None)
    with attention_is_expensive(rewritten.module):
        return compile_graph(rewritten.module, example_inputs, downstream, rewritten.compile_options, machine)


def reset() -> None:
    """Called by ``torch._dynamo.reset()``: forget what verification and changed buffers taught."""
    verify.forget()
    buffers.forget()


attnpass.reset = reset  # type: ignore[attr-defined]


def make_known() -> None:
    """Tell Dynamo the backend's name where no metadata does: attnpass was imported from a path."""
    try:
        # It has the entry point; a look at those of all packages takes three times as long.
        importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        torch._dynamo.register_backend(attnpass, name=NAME)


def _guarded_pass(gm: GraphModule, config: Config, cuda_graphs: bool) -> Rewritten:
    """Run the pass; on an error of our own, say it and give the untouched graph back."""
    report = new_report(config)
    try:
        return run_pass(gm, config, report, Given(cuda_graphs))
    except AttnpassError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        what = "ATTNPASS_STRICT=1, so nothing runs" if config.strict else "the program runs unrewritten"
        message = (
            f"attnpass: rewriting graph {report.graph} failed with {text}; {what}; "
            f"{ISSUES_HINT}. ATTNPASS_KERNEL=native switches the rewriting off."
        )
        if config.strict:
            raise PassError(message) from error
        say_once(message)
        logger.debug("the failure in full", exc_info=True)
        return Rewritten(gm, replace(report, error=text))
