"""Ops of ours around a library's functions, defined once and for all that a compiled program asks of an op.

`attention` makes all the ops of one kernel from one signature: inference, training, its backward.

``Library.define`` instead of ``torch.library.custom_op``: the latter costs 6 us a call more (aliasing checks), and
``register_autograd`` 3.5 us even in inference, hence two ops for a library that has a backward. The graph holds these
ops and never a library's Python function, for which AOTAutograd's cache steps aside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.library import Library

from attnpass.emit.emitter import Emitted, Emitter
from attnpass.emit.sinks import Sunk
from attnpass.ir.call import AttentionCall

NAMESPACE = "attnpass"
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_ops = Library(NAMESPACE, "FRAGMENT")
_attention: dict[Any, str] = {}


@dataclass(frozen=True, slots=True)
class Attention:
    """The ops of one kernel, as `attention` defines them.

    Attributes:
        infer: gives the output.
        train: gives the output and what its backward reads; None if there is no backward.
        sunk: gives the output with sinks, which it takes in front; None if ``train`` gives no log-sum-exp.
    """

    infer: Any
    train: Any = None
    sunk: Any = None

    def emit(self, emitter: Emitter, call: AttentionCall, *operands: Any) -> Node:
        """Insert the op that ``call`` needs, on the operands of ``infer``. Returns the node of its output."""
        if not call.needs_grad:
            return emitter(self.infer, *operands)
        return emitter.item(emitter(self.train, *self._trained(operands)), 0)

    def emit_more(self, emitter: Emitter, call: AttentionCall, *operands: Any, sinks: Node | None = None) -> Emitted:
        """As `emit`, for a kernel whose `Limits` say ``log_sum_exp``: it is returned too, if ``call`` wants it.

        ``sinks``, (H,), are computed behind the kernel.
        """
        if sinks is not None:
            return emitter(self.sunk, sinks, *self._trained(operands))
        if call.lse is None:
            return self.emit(emitter, call, *operands)
        results = emitter(self.train, *self._trained(operands))
        return emitter.item(results, 0), emitter.item(results, 1)

    def _trained(self, operands: Sequence[Any]) -> list[Any]:
        """Those of ``operands`` that ``train`` takes."""
        assert self.train is not None, "a kernel without a backward refuses calls that need a gradient"
        names = {argument.name for argument in self.train._schema.arguments}
        named = zip(self.infer._schema.arguments, operands, strict=False)  # the last ones may have defaults
        return [each for argument, each in named if argument.name in names]


def contiguous_output(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    """The fake of an output that is contiguous."""
    return q.new_empty((*q.shape[:3], v.shape[3]))


def output_like_q(q: Tensor, *_: object) -> Tensor:
    """The fake of an output that lies as q does."""
    return torch.empty_like(q)


def log_sum_exp(q_BHSD: Tensor, *_: object) -> Tensor:
    """The fake of one number for each row of scores: (B, H, Sq), fp32."""
    return q_BHSD.new_empty(q_BHSD.shape[:3], dtype=torch.float32)


def rng_state(q_BHSD: Tensor, *_: object) -> Tensor:
    """The fake of the random numbers' state: seed and offset."""
    return q_BHSD.new_empty(2, dtype=torch.int64)


