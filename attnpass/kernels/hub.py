"""hub: a kernel from the Hugging Face Hub or from a folder, through the package `kernels` (>= 0.14).

``ATTNPASS_KERNEL=hub:org/repo`` (branch main), ``hub:org/repo@revision``, ``hub:org/repo@3`` (version 3), or
``hub:./folder`` in the layout that `kernels` builds (https://huggingface.co/docs/kernels).

What its source says (``kernels/load.py``, 0.17.2):

- a loaded module has a name of its own, and so have its ops: its Python functions are called, never its ops;
- the contract is that of the library that was packaged, so it is read from the functions' signatures: flash-attn 2, 3
  or 4, SageAttention 1 or 2; another module is refused by what is in it;
- publishers that the Hub does not trust are refused unless ``trust_remote_code`` is set: ATTNPASS_TRUST_REMOTE_CODE=1;
- before 0.14 it asks nobody.

Forward only: what a backward is called inside a package is not part of its contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

from torch import Tensor
from torch.fx import Node

from attnpass.emit import ops
from attnpass.emit.emitter import Emitter, Operands
from attnpass.emit.layout import bhsd, bshd, either_layout, from_layout, multiple_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import Limits, Rejection
from attnpass.ir.mask import Term
from attnpass.kernels.flash2 import Flash2
from attnpass.kernels.flash3 import Flash3
from attnpass.kernels.flash4 import Flash4
from attnpass.kernels.hub_module import FLASH_4, PREFIX, SAGE_1, SAGE_2, Function, Place, load, loaded, names_of
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.sage import Sage, on_default_stream
from attnpass.kernels.sage1 import Sage1
from attnpass.machine.library import Build, Library
from attnpass.machine.machine import Machine
from attnpass.settings.config import Config

BSHD = "NHD"  # SageAttention's name for it
FAMILIES: dict[str, Kernel] = {kernel.name: kernel for kernel in (Flash2(), Flash3(), Flash4(), Sage1(), Sage())}


class HubKernel(Kernel):
    """What every kernel from the Hub shares; `hub_kernel` makes one for a wish."""

    name = PREFIX
    title = "a kernel from the Hugging Face Hub"
    limits = Limits(devices=frozenset({"cuda"}), backward=False)

    def family(self, machine: Machine) -> Kernel | None:
        """The kernel whose contract the module has; None if the module was not loaded."""
        built = machine.builds.get(self.limits.library.key, {})
        return next((kernel for name, kernel in FAMILIES.items() if built.get(name)), None)

    def limits_for(self, machine: Machine) -> Limits:
        family = self.family(machine)
        if family is None:
            return self.limits
        missing = set() if machine.has_built(self.limits.library, "window") else {Term.WINDOW}
        return replace(
            family.limits_for(machine),
            library=self.limits.library,
            terms=family.limits.terms - missing,
            backward=False,
            dropout=False,
            softcap=False,  # what was compiled into the package is not known
            sinks=False,
            log_sum_exp=False,
        )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        family = self.family(machine)
        if family is not None:
            yield from family.check(call, machine)

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        family = _function(self.name).family
        numbers = (args.scale, *call.mask.band())
        if family in (SAGE_1, SAGE_2):
            layout, q, k, v = either_layout(emitter, args, multiple_of(64, call.D) if family == SAGE_2 else None)
            out = _attention.emit(emitter, call, q, k, v, self.name, layout, *numbers)
            return from_layout(emitter, out, layout, call.Dv)
        q, k, v = bshd(emitter, args, None if family == FLASH_4 else multiple_of(8, call.D))
        return bhsd(emitter, _attention.emit(emitter, call, q, k, v, self.name, BSHD, *numbers), call.Dv)


@cache
def hub_kernel(wish: str, trust_remote_code: bool = False) -> Kernel:
    """The kernel that ``wish``, such as ``hub:org/repo``, names. Nothing is loaded yet."""
    place = Place.read(wish)
    library = Library(
        "kernels", "0.14", modules=("kernels",), build=partial(_read_build, wish, trust_remote_code), part=wish
    )
    facts = {
        "name": wish,
        "aliases": names_of(wish),
        "title": f"the kernel in {place.folder or place.repository}",
        "limits": replace(HubKernel.limits, library=library),
        "__doc__": HubKernel.__doc__,
        "__module__": __name__,
    }
    made: Kernel = type("HubKernel", (HubKernel,), facts)()
    return made


def _read_build(wish: str, trust_remote_code: bool) -> Build:
    """Load the module and say what it is like."""
    function = load(wish, trust_remote_code)
    return {**{name: name == function.family for name in FAMILIES}, "window": function.window}


def _function(wish: str) -> Function:
    """As it was loaded when the call was decided; a saved program decides nothing, and asks the environment alone."""
    return loaded(wish) or load(wish, Config.load().trust_remote_code)


def _forward(q: Tensor, k: Tensor, v: Tensor, wish: str, layout: str, scale: float, left: int, right: int) -> Tensor:
    """(B, Sq, H, D), (B, Sk, Hkv, D), (B, Sk, Hkv, Dv) -> (B, Sq, H, Dv), contiguous; "HND" is BHSD."""
    function = _function(wish)
    causal = left < 0 and right == 0
    if function.family not in (SAGE_1, SAGE_2):
        window = _window(function, left, right)
        return _first(function.call(q=q, k=k, v=v, softmax_scale=scale, causal=causal, **window))
    k = k.clone() if function.family == SAGE_1 else k  # version 1 subtracts the mean from the caller's K
    with on_default_stream(q, k, v) as keep:
        out = _first(function.call(q=q, k=k, v=v, tensor_layout=layout, is_causal=causal, sm_scale=scale))
        keep(out)
    return out


def _first(out: Any) -> Tensor:
    """The output; flash-attn 4 and early builds of 3 give the log-sum-exp beside it."""
    output: Tensor = out[0] if isinstance(out, (tuple, list)) else out
    return output.contiguous()


def _window(function: Function, left: int, right: int) -> dict[str, Any]:
    if left < 0 and right <= 0:
        return {}
    none = None if function.family == FLASH_4 else -1
    return {"window_size": (none if left < 0 else left, none if right < 0 else right)}


_attention = ops.attention(
    "hub(Tensor q, Tensor k, Tensor v, str wish, str layout, float scale, SymInt left, SymInt right)",
    _forward,
    vmap=True,
    graphs=False,  # SageAttention's launches are not recorded
)
