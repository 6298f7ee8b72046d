"""A mask that was proved, as a small picture: rows are queries, columns keys, filled where a query sees a key.

It is computed from the expression of the mask, at a sample of its real positions. What a program reads when it runs is
not known here, and stands for an example: padding at the end, documents of a quarter of the length, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from attnpass.graph.symbolic import Size, hint
from attnpass.graph.values import tensor
from attnpass.index.evaluate import COMPARISONS, Values, as_tensor, evaluate, symbolic_sizes
from attnpass.index.expr import AXES, TRUE, Apply, Expr, K, Lin, Load, Q
from attnpass.index.logic import axes_of, loads_of, walk
from attnpass.ir.decision import Decision
from attnpass.ir.mask import RULES
from attnpass.ir.meaning import Meaning

if TYPE_CHECKING:
    from markupsafe import Markup

SIDE = 32  # cells, at most
WITHIN = (0.0, 0.29, 0.53, 0.81)  # where a cell is looked at: not every fourth key, which a pattern may repeat with
CPU = torch.device("cpu")
NONE, PART, ALL = range(3)  # of the sampled pairs of a cell that take part
Positions = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Picture:
    """Who sees whom, in cells.

    Attributes:
        cells: of each row (queries), of each column (keys): `NONE`, `PART` or `ALL`.
        sizes: Sq and Sk.
        example: does the mask read what only the running program knows?
    """

    cells: tuple[tuple[int, ...], ...]
    sizes: tuple[int, int]
    example: bool

    @property
    def title(self) -> str:
        Sq, Sk = self.sizes
        said = f"who sees whom among {Sq} queries (rows) and {Sk} keys (columns); filled: seen; paler: in part"
        return said + ("; padding, documents and other data are an example" if self.example else "")


def picture(decision: Decision) -> Picture | None:
    """The mask of a call for its first example and head; None where none is proved, hides nothing, or reads (q, k)."""
    call, allowed = decision.call, _allowed(decision)
    sizes = {Q: hint(call.Sq), K: hint(call.Sk)}
    Sq, Sk = sizes[Q], sizes[K]
    if allowed is None or not Sq or not Sk or not all(hint(size) for size in symbolic_sizes(allowed).values()):
        return None
    loads = loads_of(allowed)
    if any({Q, K} <= axes_of(load) for load in loads) or None in map(_shape, loads):
        return None
    with unset_fake_temporarily(), torch.no_grad(), torch.inference_mode(False):
        seen = _with_examples(allowed, loads, (Sq, Sk))
        rows, columns = min(SIDE, Sq), min(SIDE, Sk)
        shares = seen.double().reshape(rows, len(WITHIN), columns, len(WITHIN)).mean((1, 3)).tolist()
    cells = tuple(tuple(NONE if share == 0 else ALL if share == 1 else PART for share in row) for row in shares)
    return Picture(cells, (Sq, Sk), bool(loads))


def _allowed(decision: Decision) -> Expr | None:
    meaning, mask = decision.meaning, decision.call.mask
    if meaning is None and mask.bias is None and mask.terms and all(term.term in RULES for term in mask.terms):
        meaning = Meaning.of_rules(mask)
    return None if meaning is None or meaning.stop or meaning.allowed == TRUE else meaning.allowed


def _with_examples(allowed: Expr, loads: list[Load], sizes: tuple[int, int]) -> Tensor:
    """The mask at the sampled positions, with an example for each tensor that is read."""
    positions = _positions(sizes)
    choices = {load.node: list(_examples(load, allowed, max(sizes))) for load in loads}
    tensors = {node: examples[0] for node, examples in choices.items()}
    for node, examples in choices.items():
        tried = [_seen(allowed, positions, {**tensors, node: example}) for example in examples]
        plain = _seen(allowed, positions, {**tensors, node: _everywhere(examples[0], max(sizes))})
        told = [(not bool((seen == plain).all()), int(seen.sum())) for seen in tried]
        tensors[node] = examples[told.index(max(told))]  # one that hides something, but as little as may be
    return _seen(allowed, positions, tensors)


def _positions(sizes: tuple[int, int]) -> Positions:
    """The sampled index of each axis, (rows, 1) and (1, columns)."""

    def along(size: int) -> Tensor:
        cells = min(SIDE, size)
        edges = [cell * size // cells for cell in range(cells + 1)]
        pairs = list(pairwise(edges))
        return torch.tensor([start + int(at * (end - start)) for start, end in pairs for at in WITHIN], device=CPU)

    zero = torch.zeros((), dtype=torch.int64, device=CPU)
    return {**dict.fromkeys(AXES, zero), Q: along(sizes[0])[:, None], K: along(sizes[1])[None]}


def _seen(allowed: Expr, positions: Positions, tensors: Mapping[Any, Tensor]) -> Tensor:
    symbols = {key: torch.tensor(hint(size), device=CPU) for key, size in symbolic_sizes(allowed).items()}
    anywhere = frozenset((load, dim) for load in loads_of(allowed) for dim in range(len(load.index)))
    values = Values(positions, tensors, symbols, anywhere, device=CPU)
    shape = positions[Q].shape[0], positions[K].shape[1]
    return as_tensor(evaluate(allowed, values), torch.bool, CPU).expand(shape)


def _examples(load: Load, allowed: Expr, length: int) -> Iterator[Tensor]:
    """What a tensor may hold: it changes along one dimension, that of q or k."""
    shape, dim = _shape(load) or (), _dim(load)
    size = shape[dim] if dim is not None else 1
    at = torch.arange(size, device=CPU)

    def whole(along: Tensor) -> Tensor:
        ones = [1] * len(shape)
        if dim is not None:
            ones[dim] = size
        return along.to(load.dtype).view(ones).expand(shape)

    seen = at < max(1, size * 3 // 4)
    if dim is None:
        numbers = (1, 0) if load.dtype == torch.bool else (length * 3 // 4,)
        yield from (whole(torch.tensor([number], device=CPU)) for number in numbers)
    elif load.dtype == torch.bool:
        yield from map(whole, (seen, ~seen))
    elif (role := _role(load, allowed)) != "":
        yield whole(1 + at * 4 // size if role == "documents" else at)
    else:
        yield from map(whole, (seen, ~seen))
        if load.dtype.is_floating_point:
            yield whole(torch.where(seen, 0.0, -torch.inf))


def _role(load: Load, allowed: Expr) -> str:
    """What an integer is: the number of a document, compared between q and k, or a position; "" for a mere flag."""
    for part in walk(allowed):
        if isinstance(part, Load) and any(load in loads_of(index) for index in part.index):
            return "positions"
        if isinstance(part, Apply) and part.op in COMPARISONS:
            mine, others = ([arg for arg in part.args if (load.node in _nodes(arg)) is held] for held in (True, False))
            if len(mine) == 2:
                return "documents" if part.op == "eq" else "positions"
            if mine and any(isinstance(each, Lin) and axes_of(each) for arg in others for each in walk(arg)):
                return "positions"
    return ""


def _nodes(expr: Expr) -> set[Any]:
    return {load.node for load in loads_of(expr)}


def _dim(load: Load) -> int | None:
    """The last dimension that is read at q or at k."""
    return max((dim for dim, index in enumerate(load.index) if axes_of(index) & {Q, K}), default=None)


def _shape(load: Load) -> tuple[int, ...] | None:
    made = tensor(load.node)
    sizes: list[Size] = [] if made is None else list(made.shape)
    known = [number for size in sizes if (number := hint(size))]
    return tuple(known) if made is not None and len(known) == len(sizes) else None


def _everywhere(example: Tensor, length: int) -> Tensor:
    """The same number everywhere: the first of the example; of an example that is one number, all of the length."""
    number = example[(0,) * example.ndim]
    changes = any(size > 1 and step for size, step in zip(example.shape, example.stride(), strict=True))
    return (number if changes else torch.full_like(number, length)).expand(example.shape)


def to_svg(drawn: Picture) -> Markup:
    """The picture, inline: two paths, of what is seen and of what is seen in part."""
    from markupsafe import Markup

    paths = (f'<path class="{name}" d="{_path(drawn, value)}"/>' for name, value in (("seen", ALL), ("part", PART)))
    size = f'viewBox="0 0 {len(drawn.cells[0])} {len(drawn.cells)}" preserveAspectRatio="none"'
    return Markup(f'<svg class="mask" role="img" {size}><title>{drawn.title}</title>{"".join(paths)}</svg>')


def _path(drawn: Picture, value: int) -> str:
    """Each run of such cells in a row as a rectangle."""
    made = []
    for y, row in enumerate(drawn.cells):
        x = 0
        while x < len(row):
            end = x
            while end < len(row) and row[end] == value:
                end += 1
            made += [f"M{x} {y}h{end - x}v1h{x - end}z"] * (end > x)
            x = max(end, x + 1)
    return "".join(made)
