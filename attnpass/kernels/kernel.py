"""What a kernel is: a name, its limits as data, the odd checks that data cannot say, and how it is emitted.

One kernel is one file under ``kernels/`` (or in a third party's package), read top to bottom. To add one, see
docs/add_a_kernel.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from attnpass.emit.emitter import Emitted, Operands
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Limits, Rejection
from attnpass.machine.machine import Machine

if TYPE_CHECKING:
    from attnpass.emit.emitter import Emitter


class Kernel(ABC):
    """An implementation of attention.

    Attributes:
        name: the name users write in ``ATTNPASS_KERNEL``.
        title: one line for tables.
        aliases: other names for it, such as Diffusers'.
        limits: what it can take, as data.
        backend: its name among PyTorch's SDPA backends (`torch.nn.attention.SDPBackend`); "" for a kernel that is none.
        candidate: is it worth timing? False for the kernels that other kernels are compared with.
        stores_as_asked: does it look at `Operands.heads_first`, and store its output so?
        compiles: does the first run of a kind of call compile for seconds?
        keeps: True only for `native`: choosing it leaves the user's call alone.
        expensive: overloads, not of `attnpass.plugin.define`, that compute attention for it: checkpoints save what they
            give (`attnpass.ops_to_save`).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[Limits]
    backend: ClassVar[str] = ""
    candidate: ClassVar[bool] = True
    stores_as_asked: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    expensive: ClassVar[tuple[Any, ...]] = ()

    def limits_for(self, machine: Machine) -> Limits:
        """The limits on this machine; by default those of the class."""
        return self.limits

    def check(self, call: AttentionCall, machine: Machine) -> Iterable[Rejection]:
        """Reasons that `limits` cannot express. Pure: no look at the machine, no environment, no import."""
        return ()

    @abstractmethod
    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        """Insert the nodes that compute ``call`` and return the (B, H, Sq, Dv) output node.

        Where ``call.lse`` is not None, which no kernel is asked for whose `Limits` do not say ``log_sum_exp``: that and
        the log-sum-exp of each row, a natural logarithm, (B, H, Sq) or with more rows than there are queries.

        Emit only ATen ops, ``torch.ops.attnpass.*`` ops and higher-order ops: a Python function as a target makes
        AOTAutograd's cache bypass the graph.
        """

    def compile_options(self, call: AttentionCall) -> dict[str, Any]:
        """Inductor options that this kernel needs in a graph that holds it."""
        return {}
