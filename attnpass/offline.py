"""Rewriting outside ``torch.compile``: a dry run of a model, exported programs and graphs of torch.fx."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from attnpass.errors import ProgramError
from attnpass.graph.copy import GraphCopy
from attnpass.graph.values import value_of
from attnpass.kernels.registry import registry
from attnpass.pipeline import Given, run_pass
from attnpass.report import log
from attnpass.report.history import new_report, publish
from attnpass.report.record import Report, Reports
from attnpass.select.machines import invented
from attnpass.settings.config import Config


def explain(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Reports:
    """What ``torch.compile(model, backend="attnpass")`` would do, one report per graph. Nothing is rewritten.

    The model runs once, uncompiled.

    >>> import torch, attnpass
    >>> reports = attnpass.explain(torch.nn.TransformerEncoderLayer(32, 4), torch.randn(5, 2, 32))
    >>> len(reports[0].decisions)
    1
    >>> print(reports)  # doctest: +ELLIPSIS
    attnpass graph 0: 1 attention call, ...
    """
    return _explained(Given(dry_run=True), model, args, kwargs)


def explain_on(machine: str, model: Callable[..., Any], *args: Any, **kwargs: Any) -> Reports:
    """What the model would get on another machine, on which the library of every kernel is installed.

    The model runs once, here and uncompiled; ``ATTNPASS_KERNEL`` counts as it would there.

    Args:
        machine: ``a100``, ``h100``, ...: one of those that ``attnpass explain --help`` lists.
        model: the model.
        args: what it is called with.
        kwargs: the same.

    >>> import torch, attnpass
    >>> x = torch.randn(2, 4, 128, 64, dtype=torch.bfloat16)
    >>> attention = torch.nn.functional.scaled_dot_product_attention
    >>> attnpass.explain_on("h100", attention, x, x, x)[0].decisions[0].kernel
    'native_efficient'

    Raises:
        ConfigError: no machine has the name.
    """
    return _explained(Given(dry_run=True, machine=invented(machine, registry())), model, args, kwargs)


def _explained(given: Given, model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Reports:
    found = Reports()

    def dry(gm: GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        config = Config.load()
        found.append(run_pass(gm, config, new_report(config), given).report)
        return gm.forward

    torch.compile(model, backend=dry)(*args, **kwargs)
    return found


def rewrite(
    program: GraphModule | ExportedProgram,
    example_inputs: Sequence[Any] = (),
    *,
    options: Mapping[str, Any] | None = None,
) -> tuple[GraphModule, Report]:
    """Rewrite the attention of an exported program, or of a graph of ``torch.fx``.

    Args:
        program: what to rewrite; it is not changed.
        example_inputs: what it is called with; needed if its nodes carry no fake values
            (``torch.fx.symbolic_trace``). The result is then right for inputs of these shapes.
        options: settings as for ``torch.compile``, such as ``{"attnpass.kernel": "native_flash"}``.

    Returns:
        The rewritten copy (the graph itself if nothing changed) and the report, which is also logged, written and kept
        as that of a compiled graph is.

    >>> import torch, attnpass
    >>> attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    >>> exported = torch.export.export(attention, (torch.randn(2, 5, 32),) * 3, {"need_weights": False})
    >>> module, report = attnpass.rewrite(exported)
    >>> len(report.decisions), report is attnpass.last_report()
    (1, True)

    Raises:
        ProgramError: it is neither of both.
        ConfigError, UnknownKernelError, KernelUnavailableError, StrictError: as the backend raises them.
    """
    if not isinstance(program, (GraphModule, ExportedProgram)):
        raise ProgramError(
            f"rewriting a program: it is a {type(program).__name__}, needs an ExportedProgram or a GraphModule; "
            "torch.export.export(model, example_inputs) makes one, and torch.compile(model, backend='attnpass') "
            "rewrites a model that runs"
        )
    config = Config.load(options)
    log.configure(config.log)
    gm = program.module() if isinstance(program, ExportedProgram) else program
    exported = any(isinstance(node.meta.get("val"), torch.Tensor) for node in gm.graph.nodes)
    trainable = any(tensor.requires_grad for tensor in (*gm.parameters(), *example_inputs) if torch.is_tensor(tensor))
    gm = _with_values(gm, example_inputs)
    # torch.export's values do not know what requires a gradient, so there every call may, if anything does.
    result = run_pass(gm, config, new_report(config), Given(grad=trainable if exported else None))
    publish(result.report, config)
    return result.module, result.report


def _with_values(gm: GraphModule, example_inputs: Sequence[Any]) -> GraphModule:
    """``gm`` if its nodes carry fake values, else a copy that does."""
    if any(isinstance(value_of(node), torch.Tensor) for node in gm.graph.nodes):
        return gm
    work = GraphCopy.of(gm).module
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _Recorder(work).run(*[mode.from_tensor(x) if torch.is_tensor(x) else x for x in example_inputs])
    return work


class _Recorder(Interpreter):
    """Runs a graph and keeps each node's value, with its ``requires_grad`` (``FakeTensorProp`` detaches them)."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["example_value"] = value
        return value
