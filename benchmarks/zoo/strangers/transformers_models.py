"""Every model type of the installed transformers, made small by its own configuration. Not all can be."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.zoo.stranger import Ready, Stranger
from benchmarks.zoo.strangers.transformers_configs import Way, ways
from benchmarks.zoo.strangers.transformers_fields import ALWAYS
from benchmarks.zoo.strangers.transformers_inputs import Inputs, configs

MOST = 120_000_000  # weights, some half a gigabyte
SECONDS = 20.0  # after which no other way is tried
AUTO = (
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForPreTraining",
)
OTHER = "sizes or inputs do not fit"
PACKAGE, ATTENTION, FORWARD = "needs another package", "has no such attention", "has no forward"
INPUT = "needs an input that has no rule"
FOR_GOOD = (PACKAGE, ATTENTION, FORWARD, INPUT)  # no other size helps
KINDS = {
    "requires the ": PACKAGE,
    "No module named": PACKAGE,
    "does not support an attention implementation": ATTENTION,
    'missing the required "forward"': FORWARD,
    "Unrecognized configuration": "has no class",
    "million weights": "too large still",
    "forward() missing": INPUT,
    "has no attribute": "its default configuration is not whole",
    "NoneType": "its default configuration is not whole",
}
WANTED = tuple((wanted, turn) for wanted in ("all", "most", "main", "needed") for turn in (0, 1, 2))


class NotBuiltError(Exception):
    """No way makes it run. Begins with the kind of reason."""


def build(model_type: str, attention: str) -> Ready:
    """The first way to make it small with which it runs.

    Raises:
        NotBuiltError: if there is none, with what stands in the first way.
    """
    end = time.monotonic() + SECONDS
    errors: list[Exception] = []
    for way in ways():
        try:
            config = small(model_type, way)
            model = built(config, attention)
        except Exception as error:
            errors.append(error)
        else:
            ready = running(model, config, end, errors)
            if ready:
                return ready
        if time.monotonic() > end or kind(errors[-1]) in FOR_GOOD:
            break
    raise NotBuiltError(f"{kind(errors[0])}: {errors[0]}")


def kind(error: Exception) -> str:
    """What a model lacks."""
    return next((kind for part, kind in KINDS.items() if part in str(error)), OTHER)


def running(model: Any, config: Any, end: float, errors: list[Exception]) -> Ready | None:
    """The model with inputs that it takes; None, and the reasons in ``errors``, if there are none."""
    for wanted, turn in WANTED:
        try:
            return tried(model, config, wanted, turn)
        except Exception as error:
            errors.append(error)
        if time.monotonic() > end:
            break
    return None


def small(model_type: str, way: Way) -> Any:
    import transformers

    usual = transformers.CONFIG_MAPPING[model_type]()
    config = type(usual)(**way.shrunk(copy.deepcopy(usual.to_dict())))
    for _, one in configs(config):
        one.architectures = getattr(one, "architectures", None) or []  # one mapping asks which of them it is
        for name, value in ALWAYS.items():
            if hasattr(one, name):
                setattr(one, name, value)
    return config


def built(config: Any, attention: str) -> Any:
    """The model, counted before it is made."""
    import transformers

    autos = [getattr(transformers, name) for name in AUTO]
    auto = next((each for each in autos if type(config) in each._model_mapping), autos[0])

    def make(wanted: str | dict[str, str]) -> Any:
        return auto.from_config(copy.deepcopy(config), attn_implementation=wanted, dtype=torch.float32)

    wanted: str | dict[str, str] = attention
    with torch.device("meta"):
        try:
            counted = make(wanted)
        except ValueError as error:
            if kind(error) != ATTENTION:
                raise
            wanted = {"": attention}  # a part, such as a backbone of convolutions, may not have it
            counted = make(wanted)
    weights = sum(weight.numel() for weight in counted.parameters())
    if weights > MOST:
        raise ValueError(f"it has {weights / 1e6:.0f} million weights still")
    return make(wanted).eval()


def tried(model: Any, config: Any, wanted: str, turn: int) -> Ready:
    torch.manual_seed(0)
    ready = Ready(model, (), Inputs(model, config, turn).given(wanted))
    with torch.no_grad():
        copy.deepcopy(ready)()
    return ready


def transformers_models() -> Iterator[Stranger]:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    for model_type in MODEL_MAPPING_NAMES:
        if model_type in transformers.CONFIG_MAPPING:
            for attention in ("sdpa", "eager"):
                yield Stranger("transformers", f"{model_type}, {attention}", partial(build, model_type, attention))
