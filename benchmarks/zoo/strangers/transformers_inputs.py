"""What a model of transformers is called with, by the names of its arguments and of its configuration's fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.strangers.transformers_fields import ORDINARY, WORDS

B, LENGTH, PATCHES, FRAMES, SOUND = 2, 24, 4, 2, 3840
LISTED = ("spatial_shapes", "pixel_position_ids")
KINDS = ("image", "video", "audio")
BANDS = ("feature_projection_input_dim", "num_mel_bins", "feature_size", "input_feat_size", "input_dim", "input_size")
GRIDS = ("grid_thw", "image_grid_thw", "image_grid_hws", "grid_hw")


class Inputs:
    """Makes them.

    Attributes:
        turn: which of the usual shapes of an argument is taken. Images are B,C,H,W, or B,T,C,H,W; patches N,C*P*P, or
            N,C,P,P, or 1,N,C,P,P; sounds B,bands,T, or B,T,bands.
    """

    def __init__(self, model: Any, config: Any, turn: int) -> None:
        self.model, self.config, self.turn = model, config, turn
        self.takes = takes(model)
        longest = self.field("max_position_embeddings", default=LENGTH, part="text")
        self.length = min(LENGTH, longest) if longest > 0 else LENGTH

    def given(self, wanted: str) -> dict[str, Any]:
        """The arguments: "all" that are known, those that "most" models want, the "main" ones, or what is "needed"."""
        main = self.model.main_input_name
        main = [main] if isinstance(main, str) else list(main)
        needed = [n for n, p in self.takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if wanted in ("all", "most"):
            left_out = NOT_ALWAYS if wanted == "most" else ()
            names = [n for n in self.takes if n in needed or (n in MAKERS and n not in (*ONLY_NEEDED, *left_out))]
        else:
            names = [
                *needed,
                *(n for n in [*main, *BESIDE] if n in self.takes and n not in needed and wanted == "main"),
            ]
        made: dict[str, Any] = {}
        for name in names:
            if name in MAKERS and (name != "attention_mask" or "input_ids" in made or name in needed):
                made[name] = MAKERS[name](self)
        return self._with_images(made) if wanted in ("all", "most") else made

    def field(self, *names: str, default: Any = None, part: str = "") -> Any:
        """The first field that has one of the names, in the part of the configuration first that is called so."""
        parts = sorted(configs(self.config), key=lambda one: part not in one[0])
        for name in names:
            for _, config in parts:
                value = getattr(config, name, None)
                if value is not None and not callable(value):
                    return value
        return default

    def words(self, length: int = 0) -> Tensor:
        most = self.field("vocab_size", "text_vocab_size", default=WORDS, part="text")
        books = self.field("num_codebooks")
        shape = (B, length or self.length, *([books + 2 - self.turn] if books and self.turn else []))
        return torch.randint(4, max(5, min(int(most), ORDINARY)), shape)

    def embedded(self) -> Tensor:
        return torch.randn(B, self.length, int(self.field("hidden_size", "d_model", default=64, part="text")))

    def side(self) -> tuple[int, int]:
        size = self.field("image_size", "img_size", "crop_size", default=64, part="vision")
        if isinstance(size, Mapping):
            size = (size.get("height", 64), size.get("width", 64))
        return (int(size[-2]), int(size[-1])) if isinstance(size, (list, tuple)) else (int(size), int(size))

    def channels(self) -> int:
        return int(self.field("num_channels", "in_channels", "in_chans", default=3, part="vision"))

    def picture(self) -> Tensor:
        if any(name in self.takes for name in (*GRIDS, *LISTED)):
            return self.patches()
        frames = int(self.field("num_frames", default=FRAMES, part="vision"))
        return torch.randn(B, *([frames] if self.turn else []), self.channels(), *self.side())

    def video(self) -> Tensor:
        if "video_grid_thw" in self.takes:
            return self.patches()
        return torch.randn(
            B, int(self.field("num_frames", default=FRAMES, part="vision")), self.channels(), *self.side()
        )

    def grid(self) -> Tensor:
        return torch.tensor([[1, PATCHES, PATCHES]] * B)

    def patches(self) -> Tensor:
        patch = self.field("patch_size", default=16, part="vision")
        patch = patch if isinstance(patch, int) else patch[-1]
        temporal = self.field("temporal_patch_size", "patch_temporal", default=1, part="vision")
        flat = self.channels() * temporal * patch * patch
        if any(name in self.takes for name in LISTED):
            return torch.randn(B, PATCHES**2, flat)
        count, shape = B * PATCHES**2, (self.channels() * temporal, patch, patch)
        return torch.randn(*((count, flat), (count, *shape), (1, count, *shape))[self.turn])

    def places(self) -> Tensor:
        """Where each patch is, B,N,2."""
        row = torch.arange(PATCHES)
        return torch.cartesian_prod(row, row).repeat(B, 1, 1)

    def past(self, *features: int) -> Tensor:
        """A series, and as much before it as its lags reach back: B,T,features."""
        length = self.field("context_length", default=32) + max(self.field("lags_sequence", default=[0]))
        return torch.randn(B, length, *features)

    def series(self) -> Tensor:
        count = self.field("num_input_channels", "input_size", default=1)
        return self.past(*([count] if count > 1 or self.field("num_input_channels") else []))

    def bands(self) -> Tensor:
        count = int(self.field(*BANDS, default=80, part="audio")) * int(self.field("num_stacked_frames", default=1))
        frames = 2 * int(self.field("max_source_positions", default=64, part="audio"))
        frames = 200 if frames > 256 or self.field("n_window") else frames
        return torch.randn(*((B, count, frames), (B, frames, count), (B, 1, frames, count))[self.turn])

    def sound(self) -> Tensor:
        spectrum = self.field("max_length") if self.field("num_mel_bins") else None
        if spectrum:
            return torch.randn(B, int(spectrum), int(self.field("num_mel_bins")))
        return torch.randn(B, 1, SOUND) if self.turn else torch.randn(B, SOUND)

    def boxes(self) -> Tensor:
        corner = torch.randint(0, 30, (B, self.length, 2))
        return torch.cat([corner, corner + 20], -1)

    def _with_images(self, made: dict[str, Any]) -> dict[str, Any]:
        """As many special words as there are rows of an image or a sound."""
        ids = made.get("input_ids")
        if ids is None or self.field("is_encoder_decoder", default=False):
            return made
        kinds = torch.zeros_like(ids)
        for kind, name in enumerate(KINDS, 1):
            word = self.field(f"{name}_token_id", f"{name}_token_index")
            ask = getattr(self.model, f"get_{name}_features", None)
            if word is None or ask is None:
                continue
            asked = {key: made[key] for key in inspect.signature(ask).parameters if key in made and key != "input_ids"}
            if not asked:
                continue
            with torch.no_grad():
                rows = rows_of(ask(**asked)) // B
            start = self.field(f"{name}_start_token_id", "vision_start_token_id", default=5)
            ids = torch.cat([ids[:, :2], torch.full((B, 1), start), torch.full((B, rows), word), ids[:, 2:]], 1)
            new = torch.full((B, 1 + rows), kind)
            new[:, 0] = 0
            kinds = torch.cat([kinds[:, :2], new, kinds[:, 2:]], 1)
        made["input_ids"] = ids
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in made:
                made[name] = mask(ids.shape[1]) if name == "attention_mask" else kinds
        return made


def takes(model: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of forward, and those that it hands on to what reads images and sounds."""
    own = dict(inspect.signature(model.forward).parameters)
    if not any(one.kind is one.VAR_KEYWORD for one in own.values()):
        return own
    asks = [ask for ask in (getattr(model, f"get_{name}_features", None) for name in KINDS) if ask]
    behind = {name: one for ask in asks for name, one in inspect.signature(ask).parameters.items()}
    handed = {name: one.replace(default=None) for name, one in behind.items() if one.kind is one.POSITIONAL_OR_KEYWORD}
    return {**handed, **own}