def gradients_like_operands(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """The fake of a backward whose gradients lie as q, k and v do."""
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def contiguous_gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """The fake of a backward whose gradients are contiguous."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


LOG_SUM_EXP = MappingProxyType({"lse": log_sum_exp})


def attention(
    signature: str,
    infer: Callable[..., Any] | None = None,
    train: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    output: Callable[..., Tensor] = contiguous_output,
    saved: Mapping[str, Callable[..., Tensor]] = LOG_SUM_EXP,
    gradients: Callable[..., Any] = contiguous_gradients,
    inference_only: Collection[str] = (),
    layout: str = "BSHD",
    graphs: bool = True,
    random: bool = False,
    vmap: bool = False,
) -> Attention:
    """Define ``attnpass::name``, with a backward ``name_train`` and ``name_backward``, of a saved lse ``name_sunk``.

    Args:
        signature: ``name(Tensor q, Tensor k, Tensor v, ...)``: tensors first, and behind them the rest.
        infer: computes the output from these arguments; by default the first result of ``train``.
        train: computes the output and what is ``saved`` for the backward.
        backward: computes the gradients of q, k and v: ``backward(grad, *tensors, out, *saved, *rest)``.
        output: the fake of the output, from the arguments.
        saved: the fakes of what training saves beside the output, by name; from the arguments, with q as BHSD. A first
            one that is called lse is the log-sum-exp of each row.
        gradients: the fake of ``backward``.
        inference_only: arguments that training does not have.
        layout: as for `define`.
        graphs: as for `define`.
        random: as for `define`; a backward draws nothing.
        vmap: as for `define`; a backward is not mapped.
    """
    how: dict[str, Any] = {"graphs": graphs, "layout": layout}
    forward = {**how, "random": random, "vmap": vmap}
    infer_op = define(f"{signature} -> Tensor", infer or _first_result(train), output, **forward)
    if train is None or backward is None:
        return Attention(infer_op)
    schema, backward_schema, operands = _schemas_of_training(signature, saved, inference_only)

    def fake(q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        q_BHSD = q if layout == "BHSD" else q.transpose(1, 2)
        return output(q, *rest), *(make(q_BHSD, *rest) for make in saved.values())

    train_op = define(schema, train, fake, **forward)
    backward_op = define(backward_schema, backward, gradients, **how)
    differentiable(train_op, backward_op, operands)
    if next(iter(saved)) != "lse":
        return Attention(infer_op, train_op)
    sunk = Sunk(train_op, backward_op, operands, bshd=layout == "BSHD")
    taken = schema.partition(" -> ")[0].replace("_train(", "_sunk(Tensor sinks, ", 1)
    return Attention(infer_op, train_op, compose(f"{taken} -> Tensor", sunk))


def _schemas_of_training(signature: str, saved: Iterable[str], inference_only: Collection[str]) -> tuple[str, str, int]:
    """The schemas of the training op and of its backward, and how many of the former's arguments are tensors."""
    name, _, listed = signature.removesuffix(")").partition("(")
    arguments = [each for each in listed.split(", ") if each.split()[-1].partition("=")[0] not in inference_only]
    operands = sum(each.startswith("Tensor") for each in arguments)
    results = ["Tensor out", *(f"Tensor {each}" for each in saved)]
    read = ["Tensor grad", *arguments[:operands], *results, *arguments[operands:]]
    train = f"{name}_train({', '.join(arguments)}) -> ({', '.join(results)})"
    return train, f"{name}_backward({', '.join(read)}) -> (Tensor, Tensor, Tensor)", operands


def _first_result(train: Callable[..., Any] | None) -> Callable[..., Any]:
    assert train is not None, "an op is computed by something"
    return lambda *arguments: train(*arguments)[0]


def define(
    schema: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    random: bool = False,
    vmap: bool = False,
    graphs: bool = True,
    layout: str = "BSHD",
) -> Any:
    """Define ``attnpass::<schema>`` and return its overload.

    With arguments that are called q, k and v it is attention, or with a first one that is called grad, its backward:
    checkpoints, the partitioner and FLOP counters then know what it costs (`attnpass.compilation.recomputation`).

    Args:
        schema: name, arguments and results; the leading arguments are tensors.
        function: computes it on any device; imports its library inside.
        fake: the same shapes, dtypes and *strides*, computed from metadata.
        random: does it draw random numbers? Then recomputation in checkpoints replays them.
        graphs: can a CUDA graph hold it? If not, Inductor splits its graphs around it.
        vmap: fold a mapped dimension into the batch, dimension 0 of every tensor; a one-dimensional result (the state
            of random numbers) belongs to all of them.
        layout: of q, k and v: "BSHD" or "BHSD". An argument called ``layout`` ("NHD" or "HND") wins.
    """
    name = schema.partition("(")[0]
    tags = [*TAGS, *([torch.Tag.nondeterministic_seeded] if random else [])]
    _ops.define(schema, tags=tuple(tags if graphs else [*tags, torch.Tag.cudagraph_unsafe]))
    _ops.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_ops)
    op = getattr(torch.ops.attnpass, name).default
    if vmap:
        torch.library.register_vmap(op, _folds_into_batch(op), lib=_ops)
    if {"q", "k", "v"} <= {argument.name for argument in op._schema.arguments}:
        _attention[op] = layout
    return op


