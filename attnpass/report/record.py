"""What the pass did to one graph, as data. The log, the JSON file and the HTML page are three renderings of this."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from attnpass.find.found import NearMiss
from attnpass.graph.symbolic import shown
from attnpass.graph.tensor import TensorSpec, dtype_name
from attnpass.ir.call import AttentionCall
from attnpass.ir.decision import Decision
from attnpass.machine.machine import Machine
from attnpass.settings.config import Config
from attnpass.version import __version__

SCHEMA = 2
OWN = ("node", "module", "source")  # fields of a call that equal calls do not share
LONG = ("rejections", "ms")  # those of nine tenths of the length, which stand once for all equal calls
RENDERINGS: dict[str, Callable[[Report], str]] = {}  # "text" and "html": what renders a report says so itself


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was found, decided and done in one graph.

    Attributes:
        graph: running number of the graph in this process, from 0.
        compile_id: Dynamo's name for the compilation such as ``0/0``, "" outside Dynamo.
        config: the settings in force.
        machines: the facts about each device that a call runs on.
        decisions: one for every attention call found, in graph order.
        near_misses: chains that almost were attention.
        nodes: number of nodes in the graph as it came.
        pass_ms: time the pass took, in milliseconds.
        code_before: the graph as readable Python, before.
        code_after: the same, after; equal to ``code_before`` if nothing changed.
        error: what went wrong inside the pass, or "".
        rank: of this process in a job of several, None in one that is alone.
    """

    graph: int
    compile_id: str = ""
    config: Config = field(default_factory=Config)
    machines: Mapping[torch.device, Machine] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    nodes: int = 0
    pass_ms: float = 0.0
    code_before: str = ""
    code_after: str = ""
    error: str = ""
    rank: int | None = None

    @property
    def rewritten(self) -> int:
        return sum(decision.rewritten for decision in self.decisions)

    @property
    def kept(self) -> int:
        return len(self.decisions) - self.rewritten

    @property
    def unmatched(self) -> tuple[str, ...]:
        """Module patterns of ``ATTNPASS_KERNEL`` that match no call of this graph; none where there are no calls."""
        modules = [decision.call.module for decision in self.decisions]
        return self.config.kernel.unmatched(modules) if modules else ()

    def __repr__(self) -> str:
        number = len(self.decisions)
        calls = f"{number} call{'s' * (number != 1)}, {self.rewritten} rewritten"
        return f"<attnpass.Report of graph {self.graph}: {calls}{', the pass failed' * bool(self.error)}>"

    def __str__(self) -> str:
        return RENDERINGS["text"](self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page, in a frame of its own, since it brings a style sheet."""
        page = html.escape(RENDERINGS["html"](self), quote=True)
        return f'<iframe title="attnpass" sandbox width="100%" height="480" srcdoc="{page}"></iframe>'

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON form (``schema`` 2): calls, each with the number of the group that has what is long of it.

        Equal calls are one group, since what 20 kernels answer is long; so is the graph's code, which is not in it.
        """
        calls, groups = _grouped(self.decisions)
        machines = {str(device): machine.to_dict() for device, machine in self.machines.items()}
        return {
            "schema": SCHEMA,
            "attnpass": __version__,
            "torch": str(torch.__version__),
            "graph": self.graph,
            "compile_id": self.compile_id,
            "rank": self.rank,
            "pass_ms": round(self.pass_ms, 3),
            "nodes": self.nodes,
            "error": self.error,
            "config": self.config.to_dict(),
            "machine": next(iter(machines.values()), {}),
            "machines": machines,
            "unmatched_modules": list(self.unmatched),
            "near_misses": [miss.to_dict() for miss in self.near_misses],
            "calls": calls,
            "groups": groups,
        }

    def to_json(self, indent: int | None = 1) -> str:
        """The same as text."""
        return json.dumps(self.to_dict(), indent=indent, default=str)


class Reports(list[Report]):
    """The reports of several graphs; printed, and in a notebook, one below the other."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no graph was captured"

    def _repr_html_(self) -> str:
        return "".join(report._repr_html_() for report in self)


def _grouped(decisions: Iterable[Decision]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The calls, each with the number of its group; and what is long of each group, in which all but `OWN` is equal."""
    calls: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    groups: list[dict[str, Any]] = []
    for decision in decisions:
        told = _decision_to_dict(decision)
        key = json.dumps([value for name, value in told.items() if name not in OWN], default=str)
        shared = {name: told.pop(name) for name in LONG}
        number = numbers.setdefault(key, len(groups))
        if number == len(groups):
            groups.append(shared)
        calls.append({**told, "group": number})
    return calls, groups


def calls_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of a report's JSON form, each with what stands in its group."""
    return [{**call, **report["groups"][call["group"]]} for call in report["calls"]]


def _decision_to_dict(decision: Decision) -> dict[str, Any]:
    return {
        **_call_to_dict(decision.call),
        "rewritten": decision.rewritten,
        "kernel": decision.kernel,
        "reason": decision.reason.value,
        "note": decision.note,
        "basis": decision.basis.value if decision.basis else "",
        "ms": {name: round(ms, 5) for name, ms in decision.ms.items()},
        "mask_is_read": decision.mask_is_read,
        "policy": decision.clause,
        "policy_skipped": list(decision.skipped),
        "tried": list(decision.tried),
        "refused": [answer.kernel for answer in decision.refused],
        "rejections": {
            answer.kernel: [
                {"code": r.code.value, "field": r.field, "actual": str(r.actual), "wanted": r.wanted, "text": str(r)}
                for r in answer.rejections
            ]
            for answer in decision.answers
            if answer.rejections
        },
    }


def _call_to_dict(call: AttentionCall) -> dict[str, Any]:
    return {
        "pattern": call.pattern.value,
        "chosen": call.chosen,
        "node": call.node,
        "module": call.module,
        "kind": call.kind.value,
        "source": str(call.source),
        "text": call.text(),
        "q": _shape(call.q),
        "k": _shape(call.k),
        "v": _shape(call.v),
        "dtype": dtype_name(call.dtype),
        "device": str(call.device),
        "mask": str(call.mask),
        "mask_meaning": call.mask.meaning,
        "mask_stop": call.mask.stop,
        "scale": call.scale,
        "dropout_p": call.dropout_p,
        "gqa": call.is_gqa,
        "needs_grad": call.needs_grad,
        "nested_in": list(call.context.nested_in),
    }


def _shape(spec: TensorSpec) -> list[int | str]:
    return [shown(size) for size in spec.shape]
