"""Every error that a user of attnpass can meet.

One grammar for all: *what we were doing - what we met (the value) - what is needed - what to do*.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

ISSUES_HINT = "this is a bug in attnpass, please report it with this message and ATTNPASS_LOG=debug output"


class AttnpassError(Exception):
    """Base of all errors that attnpass raises on purpose."""


class ConfigError(AttnpassError, ValueError):
    """A setting has a value that is not legal; the message lists the legal ones."""


class UnknownKernelError(ConfigError):
    """A kernel was named that nobody registered; the message lists the names and the closest one."""


class KernelUnavailableError(AttnpassError):
    """A kernel was named whose library is missing, too old or broken here; the message has the install line."""


class ProgramError(AttnpassError, TypeError):
    """What was to be rewritten is no graph; the message says how to make one."""


class StrictError(AttnpassError):
    """``ATTNPASS_STRICT=1`` and a call was kept: the message has the call and every reason."""


class PassError(AttnpassError):
    """The pass itself failed: raised under ``ATTNPASS_STRICT=1``, else the graph runs unrewritten."""


def closest(name: str, names: Iterable[str], alike: float = 0.6) -> str:
    """The one of ``names`` that is most like ``name``, "" if none is; large and small letters are the same.

    Args:
        name: what was written.
        names: what would be legal.
        alike: how like it has to be, up to 1.
    """
    by_lower = {known.lower(): known for known in names}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=alike)
    return by_lower[match[0]] if match else ""


def did_you_mean(name: str) -> str:
    """The end of a sentence that ends in a name; ``"."`` for none."""
    return f", did you mean {name}?" if name else "."
