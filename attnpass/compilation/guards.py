"""Compiled code that never goes stale: what a decision was made from is watched, in memory and on disk.

In memory, a Dynamo guard compares the ``ATTNPASS_*`` variables, PyTorch's SDPA switches and the verdicts of
verification with those at compile time; if one changed, the next call compiles anew. On disk, what changes the code
behind an op's name goes into the caches' key, because AOTAutograd's key holds names only: with a changed backward under
the same name, a second process got the old gradients (run on PyTorch 2.13).
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.fx import Node

from attnpass.settings.config import raw_variables
from attnpass.trials import verify
from attnpass.understand.buffers import Place, distrust, place_of

logger = logging.getLogger(__name__)


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
    read, keys = raw_variables()
    flags, generation = torch._C, verify.generation

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


def guard_buffers(used: Mapping[Node, Tensor]) -> None:
    """Let the code being compiled by Dynamo run only while the buffers whose values were read are what they were."""
    context = TracingContext.try_get()
    if context is None:
        return
    for node, tensor in used.items():
        source = node.meta["grapharg"].source
        unchanged = _same_tensor(tensor, place_of(source))

        def create(builder: Any, guard: Any, unchanged: Callable[[Any, Any], bool] = unchanged) -> None:
            known = {**builder.scope, "L": None}  # the frame's own values come with each call
            check = partial(unchanged, known)
            add_check(builder.guard_manager.root, check, "attnpass: a buffer whose values were read is unchanged")

        context.guards_context.dynamo_guards.add(source.make_guard(create))


def _same_tensor(tensor: Tensor, place: Place) -> Callable[[dict[str, Any], Any], bool]:
    """Is what stands at ``place``, among what is known beside the frame's values and in these, the same as now?

    A check of the whole frame. Beside the buffer itself PyTorch 2.9 leaves it out where no dictionary on the way there
    was written to, and a buffer that is changed in place is missed (``use_recursive_dict_tags_for_guards``).
    """
    reference, version, path = weakref.ref(tensor), tensor._version, compile(place[1], "<buffer>", "eval")

    def unchanged(known: dict[str, Any], frame: Any) -> bool:
        try:
            value = eval(path, known, {"L": frame})
        except (AttributeError, KeyError, IndexError, TypeError):
            value = None
        if isinstance(value, Tensor) and value is reference() and value._version == version:
            return True
        distrust(place)
        return False

    return unchanged
