"""ALiBi as programs write it: its slopes are read, its distances computed, and a finite number still hides keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule

from attnpass.find.find import find
from attnpass.index.expr import Load
from attnpass.index.logic import loads_of
from attnpass.ir.meaning import Meaning
from attnpass.understand.understand import Reader
from tests.helpers.compiled import decisions, run
from tests.helpers.masks_computed import computed
from tests.helpers.masks_read import understood

B, H, N, D = 2, 4, 12, 16
INF = math.inf
Bias = Callable[[Tensor, Tensor], Tensor]
Program = Callable[..., Tensor]


def distance(n: int, dtype: torch.dtype = torch.int64) -> Tensor:
    i = torch.arange(n, dtype=dtype)
    return i - i[:, None]


def power_slopes() -> Tensor:
    return 2.0 ** (-8.0 * torch.arange(1, H + 1) / H)


def mpt(q: Tensor, slopes: Tensor) -> Tensor:
    """MPT's, with as many heads as are no power of 2: the distance from the last key, and slopes of the graph."""
    base = torch.arange(1, 9, dtype=torch.int64).float() * (8 / 8)
    made = (1.0 / torch.pow(2, base)).view(1, 8, 1, 1)
    made = torch.concat([made[:, 1::2], made[:, ::2]], dim=1)[:, :H]
    return (torch.arange(1 - q.shape[2], 1, dtype=torch.int32).view(1, 1, 1, -1) * made).squeeze(0).to(q.dtype)


def bloom(q: Tensor, slopes: Tensor) -> Tensor:
    """BLOOM's: keys are counted by a sum over the attention mask."""
    base = torch.tensor(2 ** (-(2 ** -(math.log2(H) - 3))), dtype=torch.float32)
    made = torch.pow(base, torch.arange(1, 1 + H, dtype=torch.int32))
    mask = torch.ones(B, q.shape[2], dtype=torch.long)
    keys = ((mask.cumsum(dim=-1) - 1) * mask)[:, None, :]
    return (made[..., None] * keys).reshape(B, H, 1, -1).to(q.dtype)


BIASES: dict[str, Bias] = {
    "x-transformers": lambda q, s: (s[:, None, None] * -distance(q.shape[2]).abs()).to(q.dtype),
    "slopes of the graph": lambda q, s: -(power_slopes()[:, None, None] * distance(q.shape[2]).abs()).to(q.dtype),
    "signed": lambda q, s: (distance(q.shape[2]) * s[:, None, None]).to(q.dtype),
    "cast first": lambda q, s: -distance(q.shape[2]).abs().to(q.dtype) * s[:, None, None].to(q.dtype),
    "as floats": lambda q, s: (-distance(q.shape[2]).abs().float() * s[:, None, None]).to(q.dtype),
    "counted in floats": lambda q, s: -(distance(q.shape[2], torch.float32).abs() * s[:, None, None]).to(q.dtype),
    "MPT": mpt,
    "BLOOM": bloom,
}
OF_THE_GRAPH = ("slopes of the graph", "MPT", "BLOOM")


def above(q: Tensor) -> Tensor:
    return torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)


CAUSAL: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_fill": lambda s: s.masked_fill(above(s), -INF),
    "lowest": lambda s: s.masked_fill(above(s), -torch.finfo(s.dtype).max),
    "where": lambda s: torch.where(above(s), -INF, s),
    "added": lambda s: s + torch.full((s.shape[2],) * 2, -INF, dtype=s.dtype).triu(1),
}


def attention(bias: Bias, causal: str = "masked_fill") -> Program:
    def program(q: Tensor, slopes: Tensor) -> Tensor:
        scores = torch.einsum("bhid,bhjd->bhij", q, q) * D**-0.5 + bias(q, slopes)
        weights = CAUSAL[causal](scores).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))
        return weights.to(q.dtype) @ q

    return program


class WithBuffer(torch.nn.Module):
    def __init__(self, program: Program, slopes: Tensor) -> None:
        super().__init__()
        self.program = program
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        return self.program(q, self.slopes)


def rows(dtype: torch.dtype = torch.float32, grad: bool = False, n: int = N) -> Tensor:
    return torch.randn(B, H, n, D, dtype=dtype, requires_grad=grad)


