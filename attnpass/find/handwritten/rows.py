"""What a row gives whose keys are all hidden, where the softmax or what stands behind it says more than the masks do.

Many models write 0 over the weights of hidden keys, or over NaN, so that such a row gives 0. Beside a key that is seen
a hidden one weighs 0 anyway. So a mask behind the softmax that is the one before it changes such rows alone, and which
number hid them no longer matters: it may be -inf, for which every kernel gives 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from attnpass.find.handwritten.axes import Atom, Axes, fresh
from attnpass.find.handwritten.chain import Chain
from attnpass.find.handwritten.changes import Change, broadcast_axes
from attnpass.find.handwritten.links import RefusedError, Zeroed, axes_behind
from attnpass.find.handwritten.scores import Scores
from attnpass.find.handwritten.softmaxes import Way
from attnpass.graph.ops import alike, argument, name_of, number, spelled
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.hidden import is_moderate
from attnpass.ir.mask import EmptyRows

NEGATIONS = ("logical_not", "bitwise_not")  # of truth values, the same
Mask = tuple[Value, bool, tuple[tuple[Atom, ...], ...]]


def settle_rows(chain: Chain, scores: Scores) -> EmptyRows | None:
    """What hidden rows give, if not what their masks say; ``scores`` hides by -inf then.

    Raises:
        RefusedError: it is not known, or weights of keys that are seen are made 0.
    """
    plain = all(is_moderate(change.node) for change in scores.changes if change.fill is None)
    _check_exponentials(chain, scores, plain)
    fills = [change for change in scores.changes if change.fill is not None]
    zeroed = _masks_behind(chain, scores.axes)
    for link, behind in zeroed:
        if not any(_same(behind, _mask_of(change)) for change in fills):
            reason = "makes weights 0 by a mask that is not known to hide the same keys before the softmax"
            raise RefusedError(link.node, f"`{spelled(link.node)}` {reason}")
    nan = [link for link in chain.probabilities if isinstance(link, Zeroed) and link.mask is None]
    infinite = any(change.fill == -math.inf for change in fills)
    written = [behind for link, behind in zeroed if not (link.multiplies and infinite)]  # NaN times 0 is NaN
    if written and all(any(_same(_mask_of(change), behind) for behind in written) for change in fills):
        if not plain:
            raise RefusedError(zeroed[0][0].node, "weights are made 0 beside a bias that may hide rows by itself")
        _hide_by_infinity(scores)
        return EmptyRows.ZERO_ADDED if infinite and scores.torn else EmptyRows.ZERO
    if written and not (nan and infinite):
        raise RefusedError(zeroed[0][0].node, f"`{spelled(zeroed[0][0].node)}` makes weights 0 by one of several masks")
    if not nan:
        return None
    return EmptyRows.ZERO if fills and not scores.torn else EmptyRows.ZERO_ADDED


def _check_exponentials(chain: Chain, scores: Scores, plain: bool) -> None:
    """Refuse what is hidden in a way of which exponentials make something other than softmax does."""
    zeroed = [link for link in chain.probabilities if isinstance(link, Zeroed)]
    if chain.normalised.total is not None and zeroed:
        raise RefusedError(zeroed[0].node, "weights are made 0 before they are divided by their sum")
    if chain.normalised.way not in (Way.BARE, Way.LOGSUM):
        return
    finite = any(change.fill not in (None, -math.inf) for change in scores.changes)
    if not plain or (finite and chain.normalised.way is Way.LOGSUM):
        what = "a bias" if not plain else "a finite number"
        raise RefusedError(chain.softmax, f"{what} may hide a row, of which `exp` makes something else than softmax")
    _hide_by_infinity(scores)


def _hide_by_infinity(scores: Scores) -> None:
    scores.changes = [c if c.fill is None else replace(c, fill=-math.inf) for c in scores.changes]


def _masks_behind(chain: Chain, axes: Axes) -> list[tuple[Zeroed, Mask]]:
    """The masks that make weights 0, in the dimensions of the scores."""
    found = []
    for link in chain.probabilities:
        axes = axes_behind(axes, link)
        if isinstance(link, Zeroed) and link.mask is not None:
            found.append((link, _plain(link.mask, link.where_true, broadcast_axes(link.node, link.mask, axes))))
    return found


def _mask_of(change: Change) -> Mask | None:
    """The mask; None for one of a part of the scores."""
    return None if change.steps else _plain(change.node, change.where_true, change.axes)


def _plain(mask: Value, where_true: bool, axes: Axes) -> Mask:
    """A mask without negations."""
    while mask.args and isinstance(inner := mask.args[0], Value) and _is_bool(inner):
        zero = number(argument(mask, 1)) == 0
        if name_of(mask) in NEGATIONS or (name_of(mask) == "eq" and zero):
            mask, where_true = inner, not where_true
        elif name_of(mask) == "ne" and zero:
            mask = inner
        else:
            break
    return mask, where_true, fresh(axes)


def _is_bool(value: Value) -> bool:
    made = tensor(value)
    return made is not None and made.dtype == torch.bool


def _same(one: Mask | None, other: Mask | None) -> bool:
    if one is None or other is None:
        return False
    ours, theirs = (list(mask[2]) for mask in (one, other))
    while len(ours) < len(theirs):
        ours.insert(0, ())
    while len(theirs) < len(ours):
        theirs.insert(0, ())
    return one[1] == other[1] and ours == theirs and alike(one[0], other[0])
