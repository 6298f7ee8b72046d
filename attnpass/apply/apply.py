"""apply: put the decided kernels into a copy of the graph. The only file that changes a graph that holds calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from attnpass.apply.emit_call import Made, Site, emit_call, operands_of
from attnpass.apply.place import Places
from attnpass.apply.watcher import Outputs, Watcher, Written
from attnpass.emit.emitter import COPIED_META, EmitRefusedError, Emitter, aten
from attnpass.find.found import Findings, FoundCall
from attnpass.graph.copy import GraphCopy
from attnpass.graph.lines import line
from attnpass.graph.reading import Reading
from attnpass.graph.values import value_of
from attnpass.ir.decision import NATIVE, Answer, Decision, Reason
from attnpass.ir.limits import Rejection
from attnpass.kernels.kernel import Kernel

NodeMap = Callable[[Node], Node]


def apply(
    copied: GraphCopy,
    findings: Findings,
    decisions: Sequence[Decision],
    kernels: Mapping[str, Kernel],
    watcher: Watcher | None = None,
) -> list[Decision]:
    """Change the copy as decided. A kernel that turns out not to fit leaves its call alone and says why."""
    done: list[Decision] = []
    shared: dict[Any, Any] = {}
    read_before: list[Node] = []
    places = Places(copied)
    for index, (found, decision) in enumerate(zip(findings.calls, decisions, strict=True)):
        if not decision.rewritten:
            done.append(decision)
            continue
        owner, node = places.of(found)
        emitter = Emitter(owner, node, shared, found.epoch)
        try:
            mapped = places.mapping(found)
            if decision.call.needs_grad:
                mapped = _kept_for_backward(emitter, findings.reading, found, mapped)
            made = _emit(emitter, node, (found, decision), kernels[decision.kernel], mapped)
            checked = None
            if watcher is not None:
                outputs, written = Outputs(made.kernel, made.out, node), _written(places, found, emitter)
                checked = watcher.watch(emitter, outputs, decision, written, index)
        except EmitRefusedError as refused:
            emitter.undo()
            done.append(_put_back(decision, refused.rejection))
            continue
        made.out.meta.update(value_meta(node))
        made.out.meta["attnpass"] = {"kernel": decision.kernel, "source": str(decision.call.source)}
        copied.replace(node, checked or made.out, [] if checked is None else checked.all_input_nodes)
        mapped = places.mapping(found)
        _erase(copied, findings.reading, found, mapped, made.lse)
        read_before += map(mapped, found.as_written().wiring.nodes()[1:])
        done.append(replace(decision, emitted=tuple(map(line, emitter.made))))
    quiet = {copied.nodes[node] for node in findings.reading.quiet if node in copied.nodes}
    copied.erase_unread(read_before, quiet)  # masks that became rules, repeats that were undone
    return done


def _erase(copied: GraphCopy, reading: Reading, found: FoundCall, mapped: NodeMap, lse: Node | None) -> None:
    """Erase what nobody needs any more, and let ``lse`` take the place of the program's own."""
    dead = list(found.dead)
    if found.lse is not None and lse is not None:
        place = reading.places[found.lse]
        behind = [mapped(each) for each in dead if reading.places[each] > place]
        copied.erase_dead(behind)
        theirs = mapped(found.lse)
        copied.replace(theirs, lse, [user for user in theirs.users if user in behind])  # a watcher reads the chain
        for reader in map(mapped, reversed(found.sunk)):
            lse.append(reader)
        dead = [each for each in dead if reading.places[each] < place]
    copied.erase_dead(list(map(mapped, dead)))


def _kept_for_backward(emitter: Emitter, reading: Reading, found: FoundCall, mapped: NodeMap) -> NodeMap:
    """``mapped`` to copies where the program writes to an operand behind the call.

    A kernel saves all that it reads for its backward. The program's own ops may save less, or what was made of it.
    """

    def kept(node: Node) -> Node:
        there = mapped(node)
        if not reading.changes_behind(node, found.node):
            return there
        return emitter.once(("kept", there, found.epoch), lambda: emitter(aten.clone.default, there))

    return kept


def _without_gradient(emitter: Emitter, mapped: NodeMap) -> NodeMap:
    """``mapped`` to nodes that no gradient flows to: who takes part has none, nor has a bias that does not learn."""

    def cut(node: Node) -> Node:
        there, value = mapped(node), value_of(node)
        if not isinstance(value, torch.Tensor) or not value.requires_grad:
            return there
        return emitter.once(("detached", there), lambda: emitter(aten.detach.default, there))

    return cut


def _emit(emitter: Emitter, node: Node, decided: tuple[FoundCall, Decision], kernel: Kernel, mapped: NodeMap) -> Made:
    """What the kernel gives, and what takes the place of ``node``."""
    found, decision = decided
    meaning = None
    if found.meaning is not None and not found.meaning.stop:
        cut = _without_gradient(emitter, mapped)
        meaning = found.meaning.map_nodes(cut, mapped if decision.call.bias_learns else cut)
    wiring = (decision.wiring or found.wiring).map_nodes(mapped)
    made = emit_call(emitter, decision.asked, kernel, Site(node, wiring, meaning, not found.changed))
    if found.changed and decision.call.needs_grad:  # what an op saves for its backward must stay as it is
        made = replace(made, out=emitter(aten.clone.default, made.out))
    return made


def _written(places: Places, found: FoundCall, emitter: Emitter) -> Written:
    """The call as the program wrote it, with the operands that it reads."""
    found = found.as_written()
    wiring = found.wiring.map_nodes(places.mapping(found))
    return Written(found.call, lambda: operands_of(emitter, found.call, wiring))


def value_meta(node: Node) -> dict[str, Any]:
    """The metadata that the replacement of ``node`` takes over: its value and where it came from."""
    keys = (*COPIED_META, "example_value", "val", "tensor_meta")
    return {key: node.meta[key] for key in keys if key in node.meta}


def _put_back(decision: Decision, rejection: Rejection) -> Decision:
    answers = tuple(
        Answer(t.kernel, (*t.rejections, rejection)) if t.kernel == decision.kernel else t for t in decision.answers
    )
    return replace(decision, kernel=NATIVE, note="", reason=Reason.NONE_ACCEPTED, answers=answers)
