"""What each operation of PyTorch means for arrays: one table, from the operation's name to a function.

A function takes what is known of the result (`Like`) and the operation's own arguments, in its own order, tensors as
`Array` and sizes as numbers or SymInts. An operation that is not here has no meaning: the tracer reads its value at run
time and says its name in the report. Source of each meaning: the documentation of ``torch``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from attnpass.masks.arithmetic import Element, StopError, constant, fitting, pointwise
from attnpass.masks.arrays import (
    Array,
    Index,
    Like,
    axis_of,
    band,
    chosen,
    elementwise,
    indexed,
    not_negative,
    permuted,
    regrouped,
    replaced,
    shifted,
    sliced,
)
from attnpass.masks.expr import ZERO, Apply, Expr, Lin, as_number, is_positive, number, plus, scaled, where
from attnpass.masks.simplify import Bounds
from attnpass.symbolic import Size, known

Meaning = Callable[..., Any]
MEANINGS: dict[str, Meaning] = {}


def meaning(*names: str) -> Callable[[Meaning], Meaning]:
    """Enter a function into the table under the names of operations."""

    def register(function: Meaning) -> Meaning:
        MEANINGS.update(dict.fromkeys(names, function))
        return function

    return register


def _pointwise(name: str, function: Callable[..., Any], *names: str) -> None:
    def call(like: Like, *operands: Any, **options: Any) -> Array:
        if options.pop("alpha", 1) != 1 or set(options) - {"out", "dtype", "layout", "device", "pin_memory"}:
            raise StopError(f"{name} with {', '.join(options) or 'alpha'}")
        return elementwise(name, function, like, operands)

    MEANINGS.update(dict.fromkeys(names, call))


_pointwise("add", operator.add, "add", "iadd", "add_", "__add__", "__radd__")
_pointwise("sub", operator.sub, "sub", "isub", "sub_", "subtract", "__sub__")
_pointwise("mul", operator.mul, "mul", "imul", "mul_", "multiply", "__mul__", "__rmul__")
_pointwise("truediv", operator.truediv, "truediv", "div", "divide", "true_divide", "itruediv", "div_")
_pointwise("floordiv", operator.floordiv, "floordiv", "floor_divide", "__floordiv__")
_pointwise("mod", operator.mod, "mod", "remainder", "__mod__")
_pointwise("neg", operator.neg, "neg", "negative")
_pointwise("abs", operator.abs, "abs", "absolute")
_pointwise("le", operator.le, "le", "less_equal", "__le__")
_pointwise("lt", operator.lt, "lt", "less", "__lt__")
_pointwise("ge", operator.ge, "ge", "greater_equal", "__ge__")
_pointwise("gt", operator.gt, "gt", "greater", "__gt__")
_pointwise("eq", operator.eq, "eq", "__eq__")
_pointwise("ne", operator.ne, "ne", "not_equal", "__ne__")
_pointwise("and", torch.logical_and, "logical_and", "logical_and_")
_pointwise("or", torch.logical_or, "logical_or", "logical_or_")
_pointwise("xor", torch.logical_xor, "logical_xor", "logical_xor_")
_pointwise("not", torch.logical_not, "logical_not", "logical_not_")
_pointwise("and", operator.and_, "and_", "bitwise_and", "iand", "__and__", "bitwise_and_")
_pointwise("or", operator.or_, "or_", "bitwise_or", "ior", "__or__", "bitwise_or_")
_pointwise("xor", operator.xor, "xor", "bitwise_xor", "ixor", "__xor__", "bitwise_xor_")
_pointwise("not", operator.invert, "invert", "inv", "bitwise_not", "bitwise_not_", "__invert__")
_pointwise("minimum", torch.minimum, "minimum")
_pointwise("maximum", torch.maximum, "maximum")


@meaning("rsub")
def _rsub(like: Like, x: Array, other: Any, alpha: int = 1) -> Array:
    if alpha != 1:
        raise StopError(f"rsub with alpha {alpha}")
    return elementwise("sub", operator.sub, like, (other, x))


@meaning("arange")
def _arange(like: Like, *bounds: Any, start: Any = None, end: Any = None, step: Any = None, **_: Any) -> Array:
    values = [start, end, step]
    places = (1,) if len(bounds) == 1 and start is None and end is None else range(3)
    for place, value in zip(places, bounds, strict=False):
        values[place] = value
    first, by = values[0] or 0, 1 if values[2] is None else values[2]
    if like.dtype.is_floating_point or not all(isinstance(x, (int, torch.SymInt)) for x in (first, by)):
        raise StopError("arange of floats")
    if not isinstance(by, int):
        raise StopError(f"arange with the step {by}")
    return like.made_of(lambda index: fitting(_form(shifted(index[0], by, first)), like.dtype))


def _form(expr: Expr) -> Lin:
    if not isinstance(expr, Lin):
        raise StopError(f"arange at {expr}")
    return expr


def _filled(like: Like, value: Any) -> Array:
    if isinstance(value, Array):
        if value.ndim:
            raise StopError("a fill value with dimensions")
        element = Element(value.at(()), value.dtype, 0)
        return like.made_of(lambda _: pointwise("cast", lambda t: t.to(like.dtype), [element], like.dtype))
    return like.made_of(lambda _: constant(value, like.dtype))


@meaning("zeros", "zeros_like", "new_zeros", "zero_")
def _zeros(like: Like, *_: Any, **__: Any) -> Array:
    return _filled(like, 0)


@meaning("ones", "ones_like", "new_ones")
def _ones(like: Like, *_: Any, **__: Any) -> Array:
    return _filled(like, 1)


@meaning("full")
def _full(like: Like, size: Any, fill_value: Any, **_: Any) -> Array:
    return _filled(like, fill_value)


@meaning("full_like", "fill", "fill_")
def _full_like(like: Like, x: Array, fill_value: Any = None, value: Any = None, **_: Any) -> Array:
    return _filled(like, value if fill_value is None else fill_value)


@meaning("new_full")
def _new_full(like: Like, x: Array, size: Any, fill_value: Any, **_: Any) -> Array:
    return _filled(like, fill_value)


@meaning("tensor", "scalar_tensor", "as_tensor", "new_tensor")
def _tensor(like: Like, *args: Any, **_: Any) -> Array:
    value = args[-1]
    if isinstance(value, Array):
        return elementwise("cast", lambda t: t.to(like.dtype), like, (value,))
    if like.shape or isinstance(value, (list, tuple)):
        raise StopError("a tensor of several numbers")
    return _filled(like, value)


@meaning("copy_")
def _copy(like: Like, x: Array, source: Any, *_: Any, **__: Any) -> Array:
    return chosen(_true(like), source, source, like)


def _true(like: Like) -> Array:
    return Like(like.shape, torch.bool).made_of(lambda _: constant(True))


@meaning("to", "type", "bool", "int", "long", "float", "half", "bfloat16", "double", "type_as", "_to_copy", "short")
def _cast(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return elementwise("cast", lambda t: t.to(like.dtype), like, (x,))


@meaning("clone", "contiguous", "detach", "alias", "lift_fresh", "lift_fresh_copy", "detach_", "cuda", "cpu")
def _same(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return x


@meaning(
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "view_as", "reshape_as", "ravel"
)
def _view(like: Like, x: Array, *args: Any, **_: Any) -> Array:
    if args and isinstance(args[0], torch.dtype):
        raise StopError("a view as another dtype")
    return regrouped(x, like)


@meaning("expand", "expand_as", "broadcast_to")
def _expand(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    return like.made_of(x.broadcast_at)


@meaning("transpose", "swapaxes", "swapdims")
def _transpose(like: Like, x: Array, dim0: int, dim1: int) -> Array:
    order = list(range(x.ndim))
    a, b = axis_of(x, dim0), axis_of(x, dim1)
    order[a], order[b] = b, a
    return permuted(x, order)


@meaning("t")
def _t(like: Like, x: Array) -> Array:
    return permuted(x, range(x.ndim)[::-1])


@meaning("permute")
def _permute(like: Like, x: Array, *dims: Any, **named: Any) -> Array:
    dims = dims or (named["dims"],)
    return permuted(x, dims[0] if isinstance(dims[0], (list, tuple)) else dims)


@meaning("getattr")
def _getattr(like: Like, x: Array, name: str) -> Array:
    if name in ("T", "mT"):
        swapped = [*range(x.ndim)[:-2], *range(x.ndim)[-2:][::-1]]
        return permuted(x, range(x.ndim)[::-1] if name == "T" else swapped)
    raise StopError(f"the attribute {name}")


@meaning("getitem")
def _getitem(like: Like, x: Any, item: Any) -> Any:
    if not isinstance(x, Array):
        return x[item]
    return indexed(x, item if isinstance(item, (tuple, list)) else (item,), like)


@meaning("index")
def _index(like: Like, x: Array, items: Any) -> Array:
    return indexed(x, [slice(None) if item is None else item for item in items], like)


@meaning("setitem")
def _setitem(like: Like, x: Array, item: Any, value: Any) -> Array:
    """``x[item] = value``, for slices and numbers along each dimension."""
    parts = item if isinstance(item, tuple) else (item,)
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts = (*parts[:at], *[slice(None)] * (x.ndim - len(parts) + 1), *parts[at + 1 :])
    if any(not isinstance(part, slice) or part.step not in (None, 1) for part in parts):
        raise StopError("an assignment to anything but slices")
    starts: list[Size] = []
    ends: list[Size | None] = []
    for part, size in zip(parts, x.shape, strict=False):
        for bound in (part.start, part.stop):
            if bound is not None and not known(bound >= 0):
                raise StopError(f"an assignment to a slice with the bound {bound}")
        starts.append(0 if part.start is None else part.start)
        ends.append(None if part.stop is None or known(part.stop >= size) else part.stop)

    def element(index: Index) -> Expr:
        inside: list[Expr] = []
        there = list(index)
        for dim, (start, end) in enumerate(zip(starts, ends, strict=True)):
            form = _form(index[dim])
            there[dim] = plus(form, number(start), -1)
            if not (isinstance(start, int) and start == 0):
                inside.append(is_positive(plus(form, number(start), -1)))
            if end is not None:
                inside.append(is_positive(plus(number(end - 1), form, -1)))
        if isinstance(value, Array):
            part = Element(value.broadcast_at(tuple(there)), value.dtype, value.ndim)
            new = pointwise("cast", lambda t: t.to(x.dtype), [part], x.dtype)
        else:
            new = constant(value, x.dtype)
        result = x.at(index)
        for test in inside or [constant(True)]:
            new = where(test, new, result)
        return new

    return Array(x.shape, x.dtype, element)


@meaning("narrow")
def _narrow(like: Like, x: Array, dim: int, start: Size, length: Size) -> Array:
    return sliced(x, like, dim, start, 1)


@meaning("slice")
def _slice(
    like: Like, x: Array, dim: int = 0, start: Size | None = None, end: Size | None = None, step: int = 1
) -> Array:
    return sliced(x, like, dim, start, step)


@meaning("select")
def _select(like: Like, x: Array, dim: int, index: Size) -> Array:
    parts: list[Any] = [slice(None)] * x.ndim
    parts[axis_of(x, dim)] = index
    return indexed(x, parts, like)


@meaning("index_select")
def _index_select(like: Like, x: Array, dim: int, index: Array) -> Array:
    parts: list[Any] = [slice(None)] * x.ndim
    parts[axis_of(x, dim)] = index
    return indexed(x, parts, like)


@meaning("gather")
def _gather(like: Like, x: Array, dim: int, index: Array, **_: Any) -> Array:
    dim = axis_of(x, dim)

    def element(at: Index) -> Expr:
        there = index.at(at)
        if not not_negative(there):
            raise StopError(f"an index that may be negative: {there}")
        return x.at(replaced(at, dim, there))

    return like.made_of(element)


@meaning("where")
def _where(like: Like, test: Array, yes: Any, no: Any) -> Array:
    return chosen(test, yes, no, like)


@meaning("masked_fill", "masked_fill_")
def _masked_fill(like: Like, x: Array, mask: Array, value: Any) -> Array:
    return chosen(mask, value, x, like)


@meaning("tril", "tril_")
def _tril(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=True)


@meaning("triu", "triu_")
def _triu(like: Like, x: Array, diagonal: Size = 0) -> Array:
    return band(x, like, diagonal, lower=False)


@meaning("repeat", "tile")
def _repeat(like: Like, x: Array, *_: Any, **__: Any) -> Array:
    def element(index: Index) -> Expr:
        inner = index[len(index) - x.ndim :]
        sizes = like.shape[len(index) - x.ndim :]
        return x.at(tuple(_modulo(i, size, whole) for i, size, whole in zip(inner, x.shape, sizes, strict=True)))

    return like.made_of(element)


def _modulo(index: Expr, size: Size, whole: Size) -> Expr:
    if known(size == 1):
        return ZERO
    if known(size == whole):
        return index
    if not isinstance(size, int):
        raise StopError(f"a repetition of the symbolic size {size}")
    return Apply("mod", (index, number(size)), torch.int64)


@meaning("repeat_interleave")
def _repeat_interleave(like: Like, x: Array, repeats: Any, dim: int | None = None, **_: Any) -> Array:
    if not isinstance(repeats, int) or dim is None:
        raise StopError("repeat_interleave by a tensor, or over all dimensions")
    dim = axis_of(x, dim)
    return like.made_of(
        lambda index: x.at(replaced(index, dim, Apply("floordiv", (index[dim], number(repeats)), torch.int64)))
    )


@meaning("flip")
def _flip(like: Like, x: Array, *dims: Any) -> Array:
    turned = {axis_of(x, dim) for dim in (dims[0] if isinstance(dims[0], (list, tuple)) else dims)}

    def element(index: Index) -> Expr:
        return x.at(
            tuple(
                plus(number(x.shape[i] - 1), _form(part), -1) if i in turned else part for i, part in enumerate(index)
            )
        )

    return like.made_of(element)


@meaning("roll")
def _roll(like: Like, x: Array, shifts: Any, dims: Any = None) -> Array:
    if dims is None:
        raise StopError("roll over all dimensions")
    pairs = list(zip(shifts, dims, strict=True)) if isinstance(shifts, (list, tuple)) else [(shifts, dims)]
    result = x
    for by, dim in pairs:
        position = axis_of(x, dim if isinstance(dim, int) else dim[0])
        result = _rolled(result, by, position)
    return result


def _rolled(x: Array, by: Any, dim: int) -> Array:
    size = x.shape[dim]
    if not isinstance(by, int) or not isinstance(size, int) or not size:
        raise StopError(f"roll by {by} of {size}")
    by %= size

    def element(index: Index) -> Expr:
        here = _form(index[dim])
        before = x.at(replaced(index, dim, plus(here, number(size - by)))) if by else x.at(index)
        after = x.at(replaced(index, dim, plus(here, number(-by))))
        return where(is_positive(plus(here, number(-by))), after, before)

    return Array(x.shape, x.dtype, element)


@meaning("cat", "concat", "concatenate")
def _cat(like: Like, tensors: Any, dim: int = 0, **_: Any) -> Array:
    parts: list[Array] = [part for part in tensors if not (part.ndim == 1 and known(part.shape[0] == 0))]
    dim = dim % len(like.shape)

    def element(index: Index) -> Expr:
        here = _form(index[dim])
        end: Size = sum((part.shape[dim] for part in parts), start=0)
        result: Expr | None = None
        for part in reversed(parts):
            start = end - part.shape[dim]
            value = part.at(replaced(index, dim, plus(here, number(start), -1)))
            cast = pointwise("cast", lambda t: t.to(like.dtype), [Element(value, part.dtype, 1)], like.dtype)
            result = cast if result is None else where(is_positive(plus(here, number(end), -1)), result, cast)
            end = start

        assert result is not None
        return result

    return like.made_of(element)


@meaning("stack")
def _stack(like: Like, tensors: Any, dim: int = 0, **_: Any) -> Array:
    dim = dim % len(like.shape)

    def element(index: Index) -> Expr:
        here = as_number(index[dim])
        if not isinstance(here, int):
            raise StopError(f"a stack at {index[dim]}")
        chosen_one: Array = tensors[here]
        return chosen_one.at((*index[:dim], *index[dim + 1 :]))

    return like.made_of(element)


@meaning("pad", "constant_pad_nd")
def _pad(like: Like, x: Array, pad: Any, mode: Any = "constant", value: Any = None) -> Array:
    if mode != "constant":
        mode, value = "constant", mode if value is None else value
    if isinstance(mode, str) and isinstance(value, str):
        raise StopError("padding that is not constant")
    befores = {x.ndim - 1 - i: pad[2 * i] for i in range(len(pad) // 2)}

    def element(index: Index) -> Expr:
        inside: list[Expr] = []
        there = list(index)
        for dim, before in befores.items():
            form = plus(_form(index[dim]), number(before), -1)
            there[dim] = form
            inside += [is_positive(form), is_positive(plus(number(x.shape[dim] - 1), form, -1))]
        result: Expr = x.at(tuple(there))
        for test in inside:
            result = where(test, result, constant(value or 0, like.dtype))
        return result

    return like.made_of(element)


@meaning("diff")
def _diff(like: Like, x: Array, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Array:
    if n != 1 or append is not None or like.dtype.is_floating_point or like.dtype == torch.bool:
        raise StopError("diff of this kind")
    dim = axis_of(x, dim)
    if prepend is not None:
        shape = (*x.shape[:dim], x.shape[dim] + prepend.shape[dim], *x.shape[dim + 1 :])
        x = _cat(Like(shape, like.dtype), (prepend, x), dim)

    def element(index: Index) -> Expr:
        here = _form(index[dim])
        next_one = Element(x.at(replaced(index, dim, plus(here, number(1)))), like.dtype, 1)
        return pointwise("sub", operator.sub, [next_one, Element(x.at(index), like.dtype, 1)], like.dtype)

    return like.made_of(element)


@meaning("cumsum")
def _cumsum(like: Like, x: Array, dim: int, **_: Any) -> Array:
    """The sum of a number that is the same everywhere along ``dim``; anything else has to be computed."""
    dim = axis_of(x, dim)

    def element(index: Index) -> Expr:
        probe = "cumsum position"
        value = Bounds.of({probe: x.shape[dim]}).simplified(x.at(replaced(index, dim, Lin(((probe, 1),)))))
        each = pointwise("cast", lambda t: t.to(like.dtype), [Element(value, x.dtype, 1)], like.dtype)
        step = as_number(each)
        if not isinstance(step, int) or like.dtype.is_floating_point:
            raise StopError(f"cumsum of {value}"[:200].replace(probe, "i"))
        return fitting(plus(scaled(_form(index[dim]), step), number(step)), like.dtype)

    return like.made_of(element)
