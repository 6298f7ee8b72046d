"""Arithmetic on floats that a kernel repeats for each score: where it pays, and where its rounding would show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from attnpass.graph.symbolic import known
from attnpass.index.expr import Apply, Expr, K, Lin, Q
from attnpass.index.interned import remembered
from attnpass.index.logic import axes_of, dtype_of
from attnpass.index.scalars import EXACT, HALVES, Element, StopError, brought, is_float, within_now


def over_scores(op: str, args: tuple[Expr, ...], dtype: torch.dtype) -> Expr | None:
    """Arithmetic on floats that are read, if it goes over queries and keys; a smaller result is read as it was made.

    A kernel repeats it for each score, which saves a tensor of all scores and would not pay for a row of them.
    """
    return Apply(op, args, dtype) if _go_over(args) else None


def brought_or_cast(elements: Sequence[Element], dtype: torch.dtype) -> list[Expr]:
    """What is `brought` to ``dtype``, or cast to it for each score: an integer may be rounded so, as the program does.

    Raises:
        StopError: it is not known what one is there.
    """
    try:
        return [brought(each, dtype) for each in elements]
    except StopError:
        if not _go_over([each.expr for each in elements]):
            raise
        return [_cast(each, dtype) for each in elements]


def _go_over(exprs: Iterable[Expr]) -> bool:
    return {Q, K} <= frozenset[str]().union(*map(axes_of, exprs))


def _cast(element: Element, dtype: torch.dtype) -> Expr:
    try:
        return brought(element, dtype)
    except StopError:
        if element.dtype is None or not may_be_cast(element.expr, dtype):
            raise
        return Apply("cast", (element.expr,), dtype)


def may_be_cast(expr: Expr, dtype: torch.dtype) -> bool:
    """Is a cast to floats of ``dtype`` followed? Of a float it is, and of an integer that there is room for."""
    if is_float(dtype_of(expr)):
        return is_float(dtype)
    if not isinstance(expr, Lin) or dtype not in EXACT:
        return False
    if dtype != torch.float16:
        return True
    bounds, limit = within_now(), int(torch.finfo(dtype).max)
    low, high = bounds.least(expr), bounds.most(expr)
    return low is not None and high is not None and known(low >= -limit) and known(high <= limit)


def refuse_rounded(expr: Expr) -> None:
    """Refuse a truth value of what was computed in half precision: kernels do that in fp32, one step beside.

    Raises:
        StopError: it is one.
    """
    if _is_rounded(expr):
        raise StopError(f"the truth of {expr}, which a kernel rounds in another way"[:200])


def _is_rounded(expr: Expr) -> bool:
    return remembered(expr, "rounded", _rounds)


def _rounds(expr: Expr) -> bool:
    return (isinstance(expr, Apply) and expr.dtype in HALVES) or any(map(_is_rounded, expr.parts()))
