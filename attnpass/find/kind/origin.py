"""What Q and K are made from: a walk back from an operand to the tensor that its projection reads.

Between the projection and the attention stand views, norms, rotary embeddings, casts, caches: the walk passes those. It
stops at the nearest projections (`linear`, a convolution, a product with a parameter), and looks through norms, dropout
and a second projection (LoRA) to the tensor behind, so that two projections of one tensor meet in one value.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch

from attnpass.graph.ops import FOLLOWED, name_of, source_of_view
from attnpass.graph.symbolic import Size, known
from attnpass.graph.value import Value
from attnpass.graph.values import attribute, tensor, value_of
from attnpass.ir.call import AttentionCall

PRODUCTS = frozenset({"matmul", "mm", "bmm"})
VIEWS = FOLLOWED | {"repeat"}
NORMS = frozenset(
    {"native_layer_norm", "rms_norm", "native_group_norm", "native_batch_norm", "native_dropout", "dropout"}
)
NARROWING = frozenset({"select", "slice", "index", "index_select", "narrow"})
ELEMENTWISE = frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "pow", "rsqrt", "sqrt", "reciprocal", "mean", "where", "tanh"}
    | {"clamp", "clamp_min", "masked_fill", "linalg_vector_norm", "view_as_complex", "view_as_real"}
    | {"cat", "stack", "repeat_interleave", "constant_pad_nd", "index_copy", "index_put", "scatter"}
    | {"slice_scatter", "select_scatter"}
)
JOINS = frozenset({"cat", "stack"})
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

    projected: frozenset[Value]
    other: frozenset[Value]
    tokens: tuple[Size, ...] = ()
    lost: bool = False


def origin_of(operand: Value, narrowed: bool = True) -> Origin:
    """The origin of an operand; ``narrowed``: look through slices too.

    A part of several joined tensors may be one of them alone, so a slice is not followed into a join.
    """
    projected: set[Value] = set()
    other: set[Value] = set()
    tokens: list[Size] = []
    waiting, seen = [(operand, False)], {(operand, False)}
    while waiting:
        value, cut = waiting.pop()
        source = projection_source(value)
        name = name_of(value)
        if source is not None:
            projected.add(behind(source))
            tokens.append(_rows(value))
            continue
        stops = (name in NARROWING and not narrowed) or (name in JOINS and cut and not _in_last(value))
        before: list[Value] = []
        if (name in PASSED or value.target is operator.getitem) and not stops:
            before = value.inputs
            cut = cut or (name in NARROWING and not _in_last(value))
        elif name not in ("full", "arange"):
            other.add(value)
        fresh = [(one, cut) for one in before if (one, cut) not in seen]
        seen.update(fresh)
        waiting += fresh
        if len(seen) > MAX_NODES:
            return Origin(frozenset(), frozenset(), lost=True)
    return Origin(frozenset(projected), frozenset(other), tuple(tokens))


def behind(value: Value) -> Value:
    """The tensor behind norms, whole views and projections of ``value``."""
    while True:
        source = projection_source(value)
        if source is None and (name_of(value) in VIEWS | NORMS or value.target is operator.getitem):
            source = source_of_view(value)
        if source is None:
            return value
        value = source


def same_origin(call: AttentionCall, q: Value, k: Value) -> bool:
    """Is it proved that everything that Q is made from is also what K is made from?

    A slice between projection and attention may be Q's part of a packed projection, or some of the tokens: two images
    in one batch, say, that look at each other. So Q must have all the rows that its projection gives.
    """
    mine, theirs = origin_of(q), origin_of(k)
    if mine.lost or theirs.lost:
        return False
    if not mine.projected:
        mine = origin_of(q, narrowed=False)
        return bool(mine.other) and mine.other <= (theirs.projected | origin_of(k, narrowed=False).other)
    rows = call.B * call.Sq * (call.H if call.q.ndim == 3 else 1)  # 3-D: heads lie in the batch
    whole = all(known(size <= rows) for size in mine.tokens)
    return whole and mine.projected <= (theirs.projected | theirs.other)


def projection_source(value: Value) -> Value | None:
    """What a projection reads beside its weight; None if the value is no projection."""
    name = name_of(value)
    if name in ("linear", "convolution"):
        return source_of_view(value)
    if name == "addmm":
        return value.args[1] if isinstance(value.args[1], Value) else None
    if name in PRODUCTS:
        left, right = value.args[:2]
        if _is_weight(right) != _is_weight(left):
            source = left if _is_weight(right) else right
            return source if isinstance(source, Value) else None
    return None


def is_parameter(value: Value) -> bool:
    """Is this an input or an attribute of the program that the user's model declares as a parameter?"""
    maker = value.maker
    if not value.is_leaf or maker is None:
        return False
    held = value_of(maker)
    if maker.op == "get_attr":  # the fake value of an exported graph does not say it
        held = attribute(maker.graph.owning_module, str(maker.target))
    return isinstance(held, torch.nn.Parameter)


def _is_weight(value: object) -> bool:
    while isinstance(value, Value):
        if is_parameter(value):
            return True
        if name_of(value) not in VIEWS:
            return False
        value = value.args[0] if value.args else None
    return False


def _rows(projection: Value) -> Size:
    value = tensor(projection)
    if value is None:
        return 0
    channels = 1 if name_of(projection) == "convolution" and value.ndim > 2 else value.ndim - 1
    return math.prod(size for place, size in enumerate(value.shape) if place != channels)


def _in_last(value: Value) -> bool:
    """Does a slice or a join concern the last dimension only, as in rotary embeddings and packed projections?"""
    name, operand = name_of(value), value.args[0] if value.args else None
    source = tensor(operand[0] if isinstance(operand, (list, tuple)) and operand else operand)
    dim = value.args[1] if len(value.args) > 1 else 0
    return source is not None and isinstance(dim, int) and dim in (-1, source.ndim - (name != "stack"))
