"""Ops as they run -> values: fills a `Memory` with what `attnpass.graph.dispatch` tells it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.graph.forms import UNINITIALISED, Form, formed, full, part, takes_all
from attnpass.graph.functional import without_out, without_write, written
from attnpass.graph.memory import Memory, View
from attnpass.graph.symbolic import known_all_equal
from attnpass.graph.value import Value, each_in, mapped

aten = torch.ops.aten
LITERALS = frozenset({aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.lift.default})
UNINITIALISED_MEMORY = "its memory is not initialised"
COPIES = frozenset({aten.copy_.default, aten.fill_.Tensor})


class ChangesShapesError(Exception):
    """The program changes shapes in place; captured values must not be."""


@dataclass(frozen=True, slots=True)
class Noted:
    """An op that is about to run: its operands as tensors and as values, and what it will have written."""

    op: OpOverload
    args: Sequence[Any]
    kwargs: dict[str, Any]
    values: tuple[Any, ...]
    named: dict[str, Any]
    writes: list[tuple[Tensor, Value]]


class Recorder:
    """Adds each op that runs to a memory.

    Attributes:
        memory: what every tensor holds.
        effects: values of ops that do more than give a value; they stay, read or not.
        silent: nothing is noted while this is set.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.effects: list[Value] = []
        self.silent = False

    @contextmanager
    def told_to(self, other: Recorder) -> Iterator[None]:
        """What runs inside is told to ``other``."""
        mine = self.memory, self.effects
        self.memory, self.effects = other.memory, other.effects
        try:
            yield
        finally:
            self.memory, self.effects = mine

    def known(self, op: OpOverload, args: tuple[Any, ...], result: Tensor) -> None:
        """Note an op that need not run, since its result is known."""
        self._single(Noted(op, args, {}, mapped(Tensor, self.memory.value, args), {}, []), result)

    def effect(self, value: Value) -> None:
        """An op that does more than give a value; it stays, read or not."""
        self.effects.append(value)
        self._loud()

    def _loud(self) -> None:
        if self.memory.maker is not None:
            self.memory.loud[self.memory.maker] = None

    def before(self, op: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Noted | None:
        """Called with the operands before an op runs; what it gives is handed to `after`."""
        if self.silent:
            return None
        literal = op in LITERALS and not isinstance(args[0], FakeTensor)
        values, named = mapped(Tensor, self.memory.value, (() if literal else args, kwargs))
        targets = written(op, args, kwargs)
        if torch.Tag.nondeterministic_seeded in op.tags:
            self._loud()
        if torch.Tag.inplace_view in op.tags and self.memory.borrowed:
            raise ChangesShapesError
        writes = self._written(op, args, kwargs, (values, named), targets) if targets else []
        return Noted(op, args, kwargs, values, named, writes)

    def after(self, noted: Noted | None, result: Any) -> None:
        """Called with the op's result."""
        if noted is None:
            return
        for target, value in noted.writes:
            self.memory.write(target, value)
        if isinstance(result, Tensor):
            if not self.memory.holds(result):
                self._single(noted, result)
        elif isinstance(result, (list, tuple)):
            self._several(noted, [*result])
        elif result is None and not noted.op._schema.is_mutable:
            self.effect(self.memory.add(noted.op, noted.values, noted.named, None))

    def _single(self, noted: Noted, out: Tensor) -> None:
        memory = self.memory
        if not noted.values and noted.args:  # a literal of the program
            memory.hold(out, self._literal(noted.args[0], out))
            return
        parent = self._parent(noted, out)
        form = formed(noted.op, noted.values, noted.named, out)
        if parent is not None:
            self._view(form, parent, out)
        elif noted.op in UNINITIALISED:
            memory.hold(out, memory.leaf(out, UNINITIALISED_MEMORY))
        else:
            memory.hold(out, memory.add(*form, out))

    def _several(self, noted: Noted, outs: list[Any]) -> None:
        memory, whole = self.memory, None
        for index, out in enumerate(outs):
            if not isinstance(out, Tensor) or memory.holds(out):
                continue
            form = part(noted.op, noted.values, noted.named, outs, index)
            parent = self._parent(noted, out)
            if form is not None and parent is not None:
                self._view(formed(*form, out), parent, out)
                continue
            if whole is None:
                whole = memory.add(noted.op, noted.values, noted.named, tuple(outs))
            value = memory.add(operator.getitem, (whole, index), {}, out)
            memory.hold(out, value, None if parent is None else View(memory.held(parent), followed=False))

    def _parent(self, noted: Noted, out: Tensor) -> Tensor | None:
        """The operand whose memory a result lies in."""
        if noted.op._schema.is_mutable:
            return None
        operands = each_in(Tensor, (*noted.args, *noted.kwargs.values()))
        return next((each for each in operands if self.memory.shares_memory(each, out)), None)

    def _view(self, form: Form, parent: Tensor, out: Tensor) -> None:
        memory, (op, args, kwargs) = self.memory, form
        base = memory.value(parent)
        if not args or args[0] is not base:
            memory.hold(out, memory.add(*form, out), View(memory.held(parent), followed=False))
        elif takes_all(op, parent, out, args) or (op is aten.detach.default and _is_new(base)):
            memory.hold(out, base, View(memory.held(parent)))
        else:
            memory.hold(out, memory.add(*form, out), View(memory.held(parent), op, args, kwargs))

    def _literal(self, given: Tensor, out: Tensor) -> Value:
        """``torch.tensor(...)``: one number as it is; several as a constant."""
        if given.numel() == 1 and given.device.type == "cpu":
            with unset_fake_temporarily():
                number = given.item()
            return self.memory.add(*full(out, number), out)
        return self.memory.leaf(out, "a table of numbers", given)

    def _written(
        self,
        op: OpOverload,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        values: tuple[tuple[Any, ...], dict[str, Any]],
        targets: list[Tensor],
    ) -> list[tuple[Tensor, Value]]:
        """What will stand in each target behind the op."""
        memory = self.memory
        if op in COPIES:
            return [(targets[0], self._cast(values[0][1], args[1], targets[0]))]
        pure = without_write(op)
        if pure is None:
            call = memory.add(op, values[0], values[1], None)
            if op.namespace != "aten":
                self.effect(call)
            why = f"`{op._schema.name.partition('::')[2]}` writes to it"
            return [(target, memory.leaf(target, why)) for target in targets]
        given, named = without_out(op, args, kwargs)
        result = pure(*given, **named)  # the mode is off inside of itself: nobody is told
        given, named = without_out(op, *values)
        if isinstance(result, Tensor):
            value = memory.add(*formed(pure, given, named, result), result)
            return [(targets[0], self._cast(value, result, targets[0]))]
        whole = memory.add(pure, given, named, tuple(result))
        made = [memory.add(operator.getitem, (whole, i), {}, each) for i, each in enumerate(result)]
        return [(t, self._cast(v, r, t)) for t, v, r in zip(targets, made, result, strict=False)]

    def _cast(self, value: Value, tensor: Tensor, target: Tensor) -> Value:
        """``value`` as it stands in ``target`` when it was copied there: in its dtype, broadcast to its shape."""
        memory = self.memory
        if tensor.dtype != target.dtype or tensor.device != target.device:
            options = {"dtype": target.dtype, "device": target.device}
            tensor = torch.empty_like(tensor, dtype=target.dtype, device=target.device)
            value = memory.add(aten._to_copy.default, (value,), options, tensor)
        if not known_all_equal(tuple(tensor.shape), tuple(target.shape)):
            value = memory.add(aten.expand.default, (value, tuple(target.shape)), {}, target)
        return value


def _is_new(value: Value) -> bool:
    """Is it made from numbers alone? PyTorch detaches what ``torch.full`` gives, and no gradient is cut by that."""
    return not value.inputs and (not value.is_leaf or value.why == UNINITIALISED_MEMORY)