def rows_of(features: Any) -> int:
    """How many rows a model makes of its images."""
    features = getattr(features, "pooler_output", features)
    if isinstance(features, Tensor):
        return features.numel() // features.shape[-1]
    return sum(rows_of(one) for one in features or ())


def mask(length: int) -> Tensor:
    """1 where a sequence has something, B,length: the last one is five shorter."""
    made = torch.ones(B, length, dtype=torch.long)
    made[-1, -5:] = 0
    return made


def configs(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A configuration and all within it, by where they are."""
    yield name, config
    for key, value in vars(config).items():
        if hasattr(value, "to_dict") and key != "_internal_dict":
            yield from configs(value, f"{name}.{key}")


BESIDE = ("attention_mask", "decoder_input_ids")
NOT_ALWAYS = ("image_sizes", "pixel_attention_mask", "pixel_values_videos", "video_grid_thw")
ONLY_NEEDED = {"inputs_embeds", "hidden_states", "inputs", "query_embeds", "latents", "image_position_ids"}
MAKERS: dict[str, Callable[[Inputs], Any]] = {
    "input_ids": Inputs.words,
    "attention_mask": lambda self: mask(self.length),
    "token_type_ids": lambda self: torch.zeros(B, self.length, dtype=torch.long),
    "mm_token_type_ids": lambda self: torch.zeros(B, self.length, dtype=torch.long),
    "decoder_input_ids": lambda self: self.words(9),
    "bbox": Inputs.boxes,
    "pixel_values": Inputs.picture,
    "pixel_values_videos": Inputs.video,
    "image": Inputs.picture,
    "input_features": Inputs.bands,
    "input_features_mask": lambda self: torch.ones(B, self.bands().shape[1 if self.turn == 1 else 2], dtype=torch.long),
    "input_values": Inputs.sound,
    "hidden_states": Inputs.patches,
    "pixel_position_ids": Inputs.places,
    "image_position_ids": Inputs.places,
    "spatial_shapes": lambda _: torch.tensor([[PATCHES, PATCHES]] * B),
    "target_sizes": lambda _: torch.tensor([[PATCHES, PATCHES]] * B),
    "pixel_attention_mask": lambda _: torch.ones(B, PATCHES**2, dtype=torch.long),
    "image_attention_mask": lambda self: torch.ones(B, self.length, FRAMES, dtype=torch.long),
    "qformer_input_ids": Inputs.words,
    "query_embeds": Inputs.embedded,
    "inputs": lambda self: torch.randn(B, self.length, int(self.field("d_model", default=64))),
    "action_embeds": Inputs.embedded,
    "image_sizes": lambda self: torch.tensor([self.side()] * B),
    "merge_sizes": lambda _: torch.ones(B, dtype=torch.long),
    "task_inputs": lambda self: self.words(self.field("task_seq_len", default=LENGTH)),
    "prompt_pixel_values": Inputs.picture,
    "prompt_masks": Inputs.picture,
    "visual_feats": lambda self: torch.randn(B, 8, self.field("visual_feat_dim", default=64)),
    "visual_pos": lambda _: torch.rand(B, 8, 4),
    "states": lambda self: torch.randn(B, self.length, self.field("state_dim", default=16)),
    "actions": lambda self: torch.randn(B, self.length, self.field("act_dim", default=4)),
    "returns_to_go": lambda self: torch.randn(B, self.length, 1),
    "timesteps": lambda self: torch.arange(self.length).repeat(B, 1),
    "past_values": Inputs.series,
    "past_time_features": lambda self: self.past(self.field("num_time_features", default=1)),
    "past_observed_mask": lambda self: torch.ones_like(self.series()),
    "feature_attention_mask": lambda self: torch.ones(
        B, self.bands().shape[1 if self.turn == 1 else 2], dtype=torch.long
    ),
    "latents": lambda self: self.embedded().mT if self.turn else self.embedded(),
    "inputs_embeds": Inputs.embedded,
    "audio_mel": lambda self: self.bands().mT,
    "audio_mel_mask": lambda self: torch.zeros(B, self.bands().shape[2], dtype=torch.bool),
    **dict.fromkeys((*GRIDS, "video_grid_thw"), Inputs.grid),
}
