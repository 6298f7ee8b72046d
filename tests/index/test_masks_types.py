"""Single elements against PyTorch: for random dtypes, numbers and operations, the same bits at every index, or a stop.

``ATTNPASS_EXAMPLES`` sets how many programs are tried.
"""

from __future__ import annotations

import operator
import os
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, Node

from attnpass.index.arrays import Array, Like
from attnpass.index.evaluate import Values, as_tensor, evaluate
from attnpass.index.expr import K, Load, axis, number, plus
from attnpass.index.logic import is_positive
from attnpass.index.rules.pointwise import chosen, elementwise
from attnpass.index.scalars import StopError, constant, fitting

N = 5
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*INTS, torch.bool, *FLOATS)
OPS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "le": operator.le,
    "lt": operator.lt,
    "ge": operator.ge,
    "gt": operator.gt,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": torch.logical_and,
    "or": operator.or_,
    "xor": operator.xor,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
}
UNARY: dict[str, Callable[..., Any]] = {"neg": operator.neg, "abs": operator.abs, "not": torch.logical_not}
NUMBERS = (0, 1, -1, 2, 3, 100, 127, 128, 200, 255, 256, 300, -128, -129, 2**15, 2**24, 2**24 + 1, 2**31 - 1, 2**31)
REALS = (0.0, -0.0, 0.5, 1.0, -1.0, 2.0, 0.1, 1e-8, 300.0, 65504.0, 65520.0, -1e9, 3.4e38, 16777217.0, float("inf"))
outcomes: Counter[str] = Counter()
Draw = Callable[[Any], Any]
Pair = tuple[Any, Any]  # an operand as the engine has it, and as PyTorch has it


def counted(start: int, dtype: torch.dtype) -> Pair:
    array = Like((N,), dtype).made_of(lambda i: fitting(plus(axis(K), number(start)), dtype))
    return array, torch.arange(start, start + N).to(dtype)


