"""What a program makes of nothing but numbers, computed while it is read: slopes, frequencies, other small tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.graph.ops import name_of
from attnpass.graph.value import Value, each_in, mapped
from attnpass.graph.values import tensor

MOST_VALUES, LARGEST = 50, 1 << 12  # what is computed, and of how many elements each: a number or two for each head
OPS = frozenset(
    {"arange", "full", "add", "sub", "rsub", "mul", "div", "neg", "abs", "reciprocal", "pow", "exp", "exp2", "log"}
    | {"log2", "sqrt", "rsqrt", "floor", "ceil", "to", "view", "expand", "permute", "clone", "detach", "slice"}
    | {"select", "cat", "stack", "repeat_interleave"}
)


def computed(value: Value) -> Tensor | None:
    """The tensor that ``value`` is, on the CPU; None if it depends on an input, is large, or takes other ops.

    Another device may round a power in another way: it is known to a few digits, not to each bit.
    """
    made: dict[Value, Tensor] = {}
    waiting = [value]
    with unset_fake_temporarily(), torch.no_grad(), torch.inference_mode(False):
        while waiting:
            one = waiting[-1]
            if len(made) + len(waiting) > MOST_VALUES or not _is_computed(one):
                return None
            missing = [each for each in one.inputs if each not in made]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            result = one.constant if one.is_leaf else _run(one, made)
            if result is None:
                return None
            made[one] = result.detach()
    return made[value]


def _is_computed(value: Value) -> bool:
    made = tensor(value)
    if made is None or not all(isinstance(size, int) for size in made.shape) or made.numel() > LARGEST:
        return False
    if value.is_leaf:
        held = value.constant
        plain = isinstance(held, Tensor) and not isinstance(held, FakeTensor) and not held.requires_grad
        return plain and held is not None and held.device.type == "cpu"
    sizes = each_in(torch.SymInt, (value.args, *value.kwargs.values()))
    return name_of(value) in OPS and next(sizes, None) is None


def _run(value: Value, made: dict[Value, Tensor]) -> Tensor | None:
    args, kwargs = mapped(Value, made.__getitem__, (value.args, value.kwargs))
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    assert value.target is not None
    try:
        result = value.target(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError):
        return None  # the program itself will raise it
    return result if isinstance(result, Tensor) else None
