"""Compiled code that never goes stale: what a decision was made from is watched, in memory and on disk.

In memory, a Dynamo guard compares the ``ATTNPASS_*`` variables, PyTorch's SDPA switches and the verdicts of
verification with those at compile time; if one changed, the next call compiles anew. On disk, what changes the code
behind an op's name goes into the caches' key, because AOTAutograd's key holds names only: with a changed backward under
the same name, a second process got the old gradients (run on PyTorch 2.13).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch._guards import TracingContext

import attnpass
from attnpass import verify
from attnpass.config import VARIABLES
from attnpass.machine import Machine, sdp_enabled

logger = logging.getLogger(__name__)
SALT_OPTION = "unsafe_marked_cacheable_functions"


def guard() -> bool:
    """Let the code being compiled by Dynamo be compiled anew when a decision's ground changes.

    Returns:
        False if there is no Dynamo compilation to guard, or this PyTorch does not take the guard.
    """
    context = TracingContext.try_get()
    if context is None:
        return False
    try:
        from torch._dynamo.source import GlobalStateSource

        unchanged = _unchanged_since_now()

        def create(builder: Any, _: Any) -> None:
            add_check(builder.guard_manager.root, unchanged, "attnpass settings, SDPA switches and verdicts unchanged")

        context.guards_context.dynamo_guards.add(GlobalStateSource().make_guard(create))
    except Exception:
        logger.warning(
            "attnpass: this PyTorch (%s) takes no guard on settings: if you change ATTNPASS_KERNEL after this "
            "compilation, call torch._dynamo.reset() for it to take effect",
            torch.__version__,
            exc_info=logger.isEnabledFor(logging.DEBUG),
        )
        return False
    return True


def add_check(manager: Any, check: Callable[[Any], bool], says: str) -> None:
    """Let Dynamo ask ``check`` before every call of the code; ``says`` names it when it fails."""
    try:
        manager.add_lambda_guard(check, [says], None)
    except TypeError:  # PyTorch 2.9 takes no stack to show
        manager.add_lambda_guard(check, [says])


def _unchanged_since_now() -> Callable[[Any], bool]:
    """A check that costs well under a microsecond: it runs before every call of the compiled code."""
    data = getattr(os.environ, "_data", None)
    if data is None:
        data, keys = os.environ, [v.name for v in VARIABLES]
    else:  # the dict behind os.environ, whose values are not decoded at each look
        keys = [os.environ.encodekey(v.name) for v in VARIABLES]
    read, flags, generation = data.get, torch._C, verify.generation

    def now() -> tuple[Any, ...]:
        return (
            *map(read, keys),
            flags._get_flash_sdp_enabled(),
            flags._get_mem_efficient_sdp_enabled(),
            flags._get_math_sdp_enabled(),
            flags._get_cudnn_sdp_enabled(),
            generation(),
        )

    then = now()
    return lambda _: now() == then


def salt(machine: Machine | None, user_value: dict[str, str] | None) -> dict[str, dict[str, str]]:
    """Inductor options that put our version, the libraries' versions and the SDPA switches into the caches' key."""
    facts = {
        "attnpass": attnpass.__version__,
        "libraries": dict(machine.versions) if machine else {},
        "sdp": sorted(sdp_enabled()),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return {SALT_OPTION: {**(user_value or {}), "attnpass.salt": digest}}
