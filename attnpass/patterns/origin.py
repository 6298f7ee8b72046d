"""What Q and K are made from: a walk back from an operand to the tensor that its projection reads.

Between the projection and the attention stand views, norms, rotary embeddings, casts, caches: the walk passes those. It
stops at the nearest projections (`linear`, a convolution, a product with a parameter), and looks through norms, dropout
and a second projection (LoRA) to the tensor behind, so that two projections of one tensor meet in one node.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from attnpass.call import AttentionCall
from attnpass.patterns.canonical import argument, name_of, tensor
from attnpass.patterns.sdpa import value_of
from attnpass.symbolic import Size, known
from attnpass.writes import may_write, written

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "convolution"})
PRODUCTS = frozenset({"matmul", "mm", "bmm"})
VIEWS = frozenset({"view", "transpose", "permute", "t", "T", "mT", "contiguous", "to", "detach", "expand", "repeat"})
NORMS = frozenset({"layer_norm", "rms_norm", "group_norm", "batch_norm", "native_layer_norm", "dropout", "identity"})
NARROWING = frozenset(
    {"getitem", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "select", "slice", "narrow"}
)
ELEMENTWISE = frozenset(
    {
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "neg",
        "pow",
        "square",
        "rsqrt",
        "sqrt",
        "reciprocal",
        "mean",
        "where",
        "clamp",
    }
    | {"masked_fill", "normalize", "norm", "linalg_vector_norm", "tanh", "view_as_complex", "view_as_real", "type_as"}
    | {
        "cat",
        "stack",
        "repeat_interleave",
        "broadcast_to",
        "index_copy",
        "index_put",
        "slice_scatter",
        "scatter",
        "pad",
    }
)
JOINS = frozenset({"cat", "stack"})
DIM_FIRST = JOINS | {"unbind", "select", "slice", "narrow"}  # their dimension is the argument behind the tensor
PASSED = VIEWS | NORMS | NARROWING | ELEMENTWISE
MAX_NODES = 400  # between a projection and its attention; a walk that gets lost in a graph proves nothing


@dataclass(frozen=True, slots=True)
class Origin:
    """What an operand is made from.

    Attributes:
        projected: the tensors that its nearest projections read, looked through norms.
        other: where the walk ended beside them: inputs, caches, tables of cosines.
        tokens: how many rows (batch times length) each of the projections gives.
        lost: the walk was given up.
    """

    projected: frozenset[Node]
    other: frozenset[Node]
    tokens: tuple[Size, ...] = ()
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Origins:
    """Walks back through one graph and the bodies in it.

    Attributes:
        outside: for the inputs of a body: the node outside that each one stands for, where that is one node.
    """

    outside: dict[Node, Node]

    def of(self, operand: Node, end: Node, narrowed: bool = True) -> Origin:
        """The origin of ``operand`` of the attention ``end``; ``narrowed``: look through slices too.

        A part of several joined tensors may be one of them alone, so a slice is not followed into a join.
        """
        projected: set[Node] = set()
        other: set[Node] = set()
        tokens: list[Size] = []
        waiting, seen = [(operand, False)], {(operand, False)}
        while waiting:
            node, cut = waiting.pop()
            source = projection_source(node)
            name = name_of(node)
            if source is not None:
                projected.add(self.behind(source))
                tokens.append(_rows(node))
                continue
            before = [*_writers(node, end)]
            stops = (name in NARROWING and not narrowed) or (name in JOINS and cut and not _in_last(node))
            if name in PASSED and not stops:
                before += node.all_input_nodes[: 1 if name in VIEWS else None]  # `x.type_as(c)` reads no value of c
                cut = cut or (name in NARROWING and not _in_last(node))
            elif node in self.outside:
                before.append(self.outside[node])
            else:
                other.add(node)
            fresh = [(one, cut) for one in before if (one, cut) not in seen and tensors_in(one)]
            seen.update(fresh)
            waiting += fresh
            if len(seen) > MAX_NODES:
                return Origin(frozenset(), frozenset(), lost=True)
        return Origin(frozenset(projected), frozenset(other), tuple(tokens))

    def behind(self, node: Node) -> Node:
        """The tensor behind norms, whole views and projections of ``node``."""
        while True:
            source = projection_source(node) or self.outside.get(node)
            if source is None and name_of(node) in VIEWS | NORMS and node.args and isinstance(node.args[0], Node):
                source = node.args[0]
            if source is None or not tensors_in(source):
                return node
            node = source


def same_origin(origins: Origins, call: AttentionCall, q: Node, k: Node, end: Node) -> bool:
    """Is it proved that everything that Q is made from is also what K is made from?

    A slice between projection and attention may be Q's part of a packed projection, or some of the tokens: two images
    in one batch, say, that look at each other. So Q must have all the rows that its projection gives.
    """
    mine, theirs = origins.of(q, end), origins.of(k, end)
    if mine.lost or theirs.lost:
        return False
    if not mine.projected:
        mine = origins.of(q, end, narrowed=False)
        return bool(mine.other) and mine.other <= (theirs.projected | origins.of(k, end, narrowed=False).other)
    rows = call.B * call.Sq * (call.H if call.q.ndim == 3 else 1)  # 3-D: heads lie in the batch
    whole = all(known(size <= rows) for size in mine.tokens)
    return whole and mine.projected <= (theirs.projected | theirs.other)


def projection_source(node: Node) -> Node | None:
    """What a projection reads beside its weight; None if the node is no projection."""
    name = name_of(node)
    source = None
    if name == "linear" or name in CONVOLUTIONS:
        source = argument(node, 0, "input")
    elif name == "addmm":
        source = argument(node, 1, "mat1")
    elif name in PRODUCTS:
        left, right = argument(node, 0, "input"), argument(node, 1, "other", "mat2")
        if _is_weight(right) != _is_weight(left):
            source = left if _is_weight(right) else right
    return source if isinstance(source, Node) else None


def is_parameter(node: Node) -> bool:
    """Is this an input or an attribute of the graph that the user's model declares as a parameter?"""
    held = _attribute(node) if node.op == "get_attr" else value_of(node) if node.op == "placeholder" else None
    return isinstance(held, torch.nn.Parameter)


