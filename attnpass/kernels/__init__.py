"""The registered kernels. One library is one file here, read top to bottom.

Third parties add theirs with the entry point group ``attnpass.kernels`` (a `Kernel` instance or class) or with
`register`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from attnpass.errors import ConfigError
from attnpass.kernel import Kernel
from attnpass.kernels.flex import Flex
from attnpass.kernels.native import Native
from attnpass.kernels.native_cudnn import NativeCudnn
from attnpass.kernels.native_efficient import NativeEfficient
from attnpass.kernels.native_flash import NativeFlash
from attnpass.kernels.native_math import NativeMath
from attnpass.kernels.reference import Reference

ENTRY_POINTS = "attnpass.kernels"
_registry: dict[str, Kernel] = {
    kernel.name: kernel
    for kernel in (Native(), NativeCudnn(), NativeFlash(), NativeEfficient(), NativeMath(), Flex(), Reference())
}


def registry() -> Mapping[str, Kernel]:
    """Every registered kernel by name, in table order."""
    _load_entry_points()
    return MappingProxyType(_registry)


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


def packages() -> frozenset[str]:
    """The distributions that the registered kernels need."""
    return frozenset(kernel.limits.package for kernel in registry().values())


@lru_cache(maxsize=1)
def _load_entry_points() -> None:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        loaded = entry.load()
        register(loaded() if isinstance(loaded, type) else loaded)


__all__ = ["Kernel", "packages", "register", "registry"]
