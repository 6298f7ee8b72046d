"""understand: mask tensors of calls -> what they mean. Read only; equal masks are read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.fx import Node

from attnpass.find.found import Findings, FoundCall
from attnpass.graph.ops import spelled
from attnpass.graph.reading import Reading
from attnpass.graph.symbolic import Size, known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import source_of, tensor
from attnpass.index.expr import AXES, TRUE, B, H, K, Load, Q, axis
from attnpass.index.logic import loads_of
from attnpass.index.scalars import StopError
from attnpass.index.trace import Constants, Tracer
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.hidden import Low, hides_when_written, may_be_low
from attnpass.ir.mask import EmptyRows, MaskSpec
from attnpass.ir.meaning import Meaning
from attnpass.ir.wiring import Addition
from attnpass.understand.buffers import Assumptions
from attnpass.understand.prove import Split, only_a_tensor, prove, taken_apart


class Reader:
    """Reads the masks of one program.

    Args:
        reading: what the program computes.
        constants: the array of an input whose values may be assumed, or None.
    """

    def __init__(self, reading: Reading, constants: Constants = lambda _: None) -> None:
        self.reading = reading
        self.tracer = Tracer(reading, constants)
        self.read: dict[Any, Meaning] = {}

    def understood(self, found: FoundCall) -> FoundCall:
        """The call with the meaning of its mask, if there is a mask tensor and its meaning could be proved."""
        call, values = found.call, found.values
        if values is None or not values.additions or call.mask_and_causal or call.context.functorch:
            return found
        sizes = {B: call.B, H: call.H, Q: call.Sq, K: call.Sk}
        kept = call.mask.tensor
        kind = (call.pattern, call.mask.empty, call.mask.bias is None, None if kept is None else kept.dtype)
        key = (values.additions, tuple(map(str, sizes.values())), kind, found.epoch, found.node.graph)
        if key not in self.read:
            try:
                meaning = self._meaning(found, values.additions, sizes)
                held = partial(self._holder, place=found.node)  # what one call of an epoch finds, the next one does
                self.read[key] = meaning if meaning.stop else meaning.map_nodes(held)
            except StopError as stop:
                self.read[key] = Meaning.unknown(call.mask, str(stop))
        meaning = self.read[key]
        return replace(found, call=replace(call, mask=meaning.spec), meaning=meaning)

    def _holder(self, value: Value, place: Node) -> Node:
        node = self.reading.holder(value, place)
        assert node is not None, "a mask reads a value that nobody holds"
        return node

    def _meaning(self, found: FoundCall, additions: Sequence[Addition[Value]], sizes: dict[str, Size]) -> Meaning:
        call, tracer = found.call, self.tracer
        split, hiding = _combined(additions, tracer, found, sizes)
        spelled_mask = call.mask.tensor
        by_hand = call.pattern is Pattern.HANDWRITTEN and not call.mask.empty.is_zero  # as sinks leave it
        meaning = prove(split, sizes, by_hand, spelled_mask, several=hiding > 1)
        finite = [low for low in split.lows if low.value > -math.inf]
        written = any(low.written for low in finite)
        outdone = split.mixed or meaning.spec.rows_may_be_empty  # else each row sees a key where it is moderate
        if finite and meaning.bias is not None and outdone and may_be_low(meaning.bias):
            return Meaning.unknown(call.mask, "a finite number hides keys beside a bias that may be as low")
        if written and meaning.bias is not None and meaning.spec.rows_may_be_empty:
            return Meaning.unknown(call.mask, "a hidden row reads its bias or not, by the order of both")
        meaning = replace(meaning, spec=_with_empty_rows(call, meaning, hides=bool(split.lows)))
        loads = [*loads_of(meaning.allowed), *([] if meaning.bias is None else loads_of(meaning.bias))]
        stop = _first_stop(tracer, additions)
        if only_a_tensor(meaning):
            return Meaning.unknown(call.mask, stop or "its values are an input of the graph")
        if any(_is_elsewhere(load, call.device) for load in loads):
            return Meaning.unknown(call.mask, f"it reads a tensor that is not on {call.device}")
        ends = _end_of_gradients(additions, loads) if call.needs_grad else None
        if ends is not None:
            return Meaning.unknown(call.mask, f"no gradient passes {spelled(ends)} to what it reads")
        if loads and call.context.nested_in:
            return Meaning.unknown(call.mask, "it reads data inside the body of another operation")
        return meaning


def _with_empty_rows(call: AttentionCall, meaning: Meaning, hides: bool) -> MaskSpec:
    """The mask with what a hidden row gives; of a bias alone, which ``hides`` no key, the call itself says it best."""
    spec, said = meaning.spec, call.mask
    if hides or call.sinks is not None:
        return replace(spec, empty=_empty_rows(call, meaning))
    return replace(spec, rows_may_be_empty=spec.rows_may_be_empty and said.rows_may_be_empty, empty=said.empty)


def _empty_rows(call: AttentionCall, meaning: Meaning) -> EmptyRows:
    """What a hidden row gives, where the call says more about it than the masks do."""
    proved, said = meaning.spec.empty, call.mask.empty
    if call.sinks is not None:
        return EmptyRows.ZERO  # the sink is seen, whatever number hides the keys
    mixed = proved is EmptyRows.NAN and said is EmptyRows.NAN_MIXED and meaning.bias is not None
    return said if mixed or (proved is EmptyRows.ZERO and said.is_zero) else proved


def _combined(
    additions: Sequence[Addition[Value]], tracer: Tracer, found: FoundCall, sizes: dict[str, Size]
) -> tuple[Split, int]:
    """All additions as one split mask, and how many of them hide keys."""
    index = tuple(axis(name) for name in AXES)
    total, hiding = Split(TRUE), 0
    for addition in additions:
        array = tracer.operand(addition.operand, found.node)
        if array.ndim > 4 or not _broadcasts(array.shape, sizes):
            raise StopError(f"a mask of shape {tuple(map(str, array.shape))}")
        expr = array.broadcast_at(index)
        if addition.fill is None:
            part = taken_apart(expr)
            if found.call.context.autocast is not None and found.call.pattern is not Pattern.HANDWRITTEN:
                part = replace(part, lows=frozenset(_rounded(low, found.call.dtype) for low in part.lows))
            elif found.call.pattern is not Pattern.HANDWRITTEN:  # SDPA's kernels add in fp32
                part = replace(part, lows=frozenset(replace(low, dtype=None) for low in part.lows))
        elif hides_when_written(addition.fill, found.call.dtype):
            part = Split(expr, lows=frozenset({Low(addition.fill, written=True)}))
        else:
            raise StopError(f"scores are replaced by {addition.fill:g}, which does not hide a key")
        total = total.plus(part, torch.float32)
        hiding += bool(part.lows)
    return total, hiding


def _rounded(low: Low, dtype: torch.dtype) -> Low:
    """A number in the dtype that autocast gives SDPA's mask: the lowest one of fp32 is -inf in bf16."""
    return Low(float(torch.tensor(low.value).to(dtype).item()))


