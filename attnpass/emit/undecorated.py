"""A library's functions, without the ops that stand around them there."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

from torch._library.custom_ops import CustomOpDef


def undecorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """The Python function behind a library's ``torch.library.custom_op``; the function itself if it is none.

    Our op stands around it already; one more round through the dispatcher, with its checks for aliases, buys nothing.
    """
    return function._init_fn if isinstance(function, CustomOpDef) else function


def undecorated_inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """A library's Python function that calls what stands behind the library's `undecorated` ops.

    A copy that sees other globals, if the modules that ``function`` calls hold such ops (``sm90_compile`` of
    SageAttention 2.2); else ``function`` itself. The library stays as it is.
    """
    if not isinstance(function, FunctionType):
        return function
    modules = {name: value for name, value in function.__globals__.items() if isinstance(value, ModuleType)}
    bare = {name: _undecorated_members(module) for name, module in modules.items() if _holds_ops(module, function)}
    if not bare:
        return function
    seen = {**function.__globals__, **bare}
    copy = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _holds_ops(module: ModuleType, function: FunctionType) -> bool:
    """Is the module one of the function's own library, with ops in it?"""
    same = module.__name__.partition(".")[0] == function.__module__.partition(".")[0]
    return same and any(isinstance(member, CustomOpDef) for member in vars(module).values())


def _undecorated_members(module: ModuleType) -> SimpleNamespace:
    return SimpleNamespace(**{name: undecorated(member) for name, member in vars(module).items()})
