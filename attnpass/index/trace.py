"""From the values of a Reading to arrays: what each element of a mask is, read backwards from the call.

A value whose meaning is not known is not an end: it is read when the program runs (`Load`), and why is kept in
`Tracer.stops`. What can be read at a call is what a node of the program still holds there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from attnpass.graph.operand import Operand, value_behind
from attnpass.graph.ops import name_of, spelled
from attnpass.graph.reading import Reading
from attnpass.graph.value import Value, mapped
from attnpass.graph.values import tensor
from attnpass.index.arrays import Array, Index, Like
from attnpass.index.constants import recognised
from attnpass.index.expr import Apply, Expr, K, Load, Q, Where
from attnpass.index.logic import axes_of, dtype_of, is_boolean, loads_of
from attnpass.index.rules.joins import Span, assigned, span_of
from attnpass.index.rules.table import MEANINGS
from attnpass.index.scalars import StopError, is_float

aten = torch.ops.aten
SCATTERS = {aten.slice_scatter.default: aten.slice.Tensor, aten.select_scatter.default: aten.select.int}
Constants = Callable[[Node], "Array | None"]


@dataclass(slots=True)
class Tracer:
    """Reads the masks of one graph and of the bodies in it.

    Attributes:
        reading: what the program computes.
        constants: the array of an input of the program whose values may be assumed, or None.
        stops: why the meaning of a value is not known, by value.
    """

    reading: Reading
    constants: Constants = lambda _: None
    stops: dict[Value, str] = field(default_factory=dict)
    _arrays: dict[tuple[Value, int, Graph], Array] = field(default_factory=dict)

    def operand(self, operand: Operand[Value], place: Node) -> Array:
        """The array that a call at ``place`` reads as ``operand``, whose node is a value."""

        def read(argument: Any) -> Any:
            return self.operand(argument, place) if isinstance(argument, Operand) else argument

        array = self.array(operand.node, place)
        for count, step in enumerate(operand.steps):
            value = value_behind(Operand(operand.node, operand.steps[: count + 1]))
            if step.op.namespace != "aten" or not isinstance(value, Tensor):  # type: ignore[attr-defined]
                raise StopError("a step that is not known")
            name = STEPS.get(str(step.op._opname))  # type: ignore[attr-defined]
            if name is None:
                raise StopError("a step that is not known")
            array = MEANINGS[name](_like(value), *step.arguments(array, read))
        return array

    def array(self, value: Value, place: Node) -> Array:
        """The array that a value is, with loads that a call at ``place`` can make."""
        key = (value, self.reading.writes_before(place), place.graph)
        if key not in self._arrays:
            self._arrays[key] = self._array(value, place)
        return self._arrays[key]

    def _array(self, value: Value, place: Node) -> Array:
        like = _like(tensor(value))

        def element(index: Index) -> Expr:
            try:
                expr = self._meaning(value, like, place).at(index)
            except StopError as stop:
                self.stops.setdefault(value, str(stop))
                return self._load(value, index, place)
            return self._load(value, index, place) if self._is_better_read(value, expr, place) else expr

        return like.made_of(element)

    def _is_better_read(self, value: Value, expr: Expr, place: Node) -> bool:
        """Is it an integer that is computed from another for each score, as T5's buckets are, and there to be read?"""
        computed = isinstance(expr, (Apply, Where)) and not is_boolean(expr) and not is_float(dtype_of(expr))
        if not computed or self.reading.holder(value, place) is None:
            return False
        return any({Q, K} <= axes_of(load) for load in loads_of(expr))

    def _meaning(self, value: Value, like: Like, place: Node) -> Array:
        if value.is_leaf:
            known = self._constant(value)
            if known is None:
                raise StopError(value.why)
            return known
        if value.target in SCATTERS:
            return self._assigned(value, like, place)
        if value.target is operator.getitem:
            raise StopError(f"one of several results of {spelled(value)}")
        meaning = MEANINGS.get(name_of(value))
        if meaning is None:
            raise StopError(f"{spelled(value)} has no meaning here")

        def read(operand: Value) -> Any:
            return self.array(operand, place) if tensor(operand) is not None else operand

        args, kwargs = mapped(Value, read, (value.args, value.kwargs))
        try:
            return meaning(like, *args, **kwargs)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise StopError(f"{spelled(value)} is called in a way that is not known here: {error}") from error

    def _assigned(self, value: Value, like: Like, place: Node) -> Array:
        """What an assignment to a part, of a part, ... of a tensor leaves."""
        base, spans = value.args[0], list[Span]()
        while True:
            x, source, *part = value.args
            view = SCATTERS[value.target]  # type: ignore[index]
            spans.append(span_of(_like(tensor(x)).shape, _like(tensor(source)).shape, part, view is aten.select.int))
            inner = source.args[0] if source.target in SCATTERS else None
            if inner is None or inner.target is not view or inner.args != (x, *part):
                return assigned(like, self.array(base, place), self.array(source, place), spans)
            value = source

    def _constant(self, value: Value) -> Array | None:
        """The array that an input is: a table of the program, or a buffer whose values may be assumed."""
        held, maker = value.constant, value.maker
        if isinstance(held, Tensor) and not isinstance(held, torch._subclasses.FakeTensor):
            return recognised(held)
        return None if maker is None or maker.op != "placeholder" else self.constants(maker)

    def _load(self, value: Value, index: Index, place: Node) -> Expr:
        """Read the element when the program runs: what the call finds there must be this very value.

        Raises:
            StopError: no node of the program holds it there.
        """
        if self.reading.holder(value, place) is None:
            changed = "may change before the call" if self.reading.was_held(value) else "is not there at the call"
            raise StopError(f"{spelled(value)} {changed}")
        made = tensor(value)
        assert made is not None
        return Load(value, index, made.dtype)


def _like(value: Any) -> Like:
    if not isinstance(value, Tensor):
        raise StopError("no tensor")
    return Like(tuple(value.shape), value.dtype)


# The steps of `attnpass.find.handwritten.axes.arranged`, in the spelling that they are emitted in.
STEPS = {
    **dict.fromkeys(("unsqueeze", "squeeze", "unflatten", "flatten"), "view"),
    **dict.fromkeys(("clone", "contiguous"), "clone"),
    **{name: name for name in ("permute", "expand", "mul", "logical_not", "to", "slice_backward")},
}
