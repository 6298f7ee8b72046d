"""Biases, masks and factors of the scores, as `attnpass.find.handwritten.scores` collects them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from attnpass.find.handwritten.axes import Axes, size_of
from attnpass.find.handwritten.links import Biased, Filled, RefusedError
from attnpass.find.handwritten.partly import padding_steps
from attnpass.graph.operand import Step
from attnpass.graph.ops import spelled
from attnpass.graph.symbolic import known_equal
from attnpass.graph.value import Value
from attnpass.graph.values import tensor
from attnpass.ir.hidden import HIDES, hides_when_written, is_moderate

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Factor:
    """What the scores are multiplied by, or divided by: a tensor or a symbolic number.

    Attributes:
        by: the factor.
        axes: what its dimensions are.
        at: the node of the program that applies it.
        divides: are the scores divided?
    """

    by: Value | torch.SymFloat
    axes: Axes
    at: Value
    divides: bool


@dataclass(frozen=True, slots=True)
class Change:
    """A bias or a mask.

    Attributes:
        node: the tensor.
        axes: what its dimensions are.
        at: the node of the program that applies it.
        fill: None for a bias, else the number that is written.
        where_true: is it written where the tensor is True?
        factor: what a bias is multiplied by.
        times: tensors that it is multiplied by.
        steps: what is done to the tensor first.
        raised: were the scores raised to a low number behind it, so that no -inf is left?
    """

    node: Value
    axes: Axes
    at: Value
    fill: float | None = None
    where_true: bool = True
    factor: float = 1.0
    times: tuple[Factor, ...] = ()
    steps: tuple[Step, ...] = ()
    raised: float | None = None


def may_be_scaled(change: Change, learns: bool) -> bool:
    """Is it a bias that a tensor may scale with the scores?

    One that may hide keys rounds scores away in fp16, and is in the gradient of a factor that ``learns``.
    """
    value = tensor(change.at)
    exact = value is not None and value.dtype != torch.float16 and not learns
    return change.fill is None and change.raised is None and (exact or is_moderate(change.node))


def change_of(link: Biased | Filled, axes: Axes) -> Change:
    """A bias, or a mask, of scores whose dimensions are ``axes``; truth values are added as 0 and 1."""
    node, x = link.node, tensor(link.x)
    if isinstance(link, Filled):
        if not hides_all(link.x, link.fill):
            raise need_not_hide(link)
        return Change(link.mask, broadcast_axes(node, link.mask, axes), node, link.fill, link.where_true)
    value = tensor(link.bias)
    assert value is not None and x is not None
    steps = (Step(aten.to.dtype, (x.dtype,)),) if value.dtype == torch.bool else ()
    return Change(link.bias, broadcast_axes(node, link.bias, axes), node, factor=link.factor, steps=steps)


def padded(change: Change, scores: Axes, spans: list[tuple[Sequence[Any], Value]]) -> Change:
    """A change of a part of the scores as one of all of them."""
    keeps = change.fill is not None and not change.where_true
    steps = (Step(aten.logical_not.default),) if keeps else change.steps
    steps += padding_steps(change.at, change.node, spans)
    sliced = {where[0] % len(scores) for where, _ in spans}
    own = (*[()] * (len(scores) - len(change.axes)), *change.axes)
    axes = tuple(axis if dim in sliced else own[dim] for dim, axis in enumerate(scores))
    return replace(change, axes=axes, steps=steps, where_true=True)


def hides_all(x: Value, fill: float) -> bool:
    """Is a number so low that no key it is written to counts beside one that is seen?"""
    value = tensor(x)
    return value is not None and hides_when_written(fill, value.dtype)


def need_not_hide(link: Filled) -> RefusedError:
    """Why a number that is written into the scores is no mask."""
    return RefusedError(
        link.node, f"`{spelled(link.node)}` writes {link.fill:g} into the scores, which need not hide a key"
    )


def multiplied(change: Change, factor: float) -> Change:
    """A bias, or what is written over scores, that are multiplied by a number.

    Raises:
        RefusedError: it hides no key then.
    """
    if change.fill is None:
        return replace(change, factor=change.factor * factor)
    scaled = change.fill * factor
    if scaled > HIDES:
        raise RefusedError(change.at, f"`{spelled(change.at)}` hides scores with {change.fill:g}, then they are scaled")
    return replace(change, fill=scaled)


def broadcast_axes(at: Value, operand: Value, axes: Axes) -> Axes:
    """The dimensions of a tensor that broadcasts to the scores, whose dimensions are ``axes``."""
    value = tensor(operand)
    assert value is not None
    if value.ndim > len(axes):
        raise RefusedError(at, f"`{spelled(at)}` makes the scores larger by broadcasting")
    made = []
    for size, axis in zip(value.shape, axes[len(axes) - value.ndim :], strict=True):
        whole = size_of(axis)
        if known_equal(size, whole):
            made.append(axis)
        elif known_equal(size, 1):
            made.append(())
        else:
            reason = f"a tensor of size {size} meets scores of size {whole}, which are not known to be the same"
            raise RefusedError(at, f"`{spelled(at)}`: {reason}")
    return tuple(made)
