"""How the zoo makes the models of transformers small, and what it calls them with."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.records import Source
from benchmarks.zoo import summary
from benchmarks.zoo.run import until
from benchmarks.zoo.stranger import Stranger
from benchmarks.zoo.strangers.transformers_configs import Way
from benchmarks.zoo.strangers.transformers_models import ATTENTION, PACKAGE, NotBuiltError, build, kind

LARGE = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 6,
    "layer_types": ["sliding", "sliding", "full", "sliding", "sliding", "full"],
    "vocab_size": 150000,
    "attention_dropout": 0.1,
}


def shrunk(**changed: Any) -> dict[str, Any]:
    return Way("scaled", image=64).shrunk(LARGE | changed)


def test_a_head_keeps_its_width() -> None:
    made = shrunk()
    assert made["hidden_size"] < LARGE["hidden_size"]
    assert made["hidden_size"] // made["num_attention_heads"] == 128
    assert made["num_attention_heads"] % made["num_key_value_heads"] == 0
    assert made["attention_dropout"] == 0


@pytest.mark.parametrize("heads", [12, 20, 28])
def test_heads_that_are_no_power_of_two_keep_their_width(heads: int) -> None:
    made = shrunk(num_attention_heads=heads, hidden_size=heads * 64, num_key_value_heads=4)
    assert made["hidden_size"] == made["num_attention_heads"] * 64


def test_a_layer_of_each_kind_is_left() -> None:
    made = shrunk()
    assert made["layer_types"] == ["sliding", "full"]
    assert made["num_hidden_layers"] == 2


def test_special_words_stay_apart_and_the_same_everywhere() -> None:
    made = shrunk(
        image_token_id=90001, video_token_id=90002, text_config={"image_token_id": 90001, "vocab_size": 91000}
    )
    ids = {made["image_token_id"], made["video_token_id"]}
    assert len(ids) == 2
    assert max(ids) < made["vocab_size"]
    assert made["text_config"]["image_token_id"] == made["image_token_id"]


def test_images_hold_whole_patches() -> None:
    made = shrunk(vision_config={"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_attention_heads": 12})
    assert made["vision_config"]["image_size"] == 112


@pytest.mark.parametrize(
    ("model_type", "inputs"),
    [
        ("bert", {"input_ids"}),
        ("t5", {"input_ids", "decoder_input_ids"}),
        ("vit", {"pixel_values"}),
        ("whisper", {"input_features", "decoder_input_ids"}),
        ("llava", {"input_ids", "pixel_values"}),
    ],
)
def test_built(model_type: str, inputs: set[str]) -> None:
    pytest.importorskip("transformers")
    ready = build(model_type, "sdpa")
    assert inputs <= set(ready.kwargs)
    with torch.no_grad():
        ready()


def test_what_cannot_be_built_says_why() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(NotBuiltError, match=f"^{ATTENTION}: "):
        build("mra", "sdpa")
    assert kind(ImportError("X requires the timm library but it was not found")) == PACKAGE


def test_nothing_begins_after_the_end() -> None:
    some = [Stranger("a", "b", lambda: build("bert", "sdpa"))] * 3
    assert list(until(time.monotonic() + 1e6, some)) == some
    assert list(until(time.monotonic(), some)) == []


def test_the_table_has_a_row_for_each_attention(tmp_path: Path) -> None:
    ran = {"eager": 4, "captured": 4, "found": 3, "rewritten": 3, "wrong": [], "near_misses": {"`clamp` changes": 1}}
    shared = {"benchmark": "zoo_transformers", "package": "transformers", "date": "2026-11-29", "commit": "abcdef0"}
    lines: list[dict[str, Any]] = [{"what": "x, sdpa", **ran}, {"what": "y, sdpa", "problem": "no such attention"}]
    lines += [{"what": "x, eager", **ran, "found": 4, "rewritten": 4, "near_misses": {}}]
    text = "".join(json.dumps({**shared, **line}) + "\n" for line in lines)
    (tmp_path / "zoo_transformers_cpu.jsonl").write_text(text)
    source = Source("cpu", tmp_path)
    sdpa, eager = summary.transformers(source).rows
    assert sdpa[:10] == ["sdpa", "2", "1", "1", "4", "0", "3", "3", "0", "1"]
    assert eager[:10] == ["eager", "1", "1", "1", "4", "0", "4", "4", "0", "0"]
    assert summary.missed(source, summary.TRANSFORMERS).rows == [["transformers ", "`clamp` changes", "1"]]
