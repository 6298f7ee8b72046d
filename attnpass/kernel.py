"""What a kernel is: a name, its limits as data, the odd checks that data cannot say, and how it is emitted.

One kernel is one file under ``kernels/`` (or in a third party's package), read top to bottom. To add one, see
docs/add_a_kernel.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch.fx import Node

from attnpass.call import AttentionCall
from attnpass.limits import Limits, Rejection
from attnpass.machine import Machine

if TYPE_CHECKING:
    from attnpass.emit import Emitter
    from attnpass.masks.meaning import Meaning


@dataclass(frozen=True, slots=True)
class Operands:
    """The nodes that a kernel is emitted from: 4-D, BHSD, in the dtype that it computes in, autocast already applied.

    Attributes:
        q: (B, H, Sq, D).
        k: (B, Hkv, Sk, D).
        v: (B, Hkv, Sk, Dv).
        mask: bool (True = take part) or additive, 4-D with each size 1 or full; None if the mask is only a rule.
        scale: factor on the scores; None (1/sqrt(D)) only where the head dim is symbolic.
        sinks: (H,), or None.
        meaning: what a proved mask means, for kernels that compute masks by functions; None without such a mask.
        heads_first: the program expects the output stored as (B, H, Sq, Dv), and a kernel that stores it so spares it a
            copy. Told only to kernels with `Kernel.stores_as_asked`.
    """

    q: Node
    k: Node
    v: Node
    mask: Node | None
    scale: float | None
    sinks: Node | None = None
    meaning: Meaning | None = None
    heads_first: bool = False


class Kernel(ABC):
    """An implementation of attention.

    Attributes:
        name: the name users write in ``ATTNPASS_KERNEL``.
        title: one line for tables.
        aliases: other names for it, such as Diffusers'.
        limits: what it can take, as data.
        candidate: is it worth timing? False for the kernels that other kernels are compared with.
        stores_as_asked: does it look at `Operands.heads_first`, and store its output so?
        keeps: True only for `native`: choosing it leaves the user's call alone.
        expensive: overloads, not of `attnpass.ops.define`, that compute attention for it: checkpoints save what they
            give (`attnpass.ops_to_save`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Limits]
    candidate: ClassVar[bool] = True
    stores_as_asked: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    expensive: ClassVar[tuple[Any, ...]] = ()

    def limits_for(self, machine: Machine) -> Limits:
        """The limits on this machine; by default those of the class."""
        return self.limits

    def check(self, call: AttentionCall, machine: Machine) -> Iterable[Rejection]:
        """Reasons that `limits` cannot express. Pure: no look at the machine, no environment, no import."""
        return ()

    @abstractmethod
    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        """Insert the nodes that compute ``call`` and return the (B, H, Sq, Dv) output node.

        Emit only ATen ops, ``torch.ops.attnpass.*`` ops and higher-order ops: a Python function as a target makes
        AOTAutograd's cache bypass the graph.
        """

    def compile_options(self, call: AttentionCall) -> dict[str, Any]:
        """Inductor options that this kernel needs in a graph that holds it."""
        return {}