def filled(value: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Pair:
    array = Like(shape, dtype).made_of(lambda _: constant(value, dtype))
    return array, torch.tensor(value, dtype=dtype).expand(shape)


def read(tensor: Tensor, tensors: dict[Node, Tensor]) -> Pair:
    node = Graph().placeholder("x")
    node.meta["val"] = tensors[node] = tensor
    return Like(tuple(tensor.shape), tensor.dtype).made_of(lambda i: Load(node, i, tensor.dtype)), tensor


def below(bound: int) -> Pair:
    array = Like((N,), torch.bool).made_of(lambda i: is_positive(plus(number(bound - 1), axis(K), -1)))
    return array, torch.arange(N) < bound


def operand(draw: Draw, tensors: dict[Node, Tensor]) -> Pair:
    kind = draw(st.sampled_from(("counted", "counted", "filled", "number", "read", "below")))
    if kind == "below":
        return below(draw(st.integers(0, N)))
    if kind == "number":
        value = draw(st.sampled_from((*NUMBERS, *REALS, True)))
        return value, value
    dtype = draw(st.sampled_from(INTS if kind == "counted" else DTYPES))
    if kind == "counted":
        info = torch.iinfo(dtype)
        edge = draw(st.sampled_from((0, 0, info.min, info.max - N + 1)))
        return counted(max(info.min, min(edge + draw(st.integers(-3, 3)), info.max - N + 1)), dtype)
    values = st.sampled_from(REALS if dtype.is_floating_point else NUMBERS)
    drawn = [draw(values) for _ in range(N)]
    if not dtype.is_floating_point and dtype != torch.bool:
        info = torch.iinfo(dtype)
        drawn = [min(max(value, info.min), info.max) for value in drawn]
    if kind == "read":
        return read(torch.tensor(drawn if draw(st.booleans()) else drawn[0], dtype=dtype), tensors)
    return filled(drawn[0], dtype, draw(st.sampled_from(((), (N,)))))


def applied(draw: Draw, *operands: Pair) -> Pair:
    """One operation on operands; raises what PyTorch raises."""
    arrays, reals = zip(*operands, strict=True)
    kind = draw(st.sampled_from(("binary", "binary", "unary", "cast", "where")))
    function: Callable[..., Any]
    if kind == "where":
        test = below(draw(st.integers(0, N)))
        real = torch.where(test[1], *reals)
        return chosen(test[0], *arrays, Like(tuple(real.shape), real.dtype)), real
    if kind == "cast":
        dtype = draw(st.sampled_from(DTYPES))
        name, arrays, reals = "cast", arrays[:1], reals[:1]
        function = lambda x: x.to(dtype)  # noqa: E731  the dtype is part of it
    elif kind == "unary":
        name, arrays, reals = draw(st.sampled_from(sorted(UNARY))), arrays[:1], reals[:1]
        function = UNARY[name]
    else:
        name = draw(st.sampled_from(sorted(OPS)))
        function = OPS[name]
    real = function(*reals)
    return elementwise(name, function, Like(tuple(real.shape), real.dtype), arrays), real


def check(array: Array, real: Tensor, tensors: dict[Node, Tensor]) -> None:
    """The same at all indices at once, and at each alone as FlexAttention counts them."""
    expr = array.broadcast_at((axis(K),))
    places = [torch.arange(N), *(torch.tensor(i, dtype=torch.int32) for i in range(N))]
    wanted = [real.expand(N), *real.expand(N)]
    for place, want in zip(places, wanted, strict=True):
        values = Values({K: place}, tensors, {}, device=place.device)
        got = as_tensor(evaluate(expr, values), real.dtype, place.device).expand(want.shape)
        same = got.to(torch.float64 if want.is_floating_point() else got.dtype) == want
        same |= got.isnan() & want.isnan()
        same &= got.signbit() == want.signbit() if want.is_floating_point() else same
        assert same.all(), f"{expr} is {got}, PyTorch has {want} in {real.dtype}"


def tried(draw: Draw) -> str:
    tensors: dict[Node, Tensor] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pair = applied(draw, operand(draw, tensors), operand(draw, tensors))
            if draw(st.booleans()):
                pair = applied(draw, pair, operand(draw, tensors))
            if draw(st.integers(0, 3)) == 0:
                pair = applied(draw, pair, operand(draw, tensors))
        except (RuntimeError, TypeError, ZeroDivisionError, OverflowError, AttributeError):
            return "no program"
        try:
            check(*pair, tensors)
        except StopError:
            return "stopped"
    return "equal"


@settings(
    max_examples=int(os.environ.get("ATTNPASS_EXAMPLES", "2000")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
@given(st.data())
def test_the_same_bits_or_a_stop(data: st.DataObject) -> None:
    outcomes[tried(data.draw)] += 1


def test_many_were_equal() -> None:
    print(f"\noperations on random dtypes: {dict(outcomes)}, none wrong")
    if outcomes:
        assert outcomes["equal"] > outcomes["stopped"] / 2


def whole(array: Array, real: Tensor, tensors: dict[Node, Tensor] | None = None) -> str:
    """Compare with PyTorch; "equal", or the reason for which it is not followed."""
    try:
        check(array, real, tensors or {})
    except StopError as stop:
        return str(stop)
    return "equal"


def one(name: str, function: Callable[..., Any], *operands: Pair) -> Pair:
    arrays, reals = zip(*operands, strict=True)
    real = function(*reals)
    return elementwise(name, function, Like(tuple(real.shape), real.dtype), arrays), real


@pytest.mark.parametrize(
    "name", ("add", "sub", "mul", "floordiv", "mod", "le", "lt", "ge", "gt", "eq", "ne", "minimum")
)
@pytest.mark.parametrize("other", (3, filled(3, torch.int64, ()), filled(3, torch.int32, (N,)), 2.0))
def test_arithmetic_on_positions_is_followed(name: str, other: Any) -> None:
    if name == "minimum":
        other = filled(3, torch.int64, ())
    if isinstance(other, float) and name not in ("le", "lt", "ge", "gt", "eq", "ne"):
        pytest.skip("a float result")
    pair = other if isinstance(other, tuple) else (other, other)
    for dtype in (torch.int64, torch.int32, torch.int16):
        assert whole(*one(name, {**OPS, **UNARY}[name], counted(0, dtype), pair)) == "equal"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("low", (float("-inf"), torch.finfo(torch.float16).min, -1e9))
def test_masks_of_floats_are_followed(dtype: torch.dtype, low: float) -> None:
    """The spellings of models; -1e9 is -inf in fp16."""
    test = below(3)
    kept = filled(0.0, dtype, ())[0], torch.tensor(0.0, dtype=dtype)
    real = torch.where(test[1], kept[1], low)
    assert whole(chosen(test[0], kept[0], low, Like((N,), dtype)), real) == "equal"
    inverted = one("sub", operator.sub, (1.0, 1.0), one("cast", lambda x: x.to(dtype), test))
    if low != float("-inf") and (dtype, low) != (torch.float16, -1e9):  # 0 * inf is NaN
        assert whole(*one("mul", operator.mul, inverted, (low, low))) == "equal"
    bits = (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor), ("eq", operator.eq))
    for name, function in bits:
        assert whole(*one(name, function, test, below(1))) == "equal"


def test_what_may_not_fit_is_not_followed() -> None:
    add, full = operator.add, "may not fit"
    assert full in whole(*one("add", add, counted(200, torch.uint8), (100, 100)))
    assert whole(*one("add", add, counted(100, torch.uint8), (100, 100))) == "equal"
    assert full in whole(*one("add", add, counted(2**31 - N, torch.int32), (1, 1)))
    assert full in whole(*one("mul", operator.mul, counted(0, torch.int8), (100, 100)))
    assert full in whole(*one("lt", operator.lt, counted(0, torch.uint8), (-1, -1)))
    assert whole(*one("lt", operator.lt, counted(200, torch.uint8), (300.0, 300.0))) == "equal"
    assert whole(*one("add", add, filled(200, torch.uint8, (N,)), (100, 100))) == "equal"  # PyTorch says 44


def test_truth_is_that_of_the_dtype_of_all() -> None:
    """2 ** 31 without dimensions is 0 beside int16, and so is a small float beside fp16."""
    large, small = filled(2**31, torch.int64, ()), filled(1e-8, torch.float32, ())
    for other, beside in ((large, counted(0, torch.int16)), (small, read(torch.ones(N, dtype=torch.float16), {}))):
        for name, function in (("and", torch.logical_and), ("or", torch.logical_or), ("xor", torch.logical_xor)):
            assert whole(*one(name, function, other, beside)) != "equal"
    assert whole(*one("and", torch.logical_and, counted(0, torch.int16), below(2))) == "equal"


def test_symbolic_sizes_fit_into_int64_alone() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    env = ShapeEnv()
    size = env.create_unbacked_symint()
    torch._check(size >= 2)
    for dtype, fits in ((torch.int64, True), (torch.int32, False), (torch.uint8, False)):
        array = Like((size,), dtype).made_of(lambda i, dtype=dtype: fitting(plus(axis(K), number(1)), dtype))  # type: ignore[misc]
        if fits:
            assert str(array.at((axis(K),))) == "k + 1"
        else:
            with pytest.raises(StopError, match="may not fit"):
                array.at((axis(K),))
    for dtype in (torch.float32, torch.bool, torch.int32):
        with pytest.raises(StopError):
            constant(size, dtype)
    assert constant(size - size) is number(0)
    assert len(env.guards) == 0


def test_what_devices_round_unlike_is_not_followed() -> None:
    """CUDA keeps a number of Python's in float32 beside fp16, and divides by multiplying."""
    half, tenth = filled(1.0, torch.float16, (N,)), filled(0.1, torch.float16, (N,))
    assert "rounded" in whole(*one("lt", operator.lt, tenth, (0.1, 0.1)))
    assert whole(*one("lt", operator.lt, tenth, (0.2, 0.2))) == "equal"
    assert "rounded" in whole(*one("truediv", operator.truediv, filled(7.0, torch.float32, (N,)), (3.0 / 7, 3.0 / 7)))
    assert whole(*one("truediv", operator.truediv, filled(7.0, torch.float32, (N,)), (2.0, 2.0))) == "equal"
    assert whole(*one("mul", operator.mul, half, (-1e9, -1e9))) == "equal"


def test_a_float_that_is_no_integer_of_the_dtype_is_not_cast() -> None:
    for value, dtype in ((float("inf"), torch.int64), (300.0, torch.uint8), (-1.0, torch.uint8), (1e20, torch.int64)):
        reason = whole(*one("cast", lambda x, d=dtype: x.to(d), filled(value, torch.float32, (N,))))  # type: ignore[misc]
        assert reason != "equal", (value, dtype)
    assert whole(*one("cast", lambda x: x.to(torch.int64), filled(-1.5, torch.float32, (N,)))) == "equal"


def test_a_zero_keeps_its_sign() -> None:
    tensors: dict[Node, Tensor] = {}
    x = read(torch.tensor([-0.0, 0.0, 1.0, -1.0, float("-inf")]), tensors)
    for zero in (0.0, -0.0):
        for name, function in (("add", operator.add), ("sub", operator.sub)):
            assert whole(*one(name, function, x, (zero, zero)), tensors) == "equal"
            assert whole(*one(name, function, x, filled(zero, torch.float32, (N,))), tensors) == "equal"
            assert whole(*one(name, function, filled(zero, torch.float32, ()), x), tensors) == "equal"
