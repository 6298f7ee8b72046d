"""Chains that almost are attention calls, with the node that kept them from being one.

When a graph has few rewrites, the question is "why not mine?". The answer names a node and a source line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch.fx import Node

from attnpass.find.found import NearMiss
from attnpass.find.handwritten.links import RefusedError
from attnpass.find.handwritten.products import PRODUCTS, is_product, read_product
from attnpass.find.handwritten.softmaxes import read_softmax
from attnpass.graph.ops import is_weight, name_of
from attnpass.graph.reading import Reading
from attnpass.graph.symbolic import known
from attnpass.graph.value import Value
from attnpass.graph.values import source_of, tensor

REACH = 12  # nodes between the product of q and k and the softmax: mask, bias, scale, softcap and casts fit in
HEADS = 16  # talking heads: a product with a weight that has no more rows or columns
MIXING = {"linear", "native_layer_norm", "native_group_norm", "rms_norm", "embedding", "convolution", "addmm"}
NORMALISERS = {
    "sigmoid": "sigmoid instead of softmax",
    "relu": "relu instead of softmax",
    "log_softmax": "log_softmax instead of softmax",
    "softplus": "softplus instead of softmax",
    "exp": "exp, normalised by hand instead of by softmax",
    "linalg_vector_norm": "a norm instead of softmax",
    "pow": "a power instead of softmax",
}


def near_misses(reading: Reading) -> Iterator[NearMiss]:
    """Near misses without a softmax, in program order; one for each node of the program."""
    said: set[Node] = set()
    softmaxes = [softmax for softmax in map(read_softmax, reading.values) if softmax is not None]
    told = {value for softmax in softmaxes for value in softmax.nodes}
    before, behind = ({_nearest(each.node, step) for each in softmaxes} for step in (_inputs, _users))
    for value in reading.values:
        node, name = value.maker, name_of(value)
        if name not in NORMALISERS or node is None or node in said or value in told or _squares(value):
            continue  # a norm of the output of one attention, or of the queries of the next, stands between two as well
        if _nearest(value, _inputs) not in {None, *behind} and _nearest(value, _users) not in {None, *before}:
            said.add(node)
            reason = f"{NORMALISERS[name]} between two batched matrix products: not the attention of any kernel"
            yield NearMiss(node.name, reason, source_of(node.meta))


def near_miss(softmax: Value, refused: RefusedError) -> tuple[NearMiss, ...]:
    """The refusal of a softmax, if that stands between two matrix products; others nobody wonders about."""
    if not (_reaches(softmax, _inputs) and _reaches(softmax, _users)):
        return ()
    node, own = refused.node.maker, softmax.maker
    node = node or own
    if node is None:
        return ()
    source = source_of(node.meta)
    reason = f"attention written by hand, but {refused.reason}"
    return (NearMiss(node.name, reason, source if source.file else source_of({} if own is None else own.meta)),)


def _of_activations(node: Value) -> bool:
    """Is this a product of two batched tensors of which none is a weight? Layers multiply by weights."""
    product = read_product(node) if is_product(node) else "none"
    if isinstance(product, str):
        return False
    operands = (product.left, product.right)
    made = map(tensor, operands)
    return all(value is not None and value.ndim >= 3 for value in made) and not any(map(is_weight, operands))


def _ends(node: Value) -> bool:
    """Does something of its own begin here: a layer, another product, or a normaliser?"""
    name = name_of(node)
    if name in NORMALISERS:
        return not (_squares(node) or any(map(_squares, node.users)))
    return name in MIXING or name in (*PRODUCTS, "mm") or read_softmax(node) is not None


def _squares(node: Value) -> bool:
    """``relu(scores) ** 2``, which is told of as the relu."""
    return name_of(node) == "pow" and any(name_of(value) == "relu" for value in node.inputs)


def _mixes(node: Value) -> bool:
    """Does it make other features? A weight of a few rows mixes heads: those are scores or weights still."""
    if name_of(node) not in MIXING:
        return False
    weights = [value for value in map(tensor, node.inputs[1:]) if value is not None and value.ndim >= 2]
    return not any(all(known(size <= HEADS) for size in weight.shape) for weight in weights)


def _inputs(node: Value) -> Iterable[Value]:
    return node.inputs


def _users(node: Value) -> Iterable[Value]:
    return node.users


def _nearest(start: Value, step: Callable[[Value], Iterable[Value]]) -> Value | None:
    """The nearest product of activations that way."""
    return next(_found(start, step, _of_activations, _ends), None)


def _reaches(start: Value, step: Callable[[Value], Iterable[Value]]) -> bool:
    """Is there a product within reach, and no layer in between?"""
    return next(_found(start, step, is_product, _mixes), None) is not None


def _found(
    start: Value,
    step: Callable[[Value], Iterable[Value]],
    wanted: Callable[[Value], bool],
    stop: Callable[[Value], bool],
) -> Iterator[Value]:
    """What is wanted within `REACH` steps, the nearest first, none of them through a node that stops the search."""
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        node, distance = queue.popleft()
        if wanted(node):
            yield node
        if distance < REACH and (node is start or not stop(node)):
            fresh = [n for n in step(node) if n not in seen]
            seen.update(fresh)
            queue.extend((n, distance + 1) for n in fresh)
