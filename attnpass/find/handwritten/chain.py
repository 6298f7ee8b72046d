"""The chain of nodes around a softmax: up to the product of q and k, down to the product with V. Read only.

A chain is private: nobody else reads what is between the two products, or a rewrite would take away what they read.
Every refusal is a `RefusedError` with the node at fault; `attnpass.find.near_misses` decides what is worth telling.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from attnpass.find.handwritten.joined import as_joined
from attnpass.find.handwritten.links import (
    MATERIALISED,
    Appended,
    Biased,
    Cut,
    Dropped,
    Joined,
    Link,
    RefusedError,
    Same,
    Shifted,
    moved,
)
from attnpass.find.handwritten.log_sum_exp import LogSumExp, read_log_sum_exp
from attnpass.find.handwritten.on_scores import on_scores
from attnpass.find.handwritten.on_weights import is_nan_test, on_weights
from attnpass.find.handwritten.products import Product, is_product, product_of, read_product
from attnpass.find.handwritten.softmaxes import Softmax
from attnpass.graph.ops import is_getitem, name_of, spelled
from attnpass.graph.reading import Reading
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value, returned
from attnpass.graph.values import tensor

WEIGHTS = "probabilities"  # as near misses call them
REACH = 24  # ops between a product and the softmax


@dataclass(slots=True)
class Chain:
    """A softmax and what is around it, in program order. All nodes are values of a Reading.

    Attributes:
        normalised: the softmax.
        first: the product of q and k.
        scores: what is done between `first` and `softmax`.
        probabilities: what is done between `softmax` and `last`.
        last: the product with V.
        weights: the operand of `last` that holds the probabilities.
        out: what the attention gives: the result of `last`, divided where the softmax says so.
        lse: the log-sum-exp of the scores, if the program wants it too.
        divided: the values between the softmax's total and what `last` is divided by, in order.
        nodes: every value that is dead once `out` and `lse` are replaced.
    """

    normalised: Softmax
    first: Product
    scores: list[Link]
    probabilities: list[Link]
    last: Product
    weights: Value
    out: Value
    divided: tuple[Value, ...] = ()
    lse: LogSumExp | None = None
    nodes: set[Value] = field(default_factory=set)

    @property
    def softmax(self) -> Value:
        """The weights."""
        return self.normalised.node


def read_chain(softmax: Softmax, reading: Reading, joins: bool) -> Chain:
    """The chain through ``softmax``; ``joins``: a product that is added to the scores is part of q kᵀ, and no bias.

    Raises:
        RefusedError: it is no attention that can be followed, with the node at fault.
    """
    first, scores = _upwards(softmax, joins)
    probabilities, last, weights = _downwards(softmax)
    out, divided = (last.node, ()) if softmax.total is None else _divided(last, softmax.total)
    lse = read_log_sum_exp(softmax, scores)
    chain = Chain(softmax, first, scores, probabilities, last, weights, out, divided, lse)
    chain.nodes = {*softmax.nodes, *first.nodes, *last.nodes, out, *divided, *(lse.nodes if lse else ())}
    for link in (*scores, *probabilities):
        chain.nodes.update(link.nodes)
    _refuse_other_readers(chain)
    _refuse_changing_state(chain, reading)
    return chain


def _upwards(softmax: Softmax, joins: bool) -> tuple[Product, list[Link]]:
    found: list[Link] = []
    asked: dict[Value, bool] = {}
    reader, source = softmax.node, softmax.scores
    while len(found) <= REACH:
        if not isinstance(source, Value):
            raise RefusedError(reader, "its input is no tensor of the graph")
        node = source
        if is_product(node):
            product = read_product(node)
            if isinstance(product, str):
                raise RefusedError(node, product)
            return product, found[::-1]
        link = on_scores(node, lambda x: _leads_to_product(x, asked))
        if joins and isinstance(link, Biased):
            link = as_joined(link) or link
        if isinstance(link, Appended) and not all(isinstance(each, (Shifted, Same)) for each in found):
            raise RefusedError(node, "columns are appended to the scores before the last change of them")
        found.append(link)
        reader, source = node, link.x
    raise RefusedError(softmax.node, f"more than {REACH} steps lie between the product of q and k and the softmax")


def _leads_to_product(node: Value, asked: dict[Value, bool], depth: int = 0) -> bool:
    """Is this a changed product, rather than a bias? ``asked`` keeps the answers."""
    if node not in asked:
        asked[node] = False  # until known
        if is_product(node):
            asked[node] = True
        elif depth <= REACH:
            try:
                link = on_scores(node, lambda x: _leads_to_product(x, asked, depth + 1))
                asked[node] = _leads_to_product(link.x, asked, depth + 1)
            except RefusedError:
                pass
    return asked[node]


def _downwards(softmax: Softmax) -> tuple[list[Link], Product, Value]:
    found: list[Link] = []
    node = softmax.node
    while len(found) <= REACH:
        readers = [user for user in node.users if user not in softmax.nodes and not is_nan_test(user)]
        if len(readers) != 1:
            _refuse_several(node, readers or list(node.users))
        (reader,) = readers
        last = product_of(reader)
        if last is not None:
            product = read_product(last)
            if isinstance(product, str):
                raise RefusedError(reader, product)
            if product.left is product.right:
                raise RefusedError(reader, "the probabilities are multiplied by themselves")
            if product.added is not None or product.alpha != 1:
                raise RefusedError(reader, f"`{spelled(reader)}` adds to the product with V, or scales it")
            return found, product, node
        if is_getitem(reader, 0) and tensor(node) is None and isinstance(node.fake, (tuple, list)):
            found.append(Same(reader, node))
        else:
            if softmax.total is not None and name_of(reader) == "div":
                raise RefusedError(
                    reader, f"`{spelled(reader)}` divides exponentials by something other than their sum"
                )
            found.append(on_weights(reader, node))
        node = reader
    raise RefusedError(softmax.node, f"more than {REACH} steps lie between the softmax and the product with V")


def _divided(last: Product, total: Value) -> tuple[Value, tuple[Value, ...]]:
    """The product with V divided by the sum of the exponentials, and the views of that sum.

    Raises:
        RefusedError: it is not: exponentials alone are no softmax.
    """
    readers = list(last.node.users)
    if len(readers) != 1 or name_of(readers[0]) != "div" or readers[0].args[0] is not last.node or readers[0].kwargs:
        raise RefusedError(last.node, "only a division by their sum may read the product of exponentials and V")
    steps, node = list[Value](), readers[0].args[1]
    while isinstance(node, Value) and node is not total and moved(node, node.args[0] if node.args else node):
        steps.append(node)
        node = node.args[0]
    if node is not total:
        raise RefusedError(
            readers[0], f"`{spelled(readers[0])}` divides by something other than the sum of the exponentials"
        )
    return readers[0], tuple(steps[::-1])


def _refuse_several(node: Value, readers: list[Value]) -> None:
    if not readers:
        raise RefusedError(node, "nobody reads the probabilities")
    others = [r for r in readers if not is_product(r)] or readers[1:]
    raise _used_elsewhere(node, others[0], WEIGHTS)


def _used_elsewhere(node: Value, reader: Value, what: str) -> RefusedError:
    why = MATERIALISED if what == WEIGHTS else "so they have to be materialised"
    if reader.target is returned:
        return RefusedError(node, f"the attention {what} are returned by the graph, {why}")
    return RefusedError(reader, f"`{spelled(reader)}` reads the attention {what} too, {why}")


def _refuse_other_readers(chain: Chain) -> None:
    after = {link.node for link in chain.probabilities} | {chain.softmax, chain.last.node}
    for node in chain.nodes - {chain.out, *([chain.lse.node] if chain.lse else [])}:
        for reader in node.users:
            if reader not in chain.nodes:
                raise _used_elsewhere(node, reader, WEIGHTS if node in after else "scores")


def _refuse_changing_state(chain: Chain, reading: Reading) -> None:
    """All products under the same grad mode, autocast and transforms, what is between them under the same grad mode.

    No gradient depends on the maximum that is taken away. Nothing inside a functorch transform.
    """
    joined = [link.product.node for link in chain.scores if isinstance(link, Joined)]
    first, *others = map(reading.region, (chain.first.node, chain.last.node, *joined))
    maxima = {each for link in chain.scores if isinstance(link, Shifted) for each in link.maximum}
    between = [reading.region(node) for node in chain.nodes - maxima]
    if first is None or None in between:
        raise RefusedError(chain.softmax, "the program state around it is not known")
    if first.functorch:
        raise RefusedError(chain.softmax, f"it stands inside {' of '.join(first.functorch)}, and is left alone there")
    same = all(each is not None and (each.grad, each.functorch) == (first.grad, first.functorch) for each in between)
    if not same or any(each != first for each in others):
        raise RefusedError(chain.softmax, "autocast, grad mode or another state changes between the two products")


def dropout_of(chain: Chain) -> float:
    """The probability of dropping a weight."""
    drops = [link for link in chain.probabilities if isinstance(link, Dropped)]
    if len(drops) > 1:
        raise RefusedError(drops[1].node, "the probabilities are dropped twice")
    return drops[0].p if drops else 0.0


def softmax_dim(chain: Chain) -> int:
    """The dimension of the softmax, counted from the front."""
    node, dim = chain.softmax, chain.normalised.dim
    value = tensor(node)
    if value is None or not isinstance(dim, int):
        raise RefusedError(node, f"the dimension of the softmax is {dim!r}, not a number in the graph")
    return dim % value.ndim


def added_sinks(chain: Chain, dim: int) -> Value | None:
    """The column that is appended to the scores and cut off behind the softmax; None if there is none."""
    cats = [link for link in chain.scores if isinstance(link, Appended)]
    slices = [link for link in chain.probabilities if isinstance(link, Cut)]
    if not cats and not slices:
        return None
    if len(cats) != 1 or len(slices) != 1:
        culprit = (slices or cats)[-1].node
        raise RefusedError(culprit, f"`{spelled(culprit)}` takes a part of the scores or probabilities only")
    (cat,), (cut,) = cats, slices
    before, scores = tensor(cut.x), tensor(cat.x)
    assert before is not None and scores is not None
    column = tensor(cat.column)
    whole = column is not None and column.ndim == scores.ndim and known_equal(column.shape[dim], 1)
    if not whole or cat.dim % scores.ndim != dim or cut.dim % before.ndim != dim or cut.first != cat.first:
        raise RefusedError(cut.node, "what is appended to the scores is not one column that is cut off again")
    return cat.column
