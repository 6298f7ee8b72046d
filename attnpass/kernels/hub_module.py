"""The modules behind ``hub:`` wishes: where they come from, how they are loaded, and what their functions are like."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from attnpass.machine.library import UnusableError

PREFIX = "hub:"
FLASH_2, FLASH_3, FLASH_4, SAGE_1, SAGE_2 = FAMILIES = ("flash2", "flash3", "flash4", "sage1", "sage")
NAMES = {  # Diffusers' names for kernels of the Hub, in the versions that it loads (0.42)
    "flash_hub": "hub:kernels-community/flash-attn2@3",
    "flash_varlen_hub": "hub:kernels-community/flash-attn2@3",
    "_flash_3_hub": "hub:kernels-community/flash-attn3@1",
    "_flash_3_varlen_hub": "hub:kernels-community/flash-attn3@1",
    "flash_4_hub": "hub:kernels-community/flash-attn4@0",
    "sage_hub": "hub:SageAttention/sage-attention@3",
}
FORMS = (f"{PREFIX}org/repo", f"{PREFIX}org/repo@revision", f"{PREFIX}./folder")
_REPOSITORY = re.compile(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*(@[\w./-]+)?")
_loaded: dict[str, Function] = {}


def wish_of(name: str) -> str:
    """``hub:...`` for what stands behind it: written so, as transformers write it (``org/repo``), or in `NAMES`.

    "" for a name of another kind, and where neither a repository nor a folder stands behind ``hub:``.
    """
    wish = NAMES.get(name, name)
    place = wish.removeprefix(PREFIX)
    is_folder = wish != place and place.startswith((".", "/", "~"))
    return PREFIX + place if is_folder or _REPOSITORY.fullmatch(place) else ""


def names_of(wish: str) -> tuple[str, ...]:
    """The other names of a wish that `wish_of` gave."""
    place = wish.removeprefix(PREFIX)
    others = (name for name in (place, *NAMES) if wish_of(name) == wish)
    return tuple(others)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a kernel comes from: a repository of the Hub at a revision or version, or a folder."""

    repository: str = ""
    revision: str | None = "main"
    version: int | None = None
    folder: Path | None = None

    @classmethod
    def read(cls, wish: str) -> Place:
        """What `wish_of` gave."""
        text = wish.removeprefix(PREFIX)
        if text.startswith((".", "/", "~")):
            return cls(folder=Path(text).expanduser().absolute())
        repository, _, at = text.partition("@")
        return cls(repository, None, int(at)) if at.isdigit() else cls(repository, at or "main")


@dataclass(frozen=True, slots=True)
class Function:
    """What a loaded module computes attention with.

    Attributes:
        family: the library that it is like, one of `FAMILIES`.
        call: its function.
        window: does it take a window?
    """

    family: str
    call: Callable[..., Any]
    window: bool = False


def load(wish: str, trust_remote_code: bool) -> Function:
    """The attention function of the module that ``wish`` names; loaded once in a process.

    Raises:
        UnusableError: it cannot be loaded, or what is in it is not known.
    """
    if wish not in _loaded:
        try:
            module = _module(Place.read(wish), trust_remote_code)
        except Exception as error:
            text = f"{wish} cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            hint = "; ATTNPASS_TRUST_REMOTE_CODE=1 allows any publisher" if "trust_remote_code" in text else ""
            raise UnusableError(text.rstrip(".") + hint) from error
        _loaded[wish] = recognised(module, wish)
    return _loaded[wish]


def loaded(wish: str) -> Function | None:
    """What `load` gave for ``wish`` before in this process."""
    return _loaded.get(wish)


def _module(place: Place, trust_remote_code: bool) -> ModuleType:
    from kernels import get_kernel, get_local_kernel

    if place.folder is None:
        where = {"revision": place.revision} if place.version is None else {"version": place.version}
        loaded: ModuleType = get_kernel(place.repository, **where, trust_remote_code=trust_remote_code)
        return loaded
    takes = inspect.signature(get_local_kernel).parameters  # since 0.15: for what the kernel itself depends on
    trust = {"trust_remote_code": trust_remote_code} if "trust_remote_code" in takes else {}
    local: ModuleType = get_local_kernel(place.folder, **trust)
    return local


def recognised(module: ModuleType, wish: str) -> Function:
    """Tell by its functions which library the module is like.

    Raises:
        UnusableError: like none that is known; the message says what is in it.
    """
    flash: Any = getattr(module, "flash_attn_func", None)
    sage: Any = getattr(module, "sageattn", None)
    takes = _parameters(flash)
    window = "window_size" in takes
    if {"softmax_scale", "causal"} <= takes.keys():
        if "learnable_sink" in takes or "mask_mod" in takes:
            return Function(FLASH_4, flash, window)
        if "dropout_p" in takes:
            return Function(FLASH_2, flash, window)
        return Function(FLASH_3, flash, window)
    takes = _parameters(sage)
    if {"tensor_layout", "is_causal", "sm_scale"} <= takes.keys():
        return Function(SAGE_1 if "smooth_k" in takes else SAGE_2, sage)
    public = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
    seen = ", ".join(public[:8]) or "no function"
    wanted = "flash_attn_func (flash-attn 2, 3 or 4) or sageattn (SageAttention)"
    raise UnusableError(f"{wish} has {seen}, needs {wanted} with the arguments of its library")


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return {}
