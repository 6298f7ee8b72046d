"""The Reading: what each tensor of a program holds at each place, whatever was written through whichever spelling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from attnpass.graph.value import returned
from tests.fuzz.programs import make
from tests.helpers.reading_oracle import captured, check, reading_of

X = torch.arange(48.0).reshape(2, 4, 6) / 7 - 3
Program = Callable[[Tensor], object]


@torch.library.custom_op("attnpass_tests::clear", mutates_args={"x"})
def clear(x: Tensor) -> None:
    x.zero_()


@clear.register_fake
def _(x: Tensor) -> None:
    return None


def through_views(x: Tensor) -> object:
    y = x.clone()
    row, column, part = y[0], y[:, 1], y.view(2, 24)[:, 3:9]
    row.mul_(2)
    column[:, 2:4] = 7
    part -= 1
    return y, row.sum(), column + part[:, :1], y.transpose(1, 2).contiguous()


def behind_a_copy(x: Tensor) -> object:
    y = x.transpose(0, 1).contiguous()
    z = y.transpose(0, 1)
    before = z * 1
    y.add_(3)
    return before, z, x


def parts(x: Tensor) -> object:
    y = x + 1
    a, b = y.chunk(2, -1)
    rows = y.unbind(1)
    b.fill_(2)
    rows[1].copy_(rows[0])
    return a * 1, b * 1, y.split([1, 2, 1], 1)[1] + 0, rows[2]


def spelled_otherwise(x: Tensor) -> object:
    y, z = x.clone(), torch.empty_like(x)
    F.relu(y, True)
    torch.add(x, 1, out=z)
    y.__imul__(z)
    torch._foreach_add_([y, z], 1.0)
    y.masked_fill_(z > 2, -1.0).clamp_(-2, 2)
    y[:, [2, 0]] = z[:, :2]
    y.index_fill_(1, torch.tensor([3]), 5.0)
    return y, z


def in_another_dtype(x: Tensor) -> object:
    bits, count = x > 0, torch.zeros(2, 4, 6, dtype=torch.int32)
    count += bits
    bits |= count.bool().logical_not_()
    half = x.half()
    half.add_(x)
    count.copy_(x * 10)
    return bits, count, half


def by_a_custom_op(x: Tensor) -> object:
    y = x + 1
    part = y[0]
    clear(part)
    return y, part + 1


def through_expansion_and_diagonal(x: Tensor) -> object:
    y = x[..., :4].clone()
    y.diagonal(dim1=1, dim2=2).fill_(9)
    wide = y[:, :, :1].expand(2, 4, 5)
    y.mul_(2)
    return y, wide + 1, y.mT[0] * 2


def in_bodies(x: Tensor) -> object:
    y = checkpoint(lambda z: (z * 2).relu_(), x, use_reentrant=False)
    with torch.autocast("cpu", torch.bfloat16):
        z = y @ y.mT
    return z.float(), torch.vmap(lambda row: row.cumsum(-1) * 2)(y)


PROGRAMS: list[Program] = [
    through_views,
    behind_a_copy,
    parts,
    spelled_otherwise,
    in_another_dtype,
    by_a_custom_op,
    through_expansion_and_diagonal,
    in_bodies,
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_values_are_what_the_program_computes(program: Program) -> None:
    gm, inputs = captured(program, X)
    assert check(gm, inputs) > 10


@pytest.mark.parametrize("program", PROGRAMS)
def test_there_are_no_writes_in_it(program: Program) -> None:
    gm, _ = captured(program, X)
    for value in reading_of(gm).values:
        schema = getattr(value.target, "_schema", None)
        assert schema is None or not schema.is_mutable or schema.name.startswith("attnpass_tests::")
        assert value.users or value.target is returned or schema is None or schema.is_mutable


@pytest.fixture
def quiet() -> Iterator[None]:
    trace = logging.getLogger("torch.__trace")  # pytest would keep what Dynamo traces
    trace.disabled = True
    yield
    trace.disabled = False


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
@given(st.integers(0, 1 << 32), st.sampled_from(("masks", "chains", "grads")))
def test_random_programs_with_writes(quiet: None, seed: int, kind: str) -> None:
    program = make(kind, seed)
    try:
        gm, inputs = captured(program.function(), *program.fresh())
    except torch._dynamo.exc.TorchDynamoException:
        return  # Dynamo does not take it
    check(gm, inputs)


def test_what_was_captured_stays_as_it_was() -> None:
    def fn(x: Tensor) -> Tensor:
        x.add_(1)
        return x.t_().relu_()

    gm, _ = captured(fn, torch.ones(2, 3))
    known = {node: node.meta["example_value"] for node in gm.graph.nodes if node.op != "output"}
    shapes = {node: (tuple(value.shape), value._version) for node, value in known.items()}
    reading_of(gm)
    assert {n: (tuple(v.shape), v._version) for n, v in known.items()} == shapes
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < "2.10",
    reason="PyTorch 2.9 guards in the decomposition of slices, as AOTAutograd does",
)
def test_a_symbolic_size_adds_no_guard() -> None:
    def fn(x: Tensor, n: Tensor) -> Tensor:
        y = x.clone()
        y[:, : y.shape[1] // 2] = 0
        return y.view(-1, y.shape[-1])[n.nonzero()[:, 0]]

    gm, _ = captured(fn, torch.randn(2, 8, 6), torch.ones(16), dynamic=True)
    env = next(iter(gm.graph.nodes)).meta["example_value"].node.shape_env
    guards, pending = len(env.guards), list(env.pending_fresh_unbacked_symbols)
    reading_of(gm)
    assert len(env.guards) == guards
    assert env.pending_fresh_unbacked_symbols == pending


def test_who_holds_a_value() -> None:
    def fn(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 2
        z = y + 1
        y.zero_()
        return z, y

    gm, _ = captured(fn, X)
    reading = reading_of(gm)
    nodes = {node.name: node for node in gm.graph.nodes}
    y, zero, end = nodes["y"], nodes["zero_"], gm.graph.output_node()
    doubled = reading.result(y)
    assert doubled is not None
    assert reading.holder(doubled, zero) is y
    assert reading.holder(doubled, end) is None  # overwritten
    assert reading.value_at(y, end) is reading.result(zero)
    assert reading.result_of(doubled) is y
    assert (reading.writes_before(zero), reading.writes_before(end)) == (0, 1)
    assert reading.written_behind(y)
