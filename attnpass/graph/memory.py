"""The whole memory model: which value each tensor of a program holds, now and at each place before.

Tensors that share storage share a count of writes. A write gives the tensor a new value, and the tensors that it is a
view of; every other tensor on that storage is stale, and gets its value again, through its view, when it is next read.
What cannot be followed becomes an input of the Reading, of which nothing is known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from attnpass.graph.functional import INVERSES
from attnpass.graph.symbolic import Size, hint, known, known_equal
from attnpass.graph.value import Value


@dataclass(slots=True, eq=False)
class Storage:
    """Memory that several tensors share; ``writes`` are the places of the program that wrote to it, in order."""

    writes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor lies in another one: ``op(parent, *args)``; ``op`` is None where it is the parent, whole.

    Of a view that is not ``followed``, no more is known than whose memory it shares.
    """

    parent: Held
    op: OpOverload | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    followed: bool = True


@dataclass(slots=True, eq=False)
class Held:
    """A tensor of the program.

    Attributes:
        tensor: the fake tensor.
        storage: its memory.
        view: what it is a view of, or None.
        values: the value that it held after each number of writes; filled when it is read.
        nodes: the nodes of the program whose result it is.
    """

    tensor: Tensor
    storage: Storage
    view: View | None = None
    values: dict[int, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def at(self, place: int) -> Value | None:
        """The value that it holds when the node at ``place`` begins; None if nobody read it."""
        return self.values.get(bisect_left(self.storage.writes, place))

    @property
    def overlaps_itself(self) -> bool:
        """May several of its elements lie at one place of memory, as those of an expanded tensor do?"""
        held, view = self, self.view
        while view is not None and view.followed and (view.op is None or view.op in INVERSES):  # no element twice
            held, view = view.parent, view.parent.view
        return _overlaps_itself(held.tensor)


class Memory:
    """What each tensor holds while a program runs.

    Attributes:
        made: the values, in program order.
        place: the place in the program that runs now.
        maker: the node of the program that runs now.
        loud: the nodes that did more than give a value, or give another one each time.
        writes: the places that wrote to something, in order.
        borrowed: may tensors here be those of the capture, whose shapes are not to be changed?
    """

    def __init__(self) -> None:
        self.made: list[Value] = []
        self.place = 0
        self.maker: Node | None = None
        self.loud: dict[Node, None] = {}
        self.borrowed = False
        self.writes: list[int] = []
        self._held: dict[int, Held] = {}
        self._storages: dict[int, Storage] = {}
        self._unknown = Storage()
        self._holders: dict[Value, list[Held]] = defaultdict(list)

    def add(self, op: Any, args: Sequence[Any], kwargs: dict[str, Any], fake: Any) -> Value:
        """A new value: ``op`` of others."""
        value = Value(op, tuple(args), kwargs, fake, self.maker)
        self.made.append(value)
        return value

    def leaf(self, fake: Any, why: str, constant: Tensor | None = None) -> Value:
        """A value of which nothing is known but its metadata, and ``why``."""
        value = Value(None, (), {}, fake, self.maker, why=why, constant=constant)
        self.made.append(value)
        return value

    def holds(self, tensor: Tensor) -> bool:
        return id(tensor) in self._held

    def hold(self, tensor: Tensor, value: Value, view: View | None = None) -> Held:
        """A tensor that is new here, with the value that it holds."""
        held = Held(tensor, self._storage(tensor) if view is None else view.parent.storage, view)
        self._held[id(tensor)] = held
        self._set(held, value)
        return held

    def held(self, tensor: Tensor) -> Held:
        """What is known of a tensor; one that is new here is a value of which nothing is known."""
        found = self._held.get(id(tensor))
        return found if found is not None else self.hold(tensor, self.leaf(tensor, "it was made outside of the graph"))

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor holds now."""
        held = self.held(tensor)
        version = len(held.storage.writes)
        found = held.values.get(version)
        if found is None:
            found = self._again(held)
            self._set(held, found)
        return found

    def holders(self, value: Value) -> list[Held]:
        """The tensors that have held a value."""
        return self._holders.get(value, [])

    def write(self, tensor: Tensor, value: Value) -> None:
        """``tensor`` holds ``value`` from now on, and so do the tensors that it is a view of."""
        held = self.held(tensor)
        chain = [(held, value)]
        while held.view is not None:
            parent = held.view.parent
            value = self._behind(held.view, value)
            chain.append((parent, value))
            held = parent
        storage = held.storage
        storage.writes.append(self.place)
        self.writes.append(self.place)
        if self.maker is not None:
            self.loud[self.maker] = None
        for each, now in chain:
            lost = each.overlaps_itself
            self._set(each, self.leaf(each.tensor, "what is written to it shows at several places") if lost else now)

    def overwrite(self, tensor: Tensor, why: str) -> None:
        """Something unknown may have been written into ``tensor`` and whatever shares its memory."""
        self.write(tensor, self.leaf(tensor, why))

    def _behind(self, view: View, new: Value) -> Value:
        """The value of a view's parent when the view holds ``new``."""
        parent = view.parent
        if view.op is None and view.followed:
            return new
        inverse = None if view.op is None else INVERSES.get(view.op)
        if inverse is None:
            return self.leaf(parent.tensor, "a part of it was written")
        op, args = inverse(self.value(parent.tensor), new, view.args, parent.tensor)
        return self.add(op, args, {}, parent.tensor)

    def _again(self, held: Held) -> Value:
        """The value of a tensor whose memory was written since it was last read."""
        if held.view is None or not held.view.followed:
            return self.leaf(held.tensor, "it shares memory with a tensor that was written")
        base = self.value(held.view.parent.tensor)
        if held.view.op is None:
            return base
        return self.add(held.view.op, (base, *held.view.args[1:]), held.view.kwargs, held.tensor)

    def _set(self, held: Held, value: Value) -> None:
        held.values[len(held.storage.writes)] = value
        self._holders[value].append(held)

    def _storage(self, tensor: Tensor) -> Storage:
        try:
            key = int(tensor.untyped_storage()._cdata)
        except (NotImplementedError, RuntimeError):  # subclasses without memory of their own may share any
            return self._unknown
        return self._storages.setdefault(key, Storage())

    def by_node(self) -> dict[Node, Held]:
        """What each node of the program holds."""
        return {node: held for held in self._held.values() for node in held.nodes}

    def shares_memory(self, one: Tensor, other: Tensor) -> bool:
        return self.held(one).storage is self._storage(other)


def _overlaps_itself(tensor: Tensor) -> bool:
    """May several of its elements lie at one place of memory, as far as its strides tell?"""
    if tensor.layout != torch.strided:
        return False
    axes = [axis for axis in zip(tensor.stride(), tensor.shape, strict=True) if not known_equal(axis[1], 1)]
    last: Size = 0  # of the places that the axes so far reach
    for stride, size in sorted(axes, key=lambda axis: hint(axis[0]) or 0):
        if not known(stride > last):
            return True
        last = last + (size - 1) * stride
    return False
