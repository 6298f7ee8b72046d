"""One name for one operation, however it was spelled: the table between the graph and the matcher of chains.

``q @ k``, ``torch.matmul(q, k)``, ``q.matmul(k)`` and ``aten.matmul.default`` are all ``matmul``; ``x += y`` is ``add``
with a note that it works in place. Everything here reads one node at a time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from attnpass.patterns.sdpa import value_of
from attnpass.symbolic import as_float, known_all_equal, known_equal
from attnpass.writes import may_write

SYNONYMS = {
    "__matmul__": "matmul",
    "__getitem__": "getitem",
    "imatmul": "matmul",
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "itruediv": "div",
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "_softmax": "softmax",
    "_safe_softmax": "safe_softmax",
    "_to_copy": "to",
    "convert_element_type": "to",
    "_unsafe_view": "view",
    "reshape_as": "view",
    "view_as": "view",
    "reshape": "view",
    "unflatten": "view",
    "flatten": "view",
    "unsqueeze": "view",
    "squeeze": "view",
    "numpy_T": "T",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "movedim": "permute",
    "moveaxis": "permute",
    "concat": "cat",
    "concatenate": "cat",
    "native_dropout": "dropout",
    "feature_dropout": "other dropout",
    "invert": "logical_not",
    "bitwise_not": "logical_not",
    "clone": "contiguous",
    "alias": "contiguous",
    "lift_fresh_copy": "contiguous",
}
CASTS = {"to", "float", "half", "bfloat16", "double", "type", "type_as"}
# In place, and otherwise the same. Others, such as `transpose_`, change what their input *is*, and keep their own name.
IN_PLACE_METHODS = {
    *("add_", "sub_", "mul_", "div_", "true_divide_", "divide_", "multiply_", "subtract_", "masked_fill_", "tanh_"),
    *("dropout_", "relu_", "sigmoid_", "exp_", "square_", "clamp_"),
}


def name_of(node: Node) -> str:
    """The operation's one name; "" if the node calls no function of PyTorch or of ``operator``."""
    name = _spelled(node)
    if name in IN_PLACE_METHODS:
        name = name.rstrip("_")
    return "to" if name in CASTS else SYNONYMS.get(name, name)


