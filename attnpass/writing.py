"""Which nodes of a graph that is not functionalised may change a tensor in place."""

from __future__ import annotations

from torch.fx import Node

IN_PLACE_OPERATORS = frozenset(
    {"setitem", "delitem", "iadd", "iand", "iconcat", "ifloordiv", "ilshift", "imatmul", "imod", "imul", "ior", "ipow"}
    | {"irshift", "isub", "itruediv", "ixor"}
)


def may_write(node: Node) -> bool:
    """Could this node change a tensor in place? Errs on the side of yes."""
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.split(".")[0]
    return name.endswith("_") or name in IN_PLACE_OPERATORS or "out" in node.kwargs
