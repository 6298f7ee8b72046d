"""Questions about sizes that may be symbolic, asked without ever adding a guard.

Under dynamic shapes a size is a ``SymInt``. Writing ``if q.shape[2] == k.shape[2]`` in a backend evaluates it at its
hint, installs a guard and costs the user a recompile (or a ``ConstraintViolationError``). ``guard_or_false`` is no way
out: it is guard-free only for unbacked symbols. So every yes/no question of the package goes through `known`, and
"unknown" is an answer that callers must handle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

Size: TypeAlias = "int | torch.SymInt"


def known(claim: Any) -> bool:
    """True if ``claim`` (a bool or a SymBool) holds for every value the sizes can take.

    >>> known(3 % 8 == 3)
    True
    """
    if isinstance(claim, bool):
        return claim
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # brings SymPy, which takes 0.5 s to import

    return statically_known_true(claim)


def known_multiple(size: Size, factor: Size) -> bool:
    """True if ``size`` is a multiple of ``factor`` for every value it can take."""
    remainder: Any = size % factor  # type: ignore[operator]
    return known(remainder == 0)


def known_equal(left: Size, right: Size) -> bool:
    """True if both sizes are equal for every value they can take."""
    return known(left == right)


def known_all_equal(left: Sequence[Size], right: Sequence[Size]) -> bool:
    """True if two shapes are equal, element by element, for every value they can take."""
    return len(left) == len(right) and all(known_equal(a, b) for a, b in zip(left, right, strict=True))


def as_int(size: Size) -> int | None:
    """The size as a number if it is one, else None."""
    return size if isinstance(size, int) else None


def hint(size: Size) -> int | None:
    """The value that a size had when the program was traced, for questions of speed only; None if it had none.

    Reading it adds no guard: the code stays right, and is used, for every other value.
    """
    if isinstance(size, int):
        return size
    found: Any = size.node.hint
    return int(found) if found is not None else None


def as_float(value: Any) -> float | None:
    """A number of the program as a float; None if it is decided at run time.

    Under ``dynamic=True`` Dynamo makes symbols of the float attributes of modules. PyTorch's own SDPA specialises its
    scale then, and so does this: a guard on a number that never changes costs no compilation.
    """
    if isinstance(value, torch.SymFloat):
        from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

        return None if free_unbacked_symbols(value) else float(value)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def is_hashable(value: Any) -> bool:
    """False if a symbolic size is in ``value``: a SymInt has no hash, so what holds one cannot be a key."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def shown(size: Size) -> int | str:
    """A size as JSON and people want it: a number, or the symbol's name such as ``"s0"``."""
    return size if isinstance(size, int) else str(size)
