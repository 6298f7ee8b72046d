"""One run of a program on fake tensors, with every ATen op told to a `Recorder`. What is private in PyTorch is here.

A dispatch mode stands below autograd, autocast and functorch: an op arrives as an `OpOverload` with real arguments,
casts of autocast are ops of their own, and batching rules have been applied. Composite ops that are worth seeing whole
(`KEPT`) are kept from decomposing by overrides in the Python dispatcher, as ``torch.export`` keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from attnpass.graph.record import Recorder

aten = torch.ops.aten
# Not `dropout`: its kept form would be a copy where the op itself gives its input back.
KEPT: tuple[OpOverload, ...] = (
    aten.scaled_dot_product_attention.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.matmul.default,
    aten.linear.default,
    aten.rms_norm.default,
    aten.einsum.default,
    aten.repeat_interleave.self_int,
)


class _TellEachOp(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about devices
            return func(*args, **kwargs)
        noted = self._recorder.before(func, args, kwargs)
        result = func(*args, **kwargs)
        self._recorder.after(noted, result)
        return result


@contextmanager
def recording(mode: FakeTensorMode, recorder: Recorder) -> Iterator[None]:
    """Run what stands inside on fake tensors, and tell ``recorder`` each op. The program state is restored behind it.

    New unbacked symbols are forgotten: the program's own nodes have theirs already.
    """
    with ExitStack() as stack:
        stack.enter_context(_program_state())
        stack.enter_context(torch.no_grad())
        stack.enter_context(mode)
        if mode.shape_env is not None:
            stack.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
        stack.enter_context(enable_python_dispatcher())
        stack.enter_context(_whole(KEPT))
        stack.enter_context(_TellEachOp(recorder))
        yield


@contextmanager
def _whole(ops: Sequence[OpOverload]) -> Iterator[None]:
    """Keep composite ``ops`` whole; a PyTorch that does not know how decomposes them, and less is found."""
    try:
        from torch._export.utils import _special_op_to_preserve_cia as keep
        from torch.export.exported_program import _override_composite_implicit_decomp as override
    except ImportError:
        yield
        return
    with override(dict.fromkeys(ops, keep)):
        yield


@contextmanager
def _program_state() -> Iterator[None]:
    """Autocast, grad mode and functorch as they were, also where a program was left in the middle of a region."""
    kinds = [kind for kind in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(kind)]
    saved = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]
    grad, cache, depth = torch.is_grad_enabled(), torch.is_autocast_cache_enabled(), functorch_depth()
    try:
        yield
    finally:
        leave_functorch(depth)
        torch.set_grad_enabled(grad)
        torch.set_autocast_cache_enabled(cache)
        for kind, enabled, dtype in saved:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)


def functorch_depth() -> int:
    """How many functorch transforms are active."""
    return int(torch._C._functorch.get_dynamic_layer_stack_depth())


def leave_functorch(depth: int) -> None:
    """Leave the transforms that were entered since there were ``depth``."""
    if functorch_depth() > depth:
        torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(depth)