def _broadcasts(shape: Sequence[Size], sizes: dict[str, Size]) -> bool:
    names = AXES[4 - len(shape) :]
    return all(known_equal(n, 1) or known_equal(n, sizes[name]) for n, name in zip(shape, names, strict=True))


def _end_of_gradients(additions: Sequence[Addition[Value]], loads: Sequence[Load]) -> Value | None:
    """A value between a mask and what it reads where the program lets no gradient through, as `detach` does."""
    ends = {load.node for load in loads}
    if not any(load.node.requires_grad and load.dtype.is_floating_point for load in loads):
        return None
    waiting = [addition.operand.node for addition in additions]
    seen = {*waiting, *ends}
    waiting = [value for value in waiting if value not in ends]
    while waiting:
        value = waiting.pop()
        if _is_float(value) and not value.requires_grad and any(map(_learns, value.inputs)):
            return value
        fresh = [each for each in value.inputs if each not in seen]
        seen.update(fresh)
        waiting += fresh
    return None


def _is_elsewhere(load: Load, device: torch.device) -> bool:
    """Is it read from another device? PyTorch takes an index on the CPU for a table that is not."""
    made = tensor(load.node)
    return made is not None and made.device != device


def _is_float(value: Value) -> bool:
    made = tensor(value)
    return made is not None and made.dtype.is_floating_point


def _learns(value: Value) -> bool:
    return value.requires_grad and _is_float(value)


def _first_stop(tracer: Tracer, additions: Sequence[Addition[Value]]) -> str:
    """The value that understanding ended at, nearest to the call, with its source line."""
    queue: list[Value] = [addition.operand.node for addition in additions]
    seen: set[Value] = set()
    while queue:
        value = queue.pop(0)
        if value in seen:
            continue
        seen.add(value)
        if value in tracer.stops:
            maker = value.maker
            where = source_of({} if maker is None else maker.meta)
            name = spelled(value) if maker is None else maker.name
            return f"{tracer.stops[value]} ({name}{f', {where}' if where.file else ''})"
        queue += value.inputs
    return ""


def understand(findings: Findings, assumptions: Assumptions) -> Findings:
    """The same calls with what their masks mean; ``assumptions`` notes the buffers that were read for it."""
    reader = Reader(findings.reading, assumptions.array)
    return replace(findings, calls=tuple(map(reader.understood, findings.calls)))