def is_whole(load: Load) -> bool:
    return {"q", "k"} <= set(map(str, load.index))


def as_near_as_eager(mine: Tensor, eager: Tensor, exact: Tensor) -> None:
    error, step = (eager.double() - exact).abs().max(), torch.finfo(eager.dtype).eps * exact.abs().max()
    assert (mine.double() - exact).abs().max() <= 2 * error + step


def meaning_of(program: Program, *args: Tensor) -> str:
    (found,) = understood(program, *args)
    assert not found.call.mask.rows_may_be_empty
    return str(found.call.mask) or found.call.mask.stop


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WAYS = [(name, list(CAUSAL)[place % len(CAUSAL)]) for place, name in enumerate(BIASES)]
NAMES = [name for name in BIASES if name not in OF_THE_GRAPH]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BIASES)
def test_it_is_understood_in_every_spelling(name: str, dtype: torch.dtype) -> None:
    """Slopes that learn, so that they are known to be as moderate as the scores."""
    for causal in CAUSAL:
        if dtype != torch.float16 or causal != "lowest":  # -65504 beside a bias: such a call is kept
            program = attention(BIASES[name], causal)
            assert meaning_of(program, rows(dtype), torch.nn.Parameter(torch.rand(H))) == "causal & bias"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "causal"), WAYS)
def test_it_is_computed_in_every_spelling(name: str, causal: str, dtype: torch.dtype) -> None:
    causal = "masked_fill" if dtype == torch.float16 and causal == "lowest" else causal
    program, q, slopes = attention(BIASES[name], causal), rows(dtype), torch.nn.Parameter(torch.rand(H))
    with torch.no_grad():
        eager, exact = program(q, slopes), program(q.double(), slopes.double())
        for kernel in ("flex", "native_math"):
            torch._dynamo.reset()
            as_near_as_eager(run(program, q, slopes, kernel=kernel, dynamic=False), eager, exact)
            assert decisions()[-1].kernel == kernel


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_need_be_known_of_the_slopes(name: str, dtype: torch.dtype) -> None:
    """A query meets its own key without a bias, so each row sees a key, whatever a buffer holds."""
    q, slopes = rows(dtype), torch.rand(H)
    for causal in ("masked_fill", "lowest"):
        program = attention(BIASES[name], causal)
        model = WithBuffer(program, slopes)
        assert meaning_of(model, q) == meaning_of(program, q, slopes) == "causal & bias"
    eager, exact = program(q, slopes), program(q.double(), slopes.double())
    as_near_as_eager(run(model, q, kernel="flex"), eager, exact)
    assert decisions()[-1].kernel == "flex"


def in_one_tensor(q: Tensor, slopes: Tensor) -> Tensor:
    """The scores are hidden in the bias, as in front of a call of SDPA."""
    bias = (slopes[:, None, None] * -distance(q.shape[2]).abs()).to(q.dtype)
    low = -torch.finfo(q.dtype).max / 2
    return F.scaled_dot_product_attention(q, q, q, bias.masked_fill(above(q), low).expand(B, -1, -1, -1))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_hidden_in_the_bias(dtype: torch.dtype) -> None:
    q, slopes = rows(dtype), torch.rand(H)
    assert meaning_of(in_one_tensor, q, slopes) == "causal & bias"
    exact = in_one_tensor(q.double(), slopes.double())
    as_near_as_eager(run(in_one_tensor, q, slopes, kernel="flex"), in_one_tensor(q, slopes), exact)
    assert decisions()[-1].kernel == "flex"


