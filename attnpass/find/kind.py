"""Self-attention or cross-attention: does K come from Q's sequence? Proved from the Reading, or unknown.

- **self**: everything that Q is made from, K is made from too (`origin_of`, a walk back to the nearest projections). A
  decode step whose K is a cache joined with this step's key is self-attention.
- **cross**: K is projected here, and its tokens and Q's come from different inputs (`lineages`, one pass forward).
- **unknown**: neither is proved, as where Q and K are inputs of the graph themselves. Lengths prove nothing: with a
  cache or pooled keys, self-attention has Sq and Sk that differ.

What happened before the graph, such as in front of a graph break, is out of sight: two inputs count as two sequences.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from torch.fx import Graph, GraphModule

from attnpass.find.found import FoundCall
from attnpass.graph.ops import VIEWS, is_parameter, is_weight, name_of, source_of_view
from attnpass.graph.reading import SDPA, Reading
from attnpass.graph.symbolic import Size, known
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.call import AttentionCall, Kind

PRODUCTS = frozenset({"matmul", "mm", "bmm"})
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
LOST = 1  # the bit of what comes from somewhere that `lineages` does not follow: never apart from anything


def with_kinds(gm: GraphModule, reading: Reading, calls: Sequence[FoundCall]) -> list[FoundCall]:
    """The same calls with what is proved about where their K comes from. Read only; adds no guard."""
    proved = [_with_kind(found, {}) for found in calls]
    if all(found.call.kind is Kind.SELF for found in proved):
        return proved  # the usual model: no need to follow the whole graph
    queries = {reading.result(found.node): found.values.q.node for found in calls if found.values is not None}
    bits = lineages(reading, queries, gm.graph)
    return [_with_kind(found, bits) for found in calls]


def _with_kind(found: FoundCall, bits: Mapping[Value, int]) -> FoundCall:
    call = found.call
    if call.context.functorch or call.context.subclass or found.values is None:
        return found
    q, k = found.values.q.node, found.values.k.node
    kind = Kind.UNKNOWN
    if same_origin(call, q, k):
        kind = Kind.SELF
    elif _are_apart(bits.get(q, LOST), bits.get(k, LOST)) and origin_of(k).projected:
        kind = Kind.CROSS
    return replace(found, call=replace(call, kind=kind))


def lineages(reading: Reading, queries: Mapping[Value | None, Value], program: Graph) -> dict[Value, int]:
    """The inputs of the program that the tokens of each value come from, as bits.

    Everything passes on what it reads, except that the output of an attention has the tokens of its Q: what it reads
    through K and V is not its lineage, else everything behind the first cross-attention would descend from both
    sequences. A parameter counts only where nothing else does: learned queries are a sequence, a weight is none.

    Args:
        reading: the values.
        queries: the output of each attention -> its Q.
        program: the graph whose inputs count; those of bodies in it are lost.
    """
    bits: dict[Value, int] = {}
    parameters = 0
    for number, value in enumerate(reading.values, start=1):
        if value.is_leaf:
            bits[value] = 1 << number if _is_input(value, program) else LOST
            parameters |= bits[value] & ~LOST if is_parameter(value) else 0
            continue
        read = value.inputs
        if value in queries or value.target is SDPA:
            read = [queries.get(value, read[0])]
        bits[value] = reduce(operator.or_, (bits.get(each, LOST) for each in read), 0)
    return {value: (found & ~parameters) or found for value, found in bits.items()}


def _is_input(value: Value, program: Graph) -> bool:
    maker = value.maker
    if value.constant is not None or maker is None:
        return False
    return maker.op in ("placeholder", "get_attr") and maker.graph is program


def _are_apart(q: int, k: int) -> bool:
    """Do two lineages share no input?"""
    return bool(q and k) and not q & k and not (q | k) & LOST


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
        if is_weight(right) != is_weight(left):
            source = left if is_weight(right) else right
            return source if isinstance(source, Value) else None
    return None


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
