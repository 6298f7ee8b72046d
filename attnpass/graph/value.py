"""A value of a Reading: one tensor as it is at one time, and the op on other values that gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor
from torch.fx import Node

T = TypeVar("T")


def returned(*_: Any) -> Any:
    """The target of the one value that reads everything that leaves the program."""
    raise AssertionError("a marker, never called")


@dataclass(slots=True, eq=False)
class Value:
    """One value.

    Attributes:
        target: the op, an `OpOverload` of ATen's for all that can be looked through; None for a leaf, of which nothing
            is known but its metadata.
        args, kwargs: the op's arguments, with values for tensors; sizes may be SymInts.
        fake: the fake tensor (of an op with several results, all of them).
        maker: the node of the program that was running when it was made.
        requires_grad: do gradients flow to it?
        why: of a leaf: why nothing more is known of it.
        constant: of a leaf: the tensor that it is, where the program itself holds it.
        users: the values that read it.
    """

    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fake: Any
    maker: Node | None
    requires_grad: bool = False
    why: str = ""
    constant: Tensor | None = None
    users: dict[Value, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in self.inputs:
            value.users[self] = None

    @property
    def is_leaf(self) -> bool:
        return self.target is None

    @property
    def inputs(self) -> list[Value]:
        """The values that it is made from, in order, each once."""
        return list(dict.fromkeys(each_in(Value, (self.args, *self.kwargs.values()))))

    @property
    def name(self) -> str:
        return "value" if self.maker is None else self.maker.name

    def __repr__(self) -> str:
        return f"<{self.name}: {self.why if self.target is None else self.target}>"

    def unread(self) -> None:
        """Nobody reads it, so it reads nobody."""
        for value in self.inputs:
            value.users.pop(self, None)


def each_in(kind: type[T], argument: Any) -> Iterator[T]:
    """Each value, or each tensor, in an argument or a result of an op."""
    if isinstance(argument, kind):
        yield argument
    elif isinstance(argument, (list, tuple)):
        for each in argument:
            yield from each_in(kind, each)


def mapped(kind: type[T], function: Callable[[T], Any], argument: Any) -> Any:
    """``argument``, or all arguments of an op, with each value or each tensor in it replaced."""
    if isinstance(argument, kind):
        return function(argument)
    if isinstance(argument, (list, tuple)):
        return tuple(mapped(kind, function, each) for each in argument)
    if isinstance(argument, dict):
        return {name: mapped(kind, function, each) for name, each in argument.items()}
    return argument