@pytest.mark.parametrize(("name", "learns"), [*((name, True) for name in BIASES), *((name, False) for name in NAMES)])
def test_gradients(name: str, learns: bool) -> None:
    program, q, slopes = attention(BIASES[name], "lowest"), rows(grad=True), torch.rand(H)
    slopes = torch.nn.Parameter(slopes) if learns else slopes
    wanted = [q, slopes] if learns and name in NAMES else [q]

    def gradients(made: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(made.square().sum(), leaves))

    mine = gradients(run(program, q, slopes, kernel="native_math"), wanted)
    assert decisions()[-1].kernel == "native_math"
    twins = [each.detach().double().requires_grad_() for each in (q, slopes)]
    exact = gradients(program(*twins), twins[: len(wanted)])
    for got, theirs, right in zip(mine, gradients(program(q, slopes), wanted), exact, strict=True):
        as_near_as_eager(got, theirs, right)


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_long_ones_are_rounded_as_the_program_does(dtype: torch.dtype, dynamic: bool) -> None:
    """bf16 holds integers up to 256; a length that is a symbol is not known to be below any number."""
    program = attention(lambda q, s: -distance(q.shape[2]).abs() * s[:, None, None])
    q, slopes = torch.randn(B, H, 300, 2 * D, dtype=dtype), torch.nn.Parameter(torch.rand(H).to(dtype))
    (found,) = understood(program, q, slopes, dynamic=dynamic)
    assert found.meaning is not None and found.meaning.bias is not None, found.call.mask.stop
    assert not any(map(is_whole, loads_of(found.meaning.bias)))
    if dynamic:
        torch._dynamo.mark_dynamic(q, 2)  # its head dim is a number
    torch._dynamo.reset()
    with torch.no_grad():
        mine = run(program, q, slopes, kernel="flex")
        as_near_as_eager(mine, program(q, slopes), program(q.double(), slopes.double()))
    assert decisions()[-1].kernel == "flex"


def test_a_distance_that_fp16_has_no_room_for_is_read() -> None:
    def program(q: Tensor, slopes: Tensor) -> Tensor:
        far = distance(q.shape[2]) * 7000
        return F.scaled_dot_product_attention(q, q, q, far.to(torch.float16) * slopes[:, None, None])

    (found,) = understood(program, rows(torch.float16), torch.nn.Parameter(torch.rand(H).half()))
    assert found.meaning is not None and found.meaning.bias is not None
    assert any(map(is_whole, loads_of(found.meaning.bias)))


def test_no_truth_value_of_what_is_rounded() -> None:
    """257 is 256 in bf16, and not in a kernel that computes in fp32: one key more would be seen."""
    n = 300

    def program(q: Tensor, slopes: Tensor) -> Tensor:
        far = distance(n).abs().to(torch.bfloat16)
        return F.scaled_dot_product_attention(q, q, q, far * slopes[:, None, None] <= 256)

    q, slopes = rows(torch.bfloat16, n=n), torch.ones(H, dtype=torch.bfloat16)
    (found,) = understood(program, q, slopes)
    assert "which a kernel rounds in another way" in found.call.mask.stop
    mine, exact = run(program, q, slopes, kernel="flex"), program(q.double(), slopes.double())
    as_near_as_eager(mine, program(q, slopes), exact)


def exact_bias(program: Program, *args: Tensor) -> tuple[Meaning, Tensor]:
    """What a mask of floats was understood to mean, and its bias at every index."""
    results: list[tuple[Meaning, Tensor]] = []

    def backend(gm: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        findings = find(gm)
        (found,) = findings.calls
        meaning = Reader(findings.reading).understood(found).meaning
        assert meaning is not None and not meaning.stop, meaning
        results.append((meaning, computed(meaning, gm, inputs, (B, H, *[args[0].shape[2]] * 2))[1]))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(program, backend=backend, dynamic=False)(*args)
    return results[0]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_bias_is_the_same_in_each_bit(data: st.DataObject) -> None:
    floats, integers = (torch.float32, torch.bfloat16, torch.float16), (torch.int64, torch.int32)
    counted, of_slopes, cast_to = (data.draw(st.sampled_from(each)) for each in (integers, floats, (None, *floats)))
    n, step, way = data.draw(st.sampled_from((5, 300))), data.draw(st.integers(1, 7)), data.draw(st.integers(0, 3))

    def program(q: Tensor, slopes: Tensor) -> Tensor:
        far = distance(n, counted) * step
        far = far.abs() if way % 2 else far
        far = far if cast_to is None else far.to(cast_to)
        product = far * slopes[:, None, None] if way < 2 else slopes[:, None, None] * -far
        made.append(product)
        return F.scaled_dot_product_attention(q, q, q, product[None].to(torch.float32))

    made: list[Tensor] = []
    q, slopes = rows(n=n), torch.nn.Parameter(torch.randn(H).to(of_slopes))
    program(q, slopes)
    _, bias = exact_bias(program, q, slopes)
    assert torch.equal(bias, made[0].float().expand(bias.shape))
