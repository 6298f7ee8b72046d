"""A setting in force for a while, as if its environment variable were set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from attnpass.settings.config import written_as


@contextmanager
def setting(variable: str, value: str | None, argument: str = "") -> Iterator[None]:
    """``variable`` is ``value`` inside, and afterwards what it was; None leaves it alone.

    Messages about it name ``argument``, which is what the user wrote.
    """
    before = os.environ.get(variable)
    if value:
        os.environ[variable] = value
        written_as.update({variable: argument} if argument else {})
    try:
        yield
    finally:
        if value:
            written_as.pop(variable, None)
            os.environ.pop(variable)
            os.environ.update({variable: before} if before is not None else {})
