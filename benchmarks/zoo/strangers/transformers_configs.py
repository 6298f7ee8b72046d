"""A configuration of transformers made small, by the names of its fields.

No rule fits every model, so there are a few ways, and the first with which a model runs is taken. All cut the words and
the experts, and most the depth. They differ in the widths, which hang together in more ways than any table knows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.zoo.strangers.transformers_fields import (
    ALWAYS,
    AREAS,
    CHOSEN,
    DEPTH,
    DROPOUT,
    EXPERTS,
    HEADS,
    IMAGES,
    KEPT,
    LONGEST,
    MARKS,
    NOT_DEPTH,
    NOT_GIVEN,
    ONE,
    PLACES,
    SCALED,
    SMALL,
    SPECIAL,
    STAGES,
    UNSET,
    WIDE,
    WORD,
    WORDS,
)

WIDTH, IMAGE = 256, 64


@dataclass
class Way:
    """How a configuration is made small.

    Attributes:
        widths: "scaled" divides all by one power of two, heads too, and keeps the width of a head; "fixed" sets those
            of `FIXED`; "kept" leaves them.
        layers: how many are left; 0 for as many as there are.
        image: the least side of an image, 0 for the default.
        mended: what is None and may not be is filled in, and rotary sections fit the heads.
    """

    widths: str
    layers: int = 2
    image: int = 0
    mended: bool = False
    factor: int = field(default=1, init=False)
    ratio: int = field(default=1, init=False)
    words: dict[int, int] = field(default_factory=dict, init=False)

    def shrunk(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values of a configuration, and of those within it."""
        numbers = list(leaves(values))
        widest = max((size for name, size in numbers if WIDE.fullmatch(name)), default=WIDTH)
        if self.widths == "scaled":
            factor = 2 ** max(0, round(math.log2(widest / WIDTH)))
            common = math.gcd(factor, *[size for name, size in numbers if HEADS.fullmatch(name) and "key" not in name])
            self.factor = max(common, factor // 4)
        self.ratio = self._ratio(dict(reversed(numbers))) if self.image else 1
        made = self._part(values)
        made.pop("model_type", None)
        fit(made)
        return mended(made) if self.mended else made

    def _ratio(self, numbers: Mapping[str, int]) -> int:
        """By how much images are smaller: the patches still fit."""
        side, patch = numbers.get("image_size", 0), numbers.get("patch_size", 16)
        ratios = (2**n for n in range(7, 0, -1))
        return next((r for r in ratios if side % (r * patch) == 0 and side // r >= self.image), 1)

    def _part(self, values: Mapping[str, Any]) -> dict[str, Any]:
        depth = next((v for k, v in values.items() if _counts(k, v)), 0)
        left = self._left(values, depth)
        made = {}
        for name, value in values.items():
            if not isinstance(name, str):
                if not (isinstance(name, int) and left and name >= len(left)):
                    made[name] = value
            elif isinstance(value, dict):
                if left and value and all(str(key).isdigit() for key in value):
                    value = {str(n): value[key] for n, place in enumerate(left) for key in value if int(key) == place}
                if name not in NOT_GIVEN:
                    made[name] = self._part(resnet(value))
            elif name not in NOT_GIVEN:
                made[name] = self._of_layers(name, value, depth, left) if left else self._value(name, value)
        return made | SPECIAL.get(str(values.get("model_type")), {})

    def _left(self, values: Mapping[str, Any], depth: int) -> list[int]:
        """The places of the layers that are left: the first of each kind, or the first few, and at least `layers`."""
        if not self.layers or depth <= self.layers:
            return []
        lists = [v for v in values.values() if isinstance(v, (list, tuple)) and len(v) == depth]
        kinds = list(zip(*[v for v in lists if isinstance(v[0], str)], strict=True)) or [()] * depth
        firsts = [place for place, kind in enumerate(kinds) if kinds[:place].count(kind) < self.layers // 2]
        others = [place for place in range(depth) if place not in firsts]
        return sorted(firsts + others[: max(0, self.layers - len(firsts))])

    def _of_layers(self, name: str, value: Any, depth: int, left: list[int]) -> Any:
        if isinstance(value, (list, tuple)) and len(value) == depth and name != "out_indices":
            if PLACES.fullmatch(name) and all(isinstance(v, int) for v in value) and max(value) == depth - 1:
                return list(range(len(left)))
            return [self._value(name, value[place]) for place in left]
        if _counts(name, value):
            return min(value, len(left))
        if name == "out_features" and isinstance(value, (list, tuple)):
            return None
        if isinstance(value, (list, tuple)) and PLACES.fullmatch(name) and all(type(v) is int for v in value):
            return sorted({min(v, len(left) - 1) for v in value})
        return self._value(name, value)

    def _value(self, name: str, value: Any) -> Any:
        if name in ALWAYS:
            return ALWAYS[name]
        if isinstance(value, (list, tuple)):
            if STAGES.fullmatch(name):
                return [min(v, 2) if isinstance(v, int) else v for v in value]
            return [self._value(name, v) for v in value]
        if value is None and MARKS.fullmatch(name):
            return WORDS - 30 - "iav".index(name[0])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return value
        if DROPOUT.fullmatch(name):
            return type(value)(0)
        return self._count(name, value) if isinstance(value, int) and value > 0 else value

    def _count(self, name: str, value: int) -> int:
        if WORD.fullmatch(name):
            return value if value < 4 else self.words.setdefault(value, WORDS - 1 - len(self.words))
        if "vocab" in name:
            return min(value, WORDS)
        if EXPERTS.fullmatch(name) or CHOSEN.fullmatch(name):
            return min(value, 4 if EXPERTS.fullmatch(name) else 2)
        if name in ONE:
            return 1
        if name in LONGEST:
            return min(value, LONGEST[name])
        if name.endswith(("_period", "_interval", "layer_offset")) and "rope" not in name:
            return min(value, 1 if name.endswith("offset") else 2)
        if IMAGES.fullmatch(name):
            return value // math.gcd(value, self.ratio)
        if AREAS.fullmatch(name):
            return value // math.gcd(value, self.ratio**2)
        if _counts(name, value):
            return min(value, self.layers or value)
        return self._width(name, value)

    def _width(self, name: str, value: int) -> int:
        if self.widths == "fixed":
            return min(value, SMALL.get(name, value))
        if HEADS.fullmatch(name):
            return value // math.gcd(value, self.factor)
        if SCALED.fullmatch(name) and not KEPT.fullmatch(name) and value >= 16:
            size = value // math.gcd(value, self.factor)
            return -(-size // 4) * 4  # grouped products want rows of 16 bytes
        return value


def leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every number of a configuration by its name, those in lists and in configurations within it too."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value)
        elif isinstance(name, str):
            yield from ((name, v) for v in (value if isinstance(value, (list, tuple)) else [value]) if type(v) is int)


def _counts(name: object, value: object) -> bool:
    """Is it a number of layers?"""
    return (
        isinstance(name, str) and type(value) is int and bool(DEPTH.fullmatch(name)) and not NOT_DEPTH.fullmatch(name)
    )


def fit(values: dict[str, Any]) -> None:
    """Rows of images as wide as words: not all defaults have that."""
    text, vision = values.get("text_config"), values.get("vision_config")
    if isinstance(text, dict) and isinstance(vision, dict) and "hidden_size" in text:
        for name in ("out_hidden_size", *(["hidden_size"] if "embed_dim" in vision else [])):
            vision |= {name: text["hidden_size"]} if name in vision else {}


def resnet(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """In the place of a backbone of timm, which nobody has to install for the attention behind it."""
    if values.get("model_type") != "timm_backbone":
        return values
    stages = [f"stage{n}" for n in range(1, 5)][-len(values.get("out_indices") or [4]) :]
    return {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [16, 32, 64, 128], "out_features": stages}


def mended(values: dict[str, Any]) -> dict[str, Any]:
    """With numbers where the default of a few is None, in all parts."""
    made = {k: mended(v) if isinstance(v, dict) and k != "rope_parameters" else v for k, v in values.items()}
    width = next((made[k] for k in ("hidden_size", "d_model") if type(made.get(k)) is int), 0)
    heads = made.get("num_attention_heads")
    if not width or type(heads) is not int:
        return made
    usual = {**UNSET, "num_key_value_heads": heads, "head_dim": width // heads}
    made |= {name: usual[name] for name, value in made.items() if value is None and name in usual}
    rope = made.get("rope_parameters")
    if isinstance(rope, dict) and ("rope_theta" in rope or not rope):
        half = int((made.get("head_dim") or width // heads) * rope.get("partial_rotary_factor", 1)) // 2
        section = [half - 2 * (half // 3), half // 3, half // 3]
        made["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, **rope, "mrope_section": section}
    return made


def ways() -> Iterator[Way]:
    """New ones each time: they remember the special words."""
    yield Way("scaled", image=IMAGE)
    yield Way("scaled", image=IMAGE, mended=True)
    yield Way("fixed", image=IMAGE)
    yield Way("fixed", image=IMAGE, mended=True)
    yield Way("scaled")
    yield Way("kept", image=IMAGE)
    yield Way("scaled", layers=4, image=IMAGE)
    yield Way("scaled", layers=0, image=IMAGE)
    yield Way("scaled", layers=0)
    yield Way("kept", layers=0)
