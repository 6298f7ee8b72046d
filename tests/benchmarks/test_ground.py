"""`benchmarks.ground`: its models compute what they say, and its lines make tables. Numbers in lines are invented."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ground_tables, labels
from benchmarks.ground import ROWS, Candidate, Subject, measured
from benchmarks.ground_calls import Ground, shown
from benchmarks.ground_first import MODEL
from benchmarks.ground_written import LatentAttention, RelativeAttention, XAttention
from benchmarks.records import Source

FACTS = {"benchmark": "ground", "small": False, "date": "2026-11-29T01:00:00+00:00", "commit": "63a46d0aaaaa"}


def line(row: str, compiler: str, ms: float, **more: Any) -> dict[str, Any]:
    made = {"row": row, "group": ROWS[row].group, "compiler": compiler, "way": "whole", "ok": True, "ms": ms}
    made |= {"memory_mib": 100.0, "calls": {}, "eager_error": [0.004], "relative_error": [0.002]}
    return FACTS | made | more


def write(folder: Path, *lines: dict[str, Any]) -> Source:
    (folder / "ground_x.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    return Source("x", folder)


def test_every_row_has_a_label() -> None:
    assert set(labels.GROUND) == set(ROWS)
    assert MODEL in ROWS


def test_a_call_is_held_to_its_form_beside(tmp_path: Path) -> None:
    auto = line("causal_d128", "auto_pytorch_only", 0.8, memory_mib=40.0, calls={"flex (tensor)": 1})
    lines = line("causal_d128", "inductor", 1.6), line("causal_d128", "inductor", 0.5, way="fused"), auto
    small = {**line("causal_d128", "auto_pytorch_only", 9.0), "small": True}
    (row,) = ground_tables.ground(source=write(tmp_path, *lines, small)).rows
    wanted = ["1.600", "0.800", "2.00×", "1.60× fused (0.500)", "100 → 40", "1 × flex (tensor)"]
    assert row == [labels.GROUND["causal_d128"], *wanted, "2026-11-29 63a46d0"]


def test_a_model_by_layers_is_held_to_the_whole_of_it(tmp_path: Path) -> None:
    times = {("inductor", "layers"): 48.0, ("auto_pytorch_only", "layers"): 33.0, ("auto_pytorch_only", "whole"): 30.0}
    lines = [line("llama_left", compiler, ms, way=way) for (compiler, way), ms in times.items()]
    whole, layers = ground_tables.ground("regional", source=write(tmp_path, *lines)).rows
    assert whole[1:5] == ["not measured", "30.00", "–", "–"]
    assert layers[0].endswith("layer by layer")
    assert layers[1:5] == ["48.00", "33.00", "1.45×", "1.10× whole (30.00)"]


def test_only_the_groups_that_are_named_in_the_order_of_the_labels(tmp_path: Path) -> None:
    train = line("x_transformer_train", "auto_pytorch_only", 2.0, eager_error=[0.1, 0.2], relative_error=[0.3, 0.4])
    no_model = {**FACTS, "row": "swin", "group": "bias", "ok": False, "problem": "ModuleNotFoundError"}
    oom = {**FACTS, "row": "t5", "group": "bias", "compiler": "inductor", "way": "whole", "ok": False, "oom": True}
    lines = train, no_model, line("mla", "inductor", 1.0), oom, line("esm", "auto", 1.0)
    source = write(tmp_path, *lines)
    rows = ground_tables.ground("written", source=source).rows
    assert [row[0] for row in rows] == [labels.GROUND[name] for name in ("x_transformer_train", "esm", "mla")]
    assert rows[1][1:3] == ["not measured", "not measured"]
    assert [row[:2] for row in ground_tables.ground("bias", source=source).rows] == [[labels.GROUND["t5"], "OOM"]]
    assert ground_tables.ground("written", source=source, ours="auto").rows[1][2] == "1.000"


def test_first_calls_stand_by_their_caches(tmp_path: Path) -> None:
    seconds = {("inductor", "empty"): 12.0, ("auto_pytorch_only", "empty"): 18.0, ("inductor", "full"): 3.0}
    lines = [
        FACTS | {"row": "first_call", "group": "first_call", "compiler": compiler, "caches": caches, "seconds": each}
        for (compiler, caches), each in seconds.items()
    ]
    source = write(tmp_path, *lines)
    empty, full = ground_tables.first_calls(source).rows
    assert empty[:4] == ["empty", "12.0", "18.0", "1.50×"]
    assert full[:4] == ["full", "3.0", "–", "–"]
    assert ground_tables.ground(source=source).rows == []


def test_a_quarter_is_padding() -> None:
    right = shown(3, 8)
    assert right.sum(1).tolist() == [8, 6, 4]
    assert right[1].tolist() == [True] * 6 + [False] * 2
    assert torch.equal(shown(3, 8, left=True), right.flip(1))


def heads(x: Tensor, count: int) -> Tensor:
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("alibi", [False, True])
def test_x_attention_is_causal_with_alibi_or_without(alibi: bool) -> None:
    torch.manual_seed(0)
    module, x = XAttention(32, 4, alibi).double(), torch.randn(2, 7, 32, dtype=torch.float64)
    q, k, v = (heads(to(x), 4) for to in (module.to_q, module.to_k, module.to_v))
    i = torch.arange(7)
    slopes = torch.tensor([1 / 4, 1 / 16, 1 / 64, 1 / 256], dtype=torch.float64)[:, None, None]
    mask = torch.full((7, 7), -math.inf, dtype=torch.float64).triu(1)
    mask = mask - slopes * (i[:, None] - i[None]).abs() if alibi else mask
    wanted = module.to_out(joined(F.scaled_dot_product_attention(q, k, v, mask)))
    torch.testing.assert_close(module(x).float(), wanted.float())  # its softmax is in fp32


def test_the_distance_of_the_conformer_is_that_of_query_and_key() -> None:
    torch.manual_seed(0)
    B, S, H, E = 2, 5, 2, 16
    module = RelativeAttention(E, H).double()
    x, places = torch.randn(B, S, E, dtype=torch.float64), torch.randn(1, 2 * S - 1, E, dtype=torch.float64)
    mask = shown(B, S)[:, None]
    q, k, v, p = (heads(to(y), H) for to, y in ((module.q, x), (module.k, x), (module.v, x), (module.pos, places)))
    scale = (E // H) ** -0.5
    i = torch.arange(S)
    far = p[:, :, S - 1 - i[:, None] + i[None]]  # (1, H, S, S, D): the place S - 1 is that of the query itself
    bias = ((q + module.bias_v[:, None])[:, :, :, None] * far).sum(-1) * scale
    bias = bias.masked_fill(~mask[:, None], -math.inf)
    wanted = module.out(joined(F.scaled_dot_product_attention(q + module.bias_u[:, None], k, v, bias)))
    torch.testing.assert_close(module(x, places, mask), wanted)


def test_latent_attention_is_attention_on_joined_parts() -> None:
    torch.manual_seed(0)
    module, x = LatentAttention(32, 2, 8, 4).double(), torch.randn(2, 7, 32, dtype=torch.float64)
    q = heads(module.wq(x), 2)
    kv, k_pe = module.wkv_a(x).split([32, 4], dim=-1)
    k_nope, v = heads(module.wkv_b(module.norm(kv)), 2).chunk(2, dim=-1)
    k = torch.cat([k_nope, k_pe[:, None].expand(-1, 2, -1, -1)], dim=-1)
    wanted = module.wo(joined(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
    torch.testing.assert_close(module(x).float(), wanted.float())  # its softmax is in fp32


def test_softcap_and_its_form_beside_differ() -> None:
    row = ROWS["softcap_d128"]
    model, inputs = row.built("cpu", True)
    beside, _ = row.built("cpu", True, form=row.beside)
    exact = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    q, k, v = (exact[name] for name in "qkv")
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = torch.tanh(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 / 50) * 50
    wanted = (scores + torch.full_like(scores, -math.inf).triu(1)).softmax(-1) @ v
    torch.testing.assert_close(model(**exact).float(), wanted.float())
    assert not torch.equal(beside(**exact), model(**exact))


def test_a_line_for_each_candidate_and_the_form_beside() -> None:
    row = ROWS["causal_d64"]
    found = {(r["compiler"], r["way"]): r for r in measured(row, [Candidate("inductor"), Candidate("no")], "cpu", True)}
    assert list(found) == [("inductor", "whole"), ("no", "whole"), ("inductor", "fused")]
    plain, unknown, beside = found.values()
    assert plain["relative_error"] <= [2 * plain["eager_error"][0]]
    assert "UnknownKernelError" in unknown["problem"]
    assert "ms" not in unknown
    assert beside["ms"] > 0
    assert "relative_error" not in beside


def test_training_compares_gradients_too() -> None:
    row = Ground("written", ROWS["x_transformer"].build, train=True)
    model, inputs = row.build("cpu", shape=(1, 4, 8), layers=1, heads=2)
    subject = Subject(row, model.bfloat16(), inputs)
    out, *grads = subject.result(model)
    assert out.shape == (1, 4, 8)
    assert len(grads) == len(list(model.parameters()))
    assert all(grad.abs().sum() > 0 for grad in grads)
