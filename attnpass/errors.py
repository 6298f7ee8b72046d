"""Every error that a user of attnpass can meet.

One grammar for all: *what we were doing - what we met (the value) - what is needed - what to do*.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

ISSUES_HINT = "this is a bug in attnpass, please report it with this message and ATTNPASS_LOG=debug output"


class AttnpassError(Exception):
    """Base of all errors that attnpass raises on purpose."""


class ConfigError(AttnpassError, ValueError):
    """A setting has a value that is not legal; the message lists the legal ones."""


class UnknownKernelError(ConfigError):
    """A kernel was named that nobody registered; the message lists the names and the closest one."""


class KernelUnavailableError(AttnpassError):
    """A kernel was named whose library is missing, too old or broken here; the message has the install line."""


class StrictError(AttnpassError):
    """``ATTNPASS_STRICT=1`` and a call was kept: the message has the call and every reason."""


class PassError(AttnpassError):
    """The pass itself failed: raised under ``ATTNPASS_STRICT=1``, else the graph runs unrewritten."""


def closest(name: str, names: Sequence[str]) -> str:
    """``", did you mean x?"``, or nothing if no name is close; large and small letters are the same."""
    by_lower = {known.lower(): known for known in names}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f", did you mean {by_lower[match[0]]}?" if match else ""
