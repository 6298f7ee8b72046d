"""What the caches' key has to hold beside names, which is all that AOTAutograd's holds."""

from __future__ import annotations

import hashlib
import json

from attnpass.machine.machine import Machine, sdp_enabled
from attnpass.version import __version__

SALT_OPTION = "unsafe_marked_cacheable_functions"


def salt(machine: Machine | None, user_value: dict[str, str] | None) -> dict[str, dict[str, str]]:
    """Inductor options that put our version, the libraries' versions and the SDPA switches into the caches' key."""
    facts = {
        "attnpass": __version__,
        "libraries": dict(machine.versions) if machine else {},
        "sdp": sorted(sdp_enabled()),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {SALT_OPTION: {**(user_value or {}), "attnpass.salt": digest}}
