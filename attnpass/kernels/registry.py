"""The registered kernels. One library is one file here, read top to bottom.

Third parties add theirs with the entry point group ``attnpass.kernels`` (a `Kernel` instance or class) or with
`register`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType

from attnpass.errors import ConfigError
from attnpass.kernels.aiter import Aiter
from attnpass.kernels.flash2 import Flash2
from attnpass.kernels.flash3 import Flash3
from attnpass.kernels.flash3_fp8 import Flash3Fp8
from attnpass.kernels.flash4 import Flash4
from attnpass.kernels.flash_decoding import FlashDecoding
from attnpass.kernels.flex import Flex
from attnpass.kernels.hub import hub_kernel
from attnpass.kernels.hub_module import wish_of
from attnpass.kernels.kernel import Kernel
from attnpass.kernels.native import Native
from attnpass.kernels.native_cudnn import NativeCudnn
from attnpass.kernels.native_efficient import NativeEfficient
from attnpass.kernels.native_flash import NativeFlash
from attnpass.kernels.native_math import NativeMath
from attnpass.kernels.npu import Npu
from attnpass.kernels.reference import Reference
from attnpass.kernels.sage import KERNELS as SAGE_KERNELS
from attnpass.kernels.sage1 import Sage1
from attnpass.kernels.sage3 import Sage3
from attnpass.kernels.xformers import Xformers
from attnpass.kernels.xla import Xla
from attnpass.machine.library import Library

ENTRY_POINTS = "attnpass.kernels"
_PYTORCH = (Native(), NativeCudnn(), NativeFlash(), NativeEfficient(), NativeMath(), Flex())
_OWN = (FlashDecoding(),)
_FLASH = (Flash2(), Flash3(), Flash3Fp8(), Flash4())
_LIBRARIES = (*_FLASH, *SAGE_KERNELS.values(), Sage1(), Sage3(), Xformers(), Aiter(), Npu(), Xla())
_registry: dict[str, Kernel] = {kernel.name: kernel for kernel in (*_PYTORCH, *_OWN, *_LIBRARIES, Reference())}


def registry() -> Mapping[str, Kernel]:
    """Every registered kernel by name, in table order."""
    _load_entry_points()
    return MappingProxyType(_registry)


def list_kernels() -> tuple[Kernel, ...]:
    """Every registered kernel, in table order."""
    return tuple(registry().values())


def registry_for(wishes: Iterable[str], trust_remote_code: bool = False) -> Mapping[str, Kernel]:
    """Every registered kernel, and those that come into being by being named: ``hub:org/repo``, ``flash_hub``."""
    named = filter(None, map(wish_of, wishes))
    return MappingProxyType({**registry(), **{wish: hub_kernel(wish, trust_remote_code) for wish in named}})


def register(kernel: Kernel) -> Kernel:
    """Add a kernel under its name.

    Raises:
        ConfigError: the name or one of the aliases is taken.
    """
    taken = {name: other for other in _registry.values() for name in (other.name, *other.aliases)}
    for name in (kernel.name, *kernel.aliases):
        if name in taken:
            raise ConfigError(f"registering kernel {kernel.name}: the name {name!r} belongs to {taken[name].title!r}")
    _registry[kernel.name] = kernel
    return kernel


def libraries(kernels: Mapping[str, Kernel] | None = None) -> frozenset[Library]:
    """The libraries that ``kernels`` need, or the registered ones."""
    return frozenset(kernel.limits.library for kernel in (kernels or registry()).values())


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        loaded = entry.load()
        register(loaded() if isinstance(loaded, type) else loaded)


__all__ = ["Kernel", "libraries", "register", "registry"]
