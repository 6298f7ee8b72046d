"""What a call is timed by, and how the times are judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec
from attnpass.kernels.registry import registry
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.trials.clock import Timing, in_turns
from attnpass.trials.example import Example
from attnpass.trials.signature import signature, text_of
from attnpass.trials.tuner import Candidate, cost_measured, judged, promising
from tests.trials.test_tuner import CPU, causal, make_call


class TestJudgement:
    def test_of_equals_the_first_in_order_wins(self) -> None:
        ms = {"flash4": 1.0, "native_cudnn": 1.009, "flex": 1.5}
        assert judged(["native_cudnn", "flash4", "flex"], ms, {}).winner == "native_cudnn"
        assert judged(["native_cudnn", "flash4", "flex"], {**ms, "native_cudnn": 1.02}, {}).winner == "flash4"
        assert list(judged(["native_cudnn", "flash4", "flex"], ms, {}).ms) == ["flash4", "native_cudnn", "flex"]

    def test_the_host_counts_as_the_table_knows_it(self) -> None:
        call = make_call(device=torch.device("cuda", 0), dtype=torch.bfloat16)
        slow_host = Timing(device_ms=0.01, host_ms=5.0)
        h100 = KNOWN_MACHINES["h100"]
        assert 0.01 < cost_measured("native_cudnn", slow_host, call, h100) < 0.1
        assert cost_measured("native_cudnn", slow_host, call, KNOWN_MACHINES["a100"]) < 0.1  # no other launch there
        assert cost_measured("xformers", slow_host, call, h100) == 5.0
        training = replace(call, needs_grad=True)
        assert cost_measured("xformers", slow_host, training, h100) == 0.01

    def test_the_table_rules_out_what_is_hopeless(self) -> None:
        shape, stride = (4, 16, 4096, 128), (16 * 4096 * 128, 128, 16 * 128, 1)
        x = TensorSpec(shape, stride, torch.bfloat16, torch.device("cuda", 0))
        call = AttentionCall(q=x, k=x, v=x, out=x)
        some = [
            Candidate(registry()[name]) for name in ("native_cudnn", "native_flash", "native_efficient", "xformers")
        ]
        kept = [c.kernel.name for c in promising(call, some, KNOWN_MACHINES["h100"])]
        assert "native_cudnn" in kept and "native_efficient" not in kept
        assert "xformers" in kept  # nothing is known of it
        assert len(promising(call, some, KNOWN_MACHINES["a100"])) == len(some)


class TestSignature:
    def test_where_a_call_stands_does_not_matter(self) -> None:
        call = make_call()
        assert signature(replace(call, module="a.b", node="x", scale=0.3)) == signature(replace(call, scale=0.5))
        assert text_of(signature(call) or call) != text_of(signature(make_call(128)) or call)

    def test_symbolic_lengths_are_rounded_up_to_a_power_of_two(self) -> None:
        seen: list[AttentionCall] = []

        def look(gm: torch.fx.GraphModule, _: object) -> object:
            from attnpass.find.find import find

            seen.extend(found.call for found in find(gm).calls)
            return gm.forward

        def attention(x: Tensor) -> Tensor:
            return causal(x.transpose(1, 2), x.transpose(1, 2), x.transpose(1, 2))

        torch.compile(attention, backend=look, dynamic=True)(torch.randn(2, 100, 4, 16))
        made = signature(seen[0])
        assert made is not None
        assert made.q.shape[2] == 128 and all(isinstance(size, int) for size in (*made.q.shape, *made.q.stride))
        order = sorted(range(4), key=lambda dim: made.q.stride[dim])
        assert order == [3, 1, 2, 0]  # still stored as (B, S, H, D)

    def test_expanded_operands_stay_expanded(self) -> None:
        x = TensorSpec((2, 4, 64, 16), (0, 16, 64, 1), torch.float32, CPU)
        made = Example(signature(AttentionCall(q=x, k=x, v=x, out=x)) or make_call())
        assert made.tensors["q"].stride() == (0, 16, 64, 1)


def test_the_clock_gives_every_step_a_turn() -> None:
    runs: list[str] = []
    timings = in_turns({name: (lambda name=name: runs.append(name)) for name in "ab"}, CPU)  # type: ignore[misc]
    assert set(timings) == {"a", "b"} and runs.count("a") > 10
    late = in_turns({"a": lambda: None, "b": lambda: None}, CPU, seconds=0.0)
    assert set(late) == {"a", "b"}, "a step without a round has no time"


@pytest.mark.parametrize(
    ("queries", "rows", "keys", "last"),
    [(20, 20, 20, 19), (20, 1, 9, 8), (64, 32, 64, 63), (64, 64, 32, 31), (1, 1, 64, 32), (4, 1, 64, 32), (1, 1, 1, 1)],
)
def test_a_bool_mask_is_timed_as_models_make_them(queries: int, rows: int, keys: int, last: int) -> None:
    """Causal where each query has a row, counted from the end; padding of one key; a cache that is half full."""
    x = TensorSpec((2, 4, queries, 16), (4 * queries * 16, queries * 16, 16, 1), torch.float32, CPU)
    kv = replace(x, shape=(2, 4, keys, 16), stride=(4 * keys * 16, keys * 16, 16, 1))
    mask = TensorSpec((2, 4, rows, keys), (0, 0, keys, 1), torch.bool, CPU)
    made = Example(AttentionCall(q=x, k=kv, v=kv, out=x, mask=MaskSpec.from_tensor(mask))).tensors["mask"]
    assert made.stride()[:2] == (0, 0)
    for q in range(rows):
        behind = q + keys - rows if rows > 1 else keys
        assert made[1, 3, q].tolist() == [k == 0 or (k <= behind and k < last) for k in range(keys)]
