"""The cost table: its features against counting by hand, its orders, and that the committed one fits its data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnpass.graph.tensor import TensorSpec
from attnpass.ir.call import AttentionCall
from attnpass.ir.mask import MaskSpec, MaskTerm, Term
from attnpass.machine.known import KNOWN_MACHINES
from attnpass.select import auto as preference
from attnpass.select import costs
from attnpass.select.auto import auto_order
from attnpass.select.costs import TILE, Features, features, host_ms, predicted_ms, seen_share
from benchmarks import fit, regret
from benchmarks.records import Source
from benchmarks.sets import MODELS, SETS
from benchmarks.shapes import Shape

H100 = KNOWN_MACHINES["h100"]
CUDA = torch.device("cuda", 0)
EVERYTHING = replace(
    H100, versions={**H100.versions, "flash-attn": "2.8.3", "flash-attn-3": "3.0.0", "flash-attn-4": "4.0.0b36"}
)


def call(S: int, D: int = 128, mask: MaskSpec | None = None, **more: object) -> AttentionCall:
    x = TensorSpec((4, 16, S, D), (S * 16 * D, D, 16 * D, 1), torch.bfloat16, CUDA)
    return AttentionCall(q=x, k=x, v=x, out=x, mask=mask or MaskSpec(), **more)  # type: ignore[arg-type]


@given(
    Sq=st.integers(1, 700),
    Sk=st.integers(1, 700),
    offset=st.integers(-300, 300),
    left=st.none() | st.integers(0, 400),
    right=st.none() | st.integers(0, 400),
    causal=st.booleans(),
)
def test_the_share_that_is_seen_is_that_of_the_touched_tiles(
    Sq: int, Sk: int, offset: int, left: int | None, right: int | None, causal: bool
) -> None:
    terms = [MaskTerm(Term.WINDOW, offset, left, right)] if (left, right) != (None, None) else []
    terms += [MaskTerm(Term.CAUSAL, offset)] if causal else []
    mask = MaskSpec(tuple(terms))
    seen = mask.seen(Sq, Sk, torch.device("cpu"))
    tiles = [tile.any() for rows in seen.split(TILE) for tile in rows.split(TILE, 1)]
    share = sum(map(bool, tiles)) / len(tiles)
    assert seen_share(mask, Sq, Sk) == pytest.approx(share if terms else 1.0)


def test_terms_by_hand() -> None:
    full = Features((1, 33, 33, 512, 1024, 64))  # 132 rows of 8 tiles: one wave
    assert full.terms(132)[:3] == (1.0, 8.0, 1.0)
    assert Features((1, 34, 34, 512, 1024, 64)).terms(132)[1:3] == (16.0, 2.0)  # four rows more cost a second one
    causal = Features((1, 33, 33, 1024, 1024, 64), "causal", seen=36 / 64)
    assert causal.terms(132)[1] == pytest.approx(max(264 * 4.5 / 132, 8.0))  # the longest row has all 8 tiles
    elements = 2 * 33 * 512 * 64 + 2 * 33 * 1024 * 64
    assert full.terms(132)[3] == pytest.approx(2 * elements / 1e9)
    decode = Features((2, 32, 8, 1, 4096, 128), "decode")
    assert decode.terms(132)[2] == 1.0 and decode.terms(132)[3] > 0.03  # 2 x 8 rows, and all of K and V


def test_kinds_of_masks() -> None:
    def kind(mask: MaskSpec, spelled: bool = False) -> str:
        found = features(call(1024, mask=mask), spelled)
        assert found is not None
        return found.mask

    row = TensorSpec((4, 1, 1, 1024), (1024, 1024, 1024, 1), torch.bool, CUDA)
    square = TensorSpec((4, 1, 1024, 1024), (1024**2, 1024**2, 1024, 1), torch.bool, CUDA)
    assert kind(MaskSpec()) == "none" and kind(MaskSpec.causal()) == "causal"
    assert kind(MaskSpec.from_tensor(row)) == "row" and kind(MaskSpec.from_tensor(square)) == "tensor"
    padded = MaskSpec((MaskTerm(Term.CAUSAL), MaskTerm(Term.KEY_PADDING)), rows_may_be_empty=True, spelled=square)
    assert kind(padded) == "causal" and kind(padded, spelled=True) == "tensor"
    decode = features(replace(call(1024), q=replace(call(1024).q, shape=(4, 16, 1, 128))))
    assert decode is not None and decode.mask == "decode"


def test_nothing_is_known_of_other_machines_and_kernels() -> None:
    numbers = features(call(1024))
    assert numbers is not None
    assert predicted_ms("native_cudnn", numbers, KNOWN_MACHINES["a100"]) is None
    assert predicted_ms("xformers", numbers, H100) is None
    assert host_ms("native_cudnn", numbers, KNOWN_MACHINES["a100"]) == host_ms("native_cudnn", numbers, H100) > 0
    assert host_ms("xformers", numbers, H100) == host_ms("native_cudnn", numbers, KNOWN_MACHINES["cpu"]) == 0.0


def test_launches_that_a_cuda_graph_replays_cost_nothing() -> None:
    small = features(call(256))
    assert small is not None
    replayed = replace(H100, cuda_graphs=True)
    alone, graphed = (predicted_ms("native_cudnn", small, machine) for machine in (H100, replayed))
    assert alone == host_ms("native_cudnn", small, H100) and graphed is not None and 0 < graphed < alone
    assert auto_order(H100, call(256))[0] != "native_cudnn" == auto_order(replayed, call(256))[0]


def test_longer_calls_cost_more_on_every_curve() -> None:
    for kernel in costs.table()["sm_90"]["curves"]:
        for train in (False, True):
            for mask in (MaskSpec(), MaskSpec.causal()):
                found = [features(call(S, 64, mask, needs_grad=train)) for S in (512, 2048, 8192)]
                times = [predicted_ms(kernel, one, H100) for one in found if one is not None]
                known = [time for time in times if time is not None]
                assert known == sorted(known) and (not known or known[-1] > 2 * known[0]), (kernel, train, mask)


@pytest.mark.parametrize(
    ("one", "first"),
    [
        (call(4096, mask=MaskSpec.causal()), "flash3"),
        (call(8192, D=256), "flash3"),
        (call(4096, needs_grad=True, mask=MaskSpec.causal()), "flash4"),
        (call(4096, D=256, needs_grad=True), "native_cudnn"),
        (call(1024, D=64), "native_cudnn"),
    ],
)
def test_with_libraries_the_measured_winner_is_first(one: AttentionCall, first: str) -> None:
    order = auto_order(EVERYTHING, one)
    # flash3's builds have no backward: it is refused there, and the next is asked
    assert next(name for name in order if not (one.needs_grad and name == "flash3")) == first
    assert "flex" not in order and auto_order(H100, one)[0].startswith("native_")


def test_what_is_within_the_noise_goes_to_the_simpler_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for far, first in ((1.02, "native_cudnn"), (1.05, "flash4")):
        times = {"native_cudnn": far, "flash4": 1.0, "native_flash": 2.0}
        monkeypatch.setattr(costs, "predicted_ms", lambda name, *_, times=times: times.get(name))
        assert auto_order(EVERYTHING, call(4096))[0] == first


def test_fp32_and_unknown_machines_have_the_order_of_pytorch() -> None:
    x = replace(call(4096).q, dtype=torch.float32)
    assert auto_order(EVERYTHING, AttentionCall(q=x, k=x, v=x, out=x)) == preference.HOPPER_AND_DATACENTER_BLACKWELL
    assert auto_order(KNOWN_MACHINES["a100"], call(4096)) == preference.OTHER_NVIDIA


def test_a_fit_finds_the_curve_that_made_its_data_and_ignores_a_disturbed_line() -> None:
    shapes = [Shape((b, 16, 16, s, s, 64)) for b in (1, 4) for s in (256, 512, 1024, 2048, 4096)]
    points = []
    for shape in shapes:
        numbers = features(shape.call(False, CUDA))
        assert numbers is not None
        start, tile, *_ = numbers.terms(132)
        points.append((numbers, 0.01 * start + 0.003 * tile))
    points[3] = (points[3][0], points[3][1] * 9)
    curve, errors = fit.fit(points, 132)
    assert curve == {"start": pytest.approx(0.01, rel=0.02), "tile": pytest.approx(0.003, rel=0.02)}
    assert sorted(map(abs, errors))[-2] < 0.05


def test_the_committed_table_is_the_fit_of_the_committed_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same predictions, not the same digits: another machine's linear algebra rounds elsewhere."""
    lines = [line for of in fit.by_machine(fit.everything()).values() for line in of]
    made = {name: fit.fit_machine(name, of) for name, of in fit.by_machine(lines).items()}

    def predictions() -> list[float]:
        calls = [
            (line["kernel"], SETS[line["set"]][line["shape"]].call(line["step"] == "train", CUDA)) for line in lines
        ]
        found = [predicted_ms(kernel, numbers, H100) for kernel, one in calls if (numbers := features(one))]
        return [ms for ms in found if ms is not None]

    committed = predictions()
    monkeypatch.setattr(costs, "table", lambda: made)
    ratios = [new / old for new, old in zip(predictions(), committed, strict=True)]
    assert len(ratios) > 1000
    assert sum(abs(ratio - 1) <= 0.02 for ratio in ratios) >= 0.98 * len(ratios)


