"""One step of a model (a forward or a training step), its error, its speed, and what happened on the GPU meanwhile."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import attnpass
from benchmarks.timing import locked
from benchmarks.zoo.models import Subject

FORWARD, TRAIN = "forward", "train"
TIMED_RUNS = 20


@dataclass(frozen=True, slots=True)
class Result:
    """What one step gave: copies, since CUDA graphs write over their outputs in the next step."""

    out: Tensor
    grads: tuple[Tensor | None, ...] = ()


class BaselineError(Exception):
    """PyTorch itself went wrong, and may have left the process unfit (a bad cuDNN plan stays in its cache)."""


def run_step(subject: Subject, call: Callable[..., Any], step: str) -> Result:
    """Run ``call`` (the model, or the model compiled) once, and keep what it gave."""
    out = live_step(subject, call, step)
    if step == FORWARD:
        return Result(out.clone())
    grads = (weight.grad for weight in subject.model.parameters())
    return Result(out.detach().clone(), tuple(None if grad is None else grad.clone() for grad in grads))


def live_step(subject: Subject, call: Callable[..., Any], step: str) -> Tensor:
    """Run ``call`` once. The loss is the distance to fixed random values.

    The mean square of the output itself would not do: after a layer norm it is nearly constant, its gradient is noise.
    """
    torch.compiler.cudagraph_mark_step_begin()
    if step == FORWARD:
        with torch.no_grad():
            return subject.pick(call(**subject.inputs))
    for weight in subject.model.parameters():
        weight.grad = None
    out = subject.pick(call(**subject.inputs))
    exact = out.to(torch.promote_types(out.dtype, torch.float32))
    (exact - _target(exact.shape, exact.device)).square().mean().backward()
    return out


@cache
def _target(shape: torch.Size, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)


def relative_error(found: Sequence[Tensor | None], exact: Sequence[Tensor | None]) -> float:
    """L2 distance of all tensors together, relative to the L2 norm of ``exact``; infinite if one is missing or NaN."""
    if [x is None for x in found] != [x is None for x in exact]:
        return math.inf
    pairs = [(x.double(), y.double()) for x, y in zip(found, exact, strict=True) if x is not None and y is not None]
    distance = sum((x - y).square().sum() for x, y in pairs)
    size = sum(y.square().sum() for _, y in pairs)
    error = float((torch.as_tensor(distance) / torch.as_tensor(size)).sqrt())
    return error if math.isfinite(error) else math.inf


@contextmanager
def counted_sdpa() -> Iterator[list[str]]:
    """Every attention call that eager code makes, by name of its function.

    ``nn.MultiheadAttention`` reads SDPA from ``torch.nn.functional``, as everybody does; outside training it (and
    ``nn.TransformerEncoderLayer``) may take a fused function of its own instead, which is one attention too.
    """
    seen: list[str] = []
    places = (
        (F, "scaled_dot_product_attention"),
        (torch, "_native_multi_head_attention"),
        (torch, "_transformer_encoder_layer_fwd"),
    )
    saved = [(owner, name, getattr(owner, name)) for owner, name in places]

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return function(*args, **kwargs)

        return call

    try:
        for owner, name, function in saved:
            setattr(owner, name, counting(name, function))
        yield seen
    finally:
        for owner, name, function in saved:
            setattr(owner, name, function)


@dataclass(slots=True)
class GraphWatch:
    """Counts what really reaches the GPU: captures and replays of CUDA graphs, whoever asks for them."""

    captures: int = 0
    replays: int = 0
    _saved: list[tuple[str, Any]] = field(default_factory=list)

    def __enter__(self) -> GraphWatch:
        for name, counter in (("capture_begin", "captures"), ("replay", "replays")):
            original = getattr(torch.cuda.CUDAGraph, name)
            self._saved.append((name, original))
            setattr(torch.cuda.CUDAGraph, name, self._counting(original, counter))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self._saved:
            setattr(torch.cuda.CUDAGraph, name, original)
        self._saved.clear()

    def _counting(self, original: Callable[..., Any], counter: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            setattr(self, counter, getattr(self, counter) + 1)
            return original(*args, **kwargs)

        return call


def median_ms(run: Callable[[], Any], device: torch.device, lock: str = "") -> float:
    """Median time of ``run``. ``lock`` names a file: only one process that names it measures at a time."""
    with locked(lock):
        run()
        return statistics.median(_timed(run, device) for _ in range(TIMED_RUNS))


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1000
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last))


def backend() -> str | Callable[..., Any]:
    """By name where the package is installed, the function itself where its sources are only on the path."""
    names = torch._dynamo.list_backends(exclude_tags=())
    return "attnpass" if "attnpass" in names else attnpass.backend.attnpass
