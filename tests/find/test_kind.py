"""Does K come from Q's sequence? Proved, or unknown: each claim beside the nearest program without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import attnpass
from tests.helpers.compiled import NOT_ON_2_9
from tests.models.tiny_models import ENCODER_DECODERS, MODELS

S = F.scaled_dot_product_attention
E, H = 32, 4


def kinds(model: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    torch._dynamo.reset()
    with torch.no_grad():
        return [d.call.kind.value for report in attnpass.explain(model, *args, **kwargs) for d in report.decisions]


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


class Projected(nn.Module):
    """Attention with projections, and a way to lead x (and c) to them."""

    def __init__(self, lead: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(E, E) for _ in range(4))
        self.n1, self.n2, self.conv = nn.LayerNorm(E), nn.RMSNorm(E), nn.Conv1d(E, E, 2, 2)
        self.a, self.b = nn.Linear(E, 2, bias=False), nn.Linear(2, E, bias=False)
        self.latents, self.lead = nn.Parameter(torch.randn(1, 5, E)), lead

    def attend(self, x: Tensor, c: Tensor) -> Tensor:
        out = S(heads(self.q(x)), heads(self.k(c)), heads(self.v(c)))
        return self.o(out.transpose(1, 2).flatten(2))

    def forward(self, *args: Tensor) -> Tensor:
        return self.attend(*self.lead(self, *args))


X, C, LONG = torch.randn(2, 6, E), torch.randn(2, 6, E), torch.randn(2, 9, E)


@pytest.mark.parametrize(
    ("lead", "args", "kind"),
    [
        pytest.param(lambda m, x: (x, x), (X,), "self", id="one tensor"),
        pytest.param(lambda m, x: (m.n1(x), m.n2(x)), (X,), "self", id="two norms of one tensor"),
        pytest.param(lambda m, x, c: (x, c), (X, LONG), "cross", id="two inputs"),
        pytest.param(lambda m, x, c: (x, c), (X, C), "cross", id="two inputs of one length"),
        pytest.param(lambda m, x, c: (x + c.mean(1, True), c), (X, C), "unknown", id="Q knows of C"),
        pytest.param(lambda m, x, c: (x, torch.cat((x, c), 1)), (X, C), "unknown", id="K is more than X"),
        pytest.param(lambda m, x: (x[:1], x[1:]), (X,), "unknown", id="two halves of a batch"),
        pytest.param(lambda m, x: (x.chunk(2, 1)[0], x.chunk(2, 1)[1]), (X,), "unknown", id="two halves of a sequence"),
        pytest.param(lambda m, x: (x, x.flip(0)), (X,), "unknown", id="each image looks at the other"),
        pytest.param(lambda m, x: (x, m.conv(x.mT).mT), (X,), "self", id="fewer keys, by a convolution"),
        pytest.param(lambda m, x, c: (x.type_as(c).view_as(c), c), (X, C), "cross", id="of another's dtype and shape"),
        pytest.param(lambda m, x: (m.latents.expand(2, -1, -1), x), (X,), "cross", id="learned queries"),
        pytest.param(lambda m, x, t: (x * (1 + t), x), (X, torch.randn(2, 1, E)), "unknown", id="modulated queries"),
        pytest.param(lambda m, x, t: (x * (1 + t),) * 2, (X, torch.randn(2, 1, E)), "self", id="modulated, both"),
    ],
)
def test_leads(lead: Callable[..., Any], args: tuple[Tensor, ...], kind: str) -> None:
    assert kinds(Projected(lead), *args) == [kind]


def test_cross_attention_stays_cross_behind_the_first() -> None:
    """The output of an attention has the tokens of its Q, so X does not become C's descendant."""
    model = Projected(lambda m, x, c: (x + m.attend(m.n1(x), c), c))
    assert kinds(model, X, C) == ["cross", "cross"]
    assert kinds(
        Projected(lambda m, x: (m.latents.expand(2, -1, -1) + m.attend(m.latents.expand(2, -1, -1), x), x)), X
    ) == [
        "cross",
        "cross",
    ]
    model = Projected(lambda m, x, c: (x + m.attend(x, c), x))
    assert kinds(model, X, C) == ["cross", "unknown"]  # K is the stream before the first attention


def test_what_lies_between_projection_and_attention_is_passed() -> None:
    class Model(Projected):
        def forward(self, x: Tensor, cos: Tensor) -> Tensor:  # type: ignore[override]
            q = heads(self.q(x) + self.b(self.a(F.dropout(x, 0.1))))  # LoRA
            k, v = heads(self.k(x)), heads(self.v(x))
            turned = [F.normalize(t, dim=-1) * cos + torch.cat((-t[..., 4:], t[..., :4]), -1) * cos for t in (q, k)]
            return S(*turned, v)

    assert kinds(Model(lambda m: ()), X, torch.randn(6, 8)) == ["self"]


def test_packed_projections_and_slices_of_tokens() -> None:
    packed = nn.Linear(E, 3 * E)

    def of_one(x: Tensor) -> Tensor:
        return S(*packed(x).unflatten(-1, (3, H, -1)).permute(2, 0, 3, 1, 4).unbind(0))

    def of_two_images(x: Tensor) -> Tensor:
        q, k, v = map(heads, packed(x).chunk(3, -1))
        return S(q[:1], k[1:], v[1:])

    def of_two_streams(x: Tensor, c: Tensor) -> Tensor:
        q, k, v = map(heads, torch.cat((packed(x), packed(c)), 1).chunk(3, -1))
        return S(q, k, v)

    def of_a_stack(x: Tensor, c: Tensor) -> Tensor:
        k = torch.stack((packed(x), packed(c)))[1]
        return S(heads(packed(x)), heads(k), heads(k))

    def of_a_part_of_both(x: Tensor, c: Tensor) -> Tensor:
        k = torch.cat((packed(x), packed(c)), 1)[:, 6:]
        return S(heads(packed(x)), heads(k), heads(k))

    assert kinds(of_one, X) == ["self"]
    assert kinds(of_a_stack, X, C) == ["unknown"]
    assert kinds(of_a_part_of_both, X, LONG) == ["unknown"]
    assert kinds(of_two_images, X) == ["unknown"]
    assert kinds(of_two_streams, X, LONG) == ["self"]  # joint attention: one sequence of both


