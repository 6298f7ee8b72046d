"""Chains that almost are attention calls, with the node that kept them from being one.

When a graph has few rewrites, the question is "why not mine?". The answer names a node and a source line.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch.fx import Node

from attnpass.find.found import NearMiss
from attnpass.find.handwritten.links import RefusedError
from attnpass.find.handwritten.products import is_product, read_product
from attnpass.find.handwritten.softmaxes import read_softmax
from attnpass.graph.ops import name_of
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
    for value in reading.values:
        node, name = value.maker, name_of(value)
        if node is None or node in said or value in told:
            continue
        if name in NORMALISERS and _between_products(value):
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


def _between_products(node: Value) -> bool:
    """Do two products of batched tensors stand around it? Multilayer perceptrons multiply by 2-D weights."""
    return all(_reaches(node, step, _batched, _is_normaliser) for step in (_inputs, _users))


def _batched(node: Value) -> bool:
    if not is_product(node):
        return False
    product = read_product(node)
    if isinstance(product, str):
        return False
    values = [tensor(product.left), tensor(product.right)]
    return all(value is not None and value.ndim >= 3 for value in values)


def _is_normaliser(node: Value) -> bool:
    return name_of(node) in NORMALISERS or name_of(node) in MIXING or read_softmax(node) is not None


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


def _reaches(
    start: Value,
    step: Callable[[Value], Iterable[Value]],
    wanted: Callable[[Value], bool] = is_product,
    stop: Callable[[Value], bool] = _mixes,
) -> bool:
    """Is there a product within `REACH` steps, none of them through a node that stops the search?"""
    queue, seen = deque([(start, 0)]), {start}
    while queue:
        node, distance = queue.popleft()
        if wanted(node):
            return True
        if distance < REACH and (node is start or not stop(node)):
            fresh = [n for n in step(node) if n not in seen]
            seen.update(fresh)
            queue.extend((n, distance + 1) for n in fresh)
    return False