def tensors_in(node: Node) -> bool:
    """Is the node's value a tensor, or does it hold some? Sizes and other numbers say nothing about origin."""
    value = _attribute(node) if node.op == "get_attr" else value_of(node)
    if isinstance(value, torch.Tensor):  # most nodes
        return True
    return value is not None and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _attribute(node: Node) -> object:
    """What a ``get_attr`` node reads: the fake value of an exported graph does not say that it is a parameter."""
    found: object = node.graph.owning_module
    for part in str(node.target).split("."):
        found = getattr(found, part, None)
    return value_of(node) if found is None else found


def _is_weight(node: object) -> bool:
    while isinstance(node, Node):
        if is_parameter(node):
            return True
        if name_of(node) not in VIEWS or not node.args:
            return False
        node = node.args[0]
    return False


def _rows(projection: Node) -> Size:
    value = tensor(projection)
    if value is None:
        return 0
    channels = 1 if name_of(projection) in CONVOLUTIONS and value.ndim > 2 else value.ndim - 1
    return math.prod(size for place, size in enumerate(value.shape) if place != channels)


def _in_last(node: Node) -> bool:
    """Does a slice or a join concern the last dimension only, as in rotary embeddings and packed projections?"""
    name, operand = name_of(node), node.args[0] if node.args else None
    source = tensor(operand[0] if isinstance(operand, (list, tuple)) and operand else operand)
    if name == "getitem":
        return source is None or _indexes_last(node.args[1], source.ndim)  # None: one of the results of chunk or split
    dim = argument(node, 1 if name in DIM_FIRST else 2, "dim", "axis")
    return source is not None and isinstance(dim, int) and dim in (-1, source.ndim - (name != "stack"))


def _indexes_last(index: object, rank: int) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    reaches = Ellipsis in items or sum(item is not None for item in items) == rank
    return reaches and all(item is None or item is Ellipsis or item == slice(None) for item in items[:-1])


def _writers(node: Node, end: Node) -> Iterable[Node]:
    """What was written into ``node`` in place before ``end``: the keys of this step, where K is a cache."""
    for user in node.users:
        if may_write(user) and user.graph is end.graph and user < end and node in written(user):
            yield from (one for one in user.all_input_nodes if one is not node)
