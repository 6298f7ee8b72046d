"""Which inputs of the program the tokens of Q and of K come from: one pass forward over the values of a Reading.

The lineage of a value is a set of inputs, as the bits of an int. Everything passes on what it reads, with two
exceptions. The output of an attention has the tokens of its Q: what it reads through K and V is not its lineage, else
everything behind the first cross-attention would descend from both sequences. A parameter counts only where nothing
else does: learned queries are a sequence, a weight is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Graph

from attnpass.find.kind.origin import is_parameter
from attnpass.graph.reading import SDPA, Reading
from attnpass.graph.value import Value

LOST = 1  # a bit for what comes from somewhere that this pass does not follow: never apart from anything


@dataclass(frozen=True, slots=True)
class Lineages:
    """The inputs that each value descends from, as bits."""

    bits: Mapping[Value, int]

    @classmethod
    def of(cls, reading: Reading, attention: Mapping[Value, Value], program: Graph) -> Lineages:
        """Follow every value of a reading.

        Args:
            reading: the values.
            attention: the output of each attention -> its Q.
            program: the graph whose inputs count; those of bodies in it are lost.
        """
        bits: dict[Value, int] = {}
        parameters = 0
        for number, value in enumerate(reading.values):
            if value.is_leaf:
                known = _is_input(value, program)
                bits[value] = 1 << (number + 1) if known else LOST
                parameters |= bits[value] if known and is_parameter(value) else 0
            elif value in attention or value.target is SDPA:
                bits[value] = bits.get(attention.get(value, value.inputs[0]), LOST)
            else:
                bits[value] = _merged((bits.get(each, LOST) for each in value.inputs), parameters)
        return cls(bits)

    def apart(self, q: Value, k: Value) -> bool:
        """Do Q and K share no input?"""
        one, other = self.bits.get(q, LOST), self.bits.get(k, LOST)
        return bool(one and other) and not one & other and not (one | other) & LOST


def _is_input(value: Value, program: Graph) -> bool:
    maker = value.maker
    if value.constant is not None:
        return False
    return maker is not None and maker.op in ("placeholder", "get_attr") and maker.graph is program


def _merged(several: Iterable[int], parameters: int) -> int:
    everything = list(several)
    sequences = [one for one in everything if one & ~parameters]
    total = 0
    for one in sequences or everything:
        total |= one
    return total
