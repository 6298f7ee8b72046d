"""A setting in force for a while, as if its environment variable were set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def setting(variable: str, value: str | None) -> Iterator[None]:
    """``variable`` is ``value`` inside, and afterwards what it was; None leaves it alone."""
    before = os.environ.get(variable)
    if value:
        os.environ[variable] = value
    try:
        yield
    finally:
        if value:
            os.environ.pop(variable)
            os.environ.update({variable: before} if before is not None else {})