def test_inputs_of_the_graph_itself() -> None:
    q, k = torch.randn(2, H, 6, 8), torch.randn(2, H, 9, 8)
    assert kinds(lambda q, k: S(q, k, k), q, k) == ["unknown"]
    assert kinds(lambda q: S(q, q, q), q) == ["self"]
    assert kinds(lambda x, k: S(heads(packed_q(x)), k, k), X, k) == ["unknown"]  # a cache of whom?


packed_q = nn.Linear(E, E)


def test_a_decode_step_with_a_cache_is_self_attention() -> None:
    class Joined(Projected):
        def forward(self, x: Tensor, cache: Tensor) -> Tensor:  # type: ignore[override]
            k = torch.cat((cache, heads(self.k(x))), 2)
            return S(heads(self.q(x)), k, k)

    class Written(Projected):
        def forward(self, x: Tensor, cache: Tensor, at: Tensor) -> Tensor:  # type: ignore[override]
            cache[:, :, at] = heads(self.k(x))
            return S(heads(self.q(x)), cache, cache)

    class OfAnother(Projected):
        def forward(self, x: Tensor, cache: Tensor, at: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
            cache[:, :, at] = heads(self.k(c))
            return S(heads(self.q(x)), cache, cache)

    cache, at = torch.zeros(2, H, 10, 8), torch.tensor([3])
    assert kinds(Joined(lambda m: ()), X[:, :1], cache) == ["self"]
    assert kinds(Written(lambda m: ()), X[:, :1], cache, at) == ["self"]
    assert kinds(OfAnother(lambda m: ()), X[:, :1], cache, at, C[:, :1]) == ["cross"]


@NOT_ON_2_9
def test_multi_head_attention() -> None:
    mha = nn.MultiheadAttention(E, H, batch_first=True)
    assert kinds(lambda x: mha(x, x, x, need_weights=False)[0], X) == ["self"]
    assert kinds(lambda x, c: mha(x, c, c, need_weights=False)[0], X, LONG) == ["cross"]
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(E, H, 48, batch_first=True), 2)
    assert kinds(decoder, X, LONG) == ["self", "cross"] * 2
    assert kinds(decoder.eval(), X, LONG) == ["self", "cross"] * 2
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 48, batch_first=True), 2)
    assert kinds(encoder.eval(), X) == ["self"] * 2


def test_nested_graphs() -> None:
    """Inside the body of a checkpoint, and behind it."""
    model = Projected(lambda m: ())

    def blocks(x: Tensor, c: Tensor) -> Tensor:
        for _ in range(2):
            x = x + checkpoint(lambda x, c: model.attend(x, x) + model.attend(x, c), x, c, use_reentrant=False)
        return x

    assert kinds(blocks, X, LONG) == ["self", "cross"] * 2
    assert kinds(lambda x: checkpoint(model.attend, x, x, use_reentrant=False), X) == ["self"]
    assert kinds(lambda x: checkpoint(model.attend, x, x + 1, use_reentrant=False), X) == ["unknown"]
    map_ = torch._higher_order_ops.map
    assert kinds(lambda x, c: map_(lambda x: model.attend(x, c), x[:, None]), X, LONG[:1]) == ["unknown"]
    assert kinds(lambda x, c: torch.cond(x.sum() > 0, model.attend, lambda x, c: x * 2, (x, c)), X, LONG) == ["cross"]


def test_a_body_that_runs_several_times_has_to_agree() -> None:
    model = Projected(lambda m: ())

    @torch.compiler.nested_compile_region
    def attend(x: Tensor, c: Tensor) -> Tensor:
        return model.attend(x, c)

    assert kinds(lambda x, c: attend(attend(x, c), c), X, C) == ["cross"]
    assert kinds(lambda x, c: attend(attend(x, c), x), X, C) == ["unknown"]


def test_dynamic_shapes() -> None:
    model = Projected(lambda m, x, c: (x + m.attend(m.n1(x), m.n1(x)), c))
    compiled = torch.compile(model, backend="attnpass", dynamic=True, options={"attnpass.compiler": "eager"})
    for length in (6, 11):
        compiled(torch.randn(3, length, E), LONG.repeat(2, 1, 1)[:3])
    assert [[d.call.kind.value for d in report.decisions] for report in attnpass.reports()] == [["self", "cross"]]


def test_exported_graphs() -> None:
    model = Projected(lambda m, x, c: (x + m.attend(m.n1(x), m.n2(x)), c))
    exported = torch.export.export(model, (X, C)).module()
    _, report = attnpass.rewrite(exported)
    assert [d.call.kind.value for d in report.decisions] == ["self", "cross"]


@pytest.mark.parametrize("attn", ("sdpa", "eager"))
@pytest.mark.parametrize("name", ("llama", "gpt2", "bert", "t5", "whisper"))
def test_models(name: str, attn: str) -> None:
    model, inputs = MODELS[name](attn)
    found = kinds(model, **inputs)
    decoder = ["self", "cross"] * 2 if name in ENCODER_DECODERS else []
    assert found == ["self"] * 2 + decoder