def _spelled(node: Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    if node.target is getattr and node.args[1] in ("T", "mT"):
        return str(node.args[1])  # since PyTorch 2.14 `aten.numpy_T` and `aten.mT`
    return function_name(node.target)


def function_name(target: Any) -> str:
    """``le`` for ``torch.le``, ``operator.le`` and ``aten.le.Tensor``; "" for a function of neither."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).partition("::")[2]
    module = str(getattr(target, "__module__", "") or "")
    kind = type(target).__name__
    builtin = kind in ("builtin_function_or_method", "method_descriptor", "wrapper_descriptor")
    if builtin or isinstance(target, torch._ops.OpOverloadPacket) or module.split(".")[0] in ("torch", "_operator"):
        return str(getattr(target, "__name__", ""))
    return ""


def spelled(node: Node) -> str:
    """The operation as the user would recognise it, for messages; the node's own name if it has no better one."""
    return _spelled(node) or str(getattr(node.target, "__name__", node.target))


def argument(node: Node, position: int, *names: str, default: Any = None) -> Any:
    """An argument by position, or by any of its names: ``torch.matmul`` and ``Tensor.matmul`` name them differently."""
    if position < len(node.args):
        return node.args[position]
    return next((node.kwargs[name] for name in names if name in node.kwargs), default)


def tensor(node: Any) -> Tensor | None:
    """The fake tensor of a node; None for anything else."""
    value = value_of(node) if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def number(value: Any) -> float | None:
    """A number that is written in the graph, perhaps as a tensor of one element that is made there; None if not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node):
        return None
    if any(may_write(user) and user.args[0] is value for user in value.users):
        return None
    made: Any = value_of(value)
    if not isinstance(made, Tensor):
        return as_float(made)
    if not all(known_equal(size, 1) for size in made.shape):
        return None
    return _made_number(value)


def _made_number(node: Node) -> float | None:
    name = name_of(node)
    if name in ("full", "new_full", "full_like"):
        position = 2 if name == "new_full" else 1
        return _rounded(number(argument(node, position, "fill_value")), node)
    if name in ("tensor", "scalar_tensor", "as_tensor"):
        data = argument(node, 0, "data", "s")
        while isinstance(data, Sequence) and len(data) == 1:
            data = data[0]
        return _rounded(number(data), node)
    if name in ("to", "view", "contiguous", "expand", "detach") and node.args and isinstance(node.args[0], Node):
        return _rounded(number(node.args[0]), node)
    if name in ("sqrt", "neg") and isinstance(node.args[0], Node):
        inner = number(node.args[0])
        if inner is None or (name == "sqrt" and inner < 0):
            return None
        return _rounded(math.sqrt(inner) if name == "sqrt" else -inner, node)
    if node.op == "get_attr":
        return _constant(node)
    return None


def _constant(node: Node) -> float | None:
    """A tensor of one element that Dynamo keeps beside the graph (``torch.tensor(-1e9)``); no parameter or buffer."""
    owner: Any = node.graph.owning_module
    name = str(node.target)
    held = getattr(owner, name, None)
    if "_tensor_constant" not in name or not isinstance(held, Tensor) or type(held) is not Tensor:
        return None
    if isinstance(held, torch._subclasses.FakeTensor):
        constant = held.constant
        return None if constant is None else float(constant.item())
    return float(held.item()) if held.device.type == "cpu" and not held.requires_grad else None


def _rounded(value: float | None, node: Node) -> float | None:
    """A number as it is in the dtype of ``node``."""
    made = tensor(node)
    if value is None or made is None or not made.dtype.is_floating_point:
        return value
    finfo = torch.finfo(made.dtype)
    if math.isfinite(value) and not finfo.min <= value <= finfo.max:
        return math.copysign(math.inf, value)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        return float(torch.tensor(value, dtype=made.dtype).item())


def permutation(node: Node) -> list[int] | None:
    """For a node that reorders dimensions: which dimension of its input stands at each place; else None."""
    source = tensor(node.args[0]) if node.args else None
    if source is None or tensor(node) is None:
        return None
    rank, name = source.ndim, name_of(node)
    order = list(range(rank))
    if name in ("transpose", "t"):
        a, b = (
            (argument(node, 1, "dim0", "axis0"), argument(node, 2, "dim1", "axis1")) if name == "transpose" else (0, 1)
        )
        if not (isinstance(a, int) and isinstance(b, int)):
            return None
        order[a], order[b] = order[b], order[a]
        return order
    if name == "T":
        return order[::-1]
    if name == "mT":
        return [*order[:-2], rank - 1, rank - 2]
    if node.op == "call_function" and name == "permute" and _spelled(node) in ("movedim", "moveaxis"):
        return None
    if name == "permute":
        dims = argument(node, 1, "dims")
        dims = dims if isinstance(dims, (list, tuple)) else node.args[1:]
        numbers = [d % rank for d in dims if isinstance(d, int)]
        return numbers if len(numbers) == rank else None
    return None


def does_nothing(node: Node) -> bool:
    """Is this a copy, or an ``expand`` to the shape that is there already (decomposed graphs are full of them)?"""
    if name_of(node) == "expand" and node.args:
        before, after = tensor(node.args[0]), tensor(node)
        return before is not None and after is not None and known_all_equal(tuple(before.shape), tuple(after.shape))
    return name_of(node) == "contiguous"


def full_slices(node: Node) -> bool:
    """Is this an index that takes everything, with new dimensions of size 1 perhaps: ``x[:, None]``?"""
    if name_of(node) != "getitem" or tensor(node.args[0]) is None:
        return False
    index = node.args[1]
    items: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    return all(item is None or item is Ellipsis or (type(item) is slice and item == slice(None)) for item in items)


def reads_metadata(node: Node) -> bool:
    """Does the node ask for sizes or strides only?"""
    if node.target is getattr:
        return str(node.args[1]) in ("shape", "dtype", "device", "ndim")
    return name_of(node) in ("size", "sym_size", "stride", "sym_stride", "dim", "numel", "sym_numel")


def is_getitem(node: Node, index: int) -> bool:
    """Is this result number ``index`` of an op with several?"""
    return node.target is operator.getitem and bool(node.args[1] == index)
