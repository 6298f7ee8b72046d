"""Which values are present at a place of the program: what a call that is put there can read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from attnpass.find.handwritten.links import RefusedError
from attnpass.graph.ops import spelled
from attnpass.graph.reading import Reading
from attnpass.graph.value import Value
from attnpass.graph.values import spelled as spelled_node
from attnpass.graph.values import tensor


@dataclass(frozen=True, slots=True)
class Present:
    """Is a value there when the node ``place`` begins: does a node of the program still hold it?"""

    reading: Reading
    place: Node

    def __call__(self, value: Value) -> bool:
        return self.reading.holder(value, self.place) is not None

    def node(self, value: Any) -> Node:
        """The node that holds a value, or a symbolic number, that is present."""
        found = self.reading.holder if isinstance(value, Value) else self.reading.number
        node = found(value, self.place)
        assert node is not None, "an operand was found that nobody holds"
        return node

    def demand(self, value: Value, at: Value) -> None:
        """Refuse the chain if a value is gone.

        Raises:
            RefusedError: naming the op that reads the value.
        """
        if self(value):
            return
        writer = self.reading.overwritten_by(value, self.place)
        if writer is None:
            raise RefusedError(at, f"an operand of `{spelled(at)}` exists only inside of an op")
        name = spelled_node(writer)
        raise RefusedError(at, f"`{name}` writes to an operand between the two products")

    def cuts_gradient(self, source: Value, made: Value) -> bool:
        """Does the program keep gradients from ``source``, from which ``made`` is made, as ``no_grad`` does?"""
        return self.reading.regions[self.place].grad and source.requires_grad and not made.requires_grad

    def is_autocasts(self, value: Value) -> bool:
        """Did autocast make this cast? The call's kernel gets the same one."""
        region, made = self.reading.region(value), tensor(value)
        cast = None if region is None or made is None else region.autocast.get(made.device.type)
        return cast is not None and cast == made.dtype and not self.reading.was_held(value)  # type: ignore[union-attr]