def attention_ops() -> Mapping[Any, str]:
    """The overload of every op that computes attention, or the backward of one, with the layout of its q, k and v."""
    return MappingProxyType(_attention)


def compose(schema: str, function: Callable[..., Any]) -> Any:
    """Define ``attnpass::<schema>`` as what ``function`` computes with PyTorch's own ops, and return its overload.

    A graph holds one node for it; Inductor sees what it is made of, and fuses it with what stands around it. PyTorch's
    caches on disk know the op by its name and schema alone: a ``function`` that computes something else needs another.
    """
    name = schema.partition("(")[0]
    _ops.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _ops.impl(name, function, "CompositeImplicitAutograd")
    return getattr(torch.ops.attnpass, name).default


def differentiable(op: Any, backward: Any, operands: int) -> None:
    """Give ``op`` its gradient: ``backward(grad, *operands, *results, *rest)``.

    Args:
        op: its first result is the output; the others are kept for the backward.
        backward: gives the gradients of the first of ``op``'s arguments, as many as it returns.
        operands: how many of ``op``'s arguments are tensors; the rest are numbers.
    """

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.rest = inputs[operands:]
        ctx.save_for_backward(*inputs[:operands], *output)

    def gradient(ctx: Any, grad: Tensor, *_: object) -> tuple[Tensor | None, ...]:
        grads = tuple(backward(grad, *ctx.saved_tensors, *ctx.rest))
        return (*grads, *[None] * (operands + len(ctx.rest) - len(grads)))

    torch.library.register_autograd(op, gradient, setup_context=save, lib=_ops)


def pass_gradients_on(op: Any) -> None:
    """The gradient of ``op``, which copies its one tensor, is that of its result.

    A copy of it: a gradient that is missing is then an error, where PyTorch would take it for one that is not wanted.
    """
    torch.library.register_autograd(op, lambda _, grad: grad.clone(), lib=_ops)


def aligned(grad: Tensor, alignment: int = 16) -> Tensor:
    """``grad``, copied if its rows do not lie at multiples of ``alignment`` bytes.

    Libraries check no more than its last stride, and a gradient's layout is not known when the call is decided.
    """
    step = alignment // grad.dtype.itemsize
    strides = [stride for size, stride in zip(grad.shape[:-1], grad.stride()[:-1], strict=True) if size > 1]
    good = grad.stride(-1) == 1 and not any(stride % step for stride in (*strides, grad.storage_offset()))
    return grad if good else grad.contiguous()


def _folds_into_batch(op: Any) -> Callable[..., Any]:
    """The batching rule of an op whose tensors all have the batch in front: (n, B, ...) is computed as (n * B, ...)."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        n = info.batch_size

        def fold(arg: Any, dim: int | None) -> Any:
            if not isinstance(arg, Tensor):
                return arg
            mapped = arg.unsqueeze(0).expand(n, *arg.shape) if dim is None else arg.movedim(dim, 0)
            return mapped.contiguous().flatten(0, 1)  # the mapped dimension's stride need not be an aligned one

        def unfold(result: Tensor) -> tuple[Tensor, int | None]:
            return (result, None) if result.ndim == 1 else (result.unflatten(0, (n, -1)), 0)

        result = op(*[fold(arg, dim) for arg, dim in zip(args, in_dims, strict=True)])
        if isinstance(result, Tensor):
            return unfold(result)
        unfolded = [unfold(each) for each in result]
        return tuple(each for each, _ in unfolded), tuple(dim for _, dim in unfolded)

    return rule