def test_held_out_calls_are_not_fitted() -> None:
    held_out = {str(shape) for which in fit.JUDGED for shape in SETS[which].values()}
    fitted = [line for lines in fit.by_machine(fit.everything()).values() for line in lines]
    assert len(held_out) >= 150 and fitted
    assert not held_out & {str(SETS[line["set"]][line["shape"]]) for line in fitted}
    assert not held_out & {str(shape) for shape in MODELS.values()}


@pytest.mark.parametrize("pytorch_only", (False, True))
def test_auto_is_near_the_best_on_calls_that_the_fit_has_not_seen(pytorch_only: bool) -> None:
    lines = [line for line in fit.measured(Source()) if line["set"] == "held_out"]
    ratios = [one["ratio"] for one in regret.regrets(lines, pytorch_only)]
    assert len(ratios) >= 60
    assert sum(ratio <= 1.10 for ratio in ratios) >= 0.9 * len(ratios), regret.summary(ratios)


@pytest.mark.parametrize(
    ("queries", "kernel", "same"), [(1, "native_cudnn", True), (4, "native_cudnn", False), (4, "flex", True)]
)
def test_several_queries_are_decoding_only_for_who_packs_them(queries: int, kernel: str, same: bool) -> None:
    padded = Features((8, 32, 8, queries, 16384, 64), "decode_row", read=8 * 16384)
    assert (costs.as_computed(padded, kernel) == padded) is same
    assert same or costs.as_computed(padded, kernel).mask == "row"


def test_beyond_the_largest_head_dim_that_was_measured_work_grows_as_it_does() -> None:
    curves = costs.table()["sm_90"]["curves"]["native_cudnn"]["forward"]["tensor"]
    largest = max(map(int, curves))
    wide = Features((2, 16, 16, 4096, 4096, 256), "tensor", read=2 * 4096 * 4096)
    curve = costs._curve({"tensor": curves}, wide)
    assert largest < 256 and curve == {name: x * 256 / largest for name, x in curves[str(largest)].items()}
