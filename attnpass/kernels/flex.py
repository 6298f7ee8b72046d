"""flex: FlexAttention, emitted as its higher-order op, which Inductor compiles to a Triton (or C++) kernel.

The op's signature changes between PyTorch versions, so nothing of it is written down here: a `BlockMask` is built and
asked for its own ``as_tuple()``, and ``flex_attention``'s own function supplies the kernel options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn.attention import flex_attention as flex

from attnpass import ops
from attnpass.call import AttentionCall
from attnpass.emit import Emitter, aten
from attnpass.kernel import Kernel, Operands
from attnpass.limits import FLOATS, Code, Limits, Rejection
from attnpass.machine import Machine
from attnpass.masks import Term
from attnpass.symbolic import Size, known, known_equal, shown

BLOCK = 128
NO_BLOCKS = 1 << 30  # FlexAttention's own block size for "one block holds everything"


class Flex(Kernel):
    """FlexAttention. Causal blocks that hold no work are skipped; a mask tensor is read inside the kernel."""

    name = "flex"
    title = "FlexAttention, compiled by Inductor"
    aliases = ("_native_flex",)
    limits = Limits(
        devices=frozenset({"cuda", "cpu", "xpu"}),
        capabilities=("sm_80", "sm_121"),
        dtypes=FLOATS,
        head_dim_max=256,
        head_dim_min=16,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset({Term.CAUSAL}),
        mask_tensor=True,
        mask_dtype_may_differ=True,
        softcap=True,
    )

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.needs_grad and machine.kind == "cpu":
            yield Rejection(Code.BACKWARD, "needs_grad", True, "False, FlexAttention has no backward on the CPU")
        if call.context.nested_in:
            yield Rejection(Code.NESTED, "body of", " in ".join(call.context.nested_in), "the graph's top level")
        if call.dtype == torch.float32 and not known(call.D <= 128):
            yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), "at most 128 in fp32 (shared memory)")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Node:
        if call.device.type == "cpu":
            q, k, v = (_fixed(emitter, node) for node in (args.q, args.k, args.v))
            args = Operands(q, k, v, args.mask, args.scale)
        mask = None if args.mask is None else _fixed(emitter, args.mask)
        score_mod, buffers = _score_mod(emitter, mask, call.softcap)
        results = emitter(
            torch.ops.higher_order.flex_attention,
            args.q,
            args.k,
            args.v,
            score_mod,
            _block_mask(emitter, call, args),
            args.scale,
            _kernel_options(emitter, call, args),
            buffers,
            (),
        )
        return emitter.item(results, 0)

    def compile_options(self, call: AttentionCall) -> dict[str, Any]:
        """Inductor 2.13 fails on the CPU when it fuses pointwise arithmetic behind FlexAttention into its kernel."""
        return {"epilogue_fusion": False} if call.device.type == "cpu" else {}


def _fixed_layout(x: Tensor) -> Tensor:
    """A contiguous copy of ``x`` whose layout Inductor cannot change any more."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


_copy = ops.define("fixed_layout(Tensor x) -> Tensor", _fixed_layout, _fixed_layout)


def _fixed(emitter: Emitter, operand: Node) -> Node:
    """A mask as a buffer that Inductor's templates can index, copied once for all calls that read it.

    A captured tensor that is computed in the graph fails to compile: "convert FlexibleLayout to FixedLayout first"
    (CUDA, PyTorch 2.11), "not enough values to unpack" (CPU, 2.13). On the CPU so does a q that is a view of a linear
    layer's 2-D output, hence q, k and v go through here there.
    """
    if operand.op == "placeholder":
        return operand
    source = operand
    while source.target is aten.unsqueeze.default and isinstance(source.args[0], Node):
        source = source.args[0]  # each call lifts the same mask to 4-D anew
    key = ("flex operand", source, emitter.spec(operand).ndim, emitter.writes_before())
    if key not in emitter.shared:
        first = len(emitter.made)
        emitter.shared[key] = emitter(_copy, operand)
        del emitter.made[first:]
    fixed: Node = emitter.shared[key]
    return fixed


def _score_mod(emitter: Emitter, mask: Node | None, softcap: float | None) -> tuple[Node, tuple[Node, ...]]:
    """``score``, ``score + bias[b, h, q, k]`` or ``where(mask[b, h, q, k], score, -inf)``; dims of size 1 read at 0.

    The score is capped first, if there is a softcap.
    """
    if mask is None:
        return emitter.submodule("attnpass_score_mod", partial(_plain_score, softcap), "none", softcap), ()
    spec = emitter.spec(mask)
    is_bool, single = spec.dtype == torch.bool, tuple(known_equal(size, 1) for size in spec.shape)
    make = partial(_masked_score, is_bool, single, softcap)
    return emitter.submodule("attnpass_score_mod", make, is_bool, single, softcap), (mask,)


def _plain_score(softcap: float | None) -> GraphModule:
    graph = Graph()
    score, *_ = (graph.placeholder(name) for name in ("score", "b", "h", "q_idx", "kv_idx"))
    graph.output(_capped(graph, score, softcap))
    return GraphModule(torch.nn.Module(), graph)


def _capped(graph: Graph, score: Node, softcap: float | None) -> Node:
    """``softcap * tanh(score / softcap)``."""
    if softcap is None:
        return score
    tanh = graph.call_function(aten.tanh.default, (graph.call_function(aten.mul.Tensor, (score, 1 / softcap)),))
    return graph.call_function(aten.mul.Tensor, (tanh, softcap))


def _masked_score(is_bool: bool, single: tuple[bool, ...], softcap: float | None) -> GraphModule:
    graph = Graph()
    score, *places, mask = (graph.placeholder(name) for name in ("score", "b", "h", "q_idx", "kv_idx", "mask"))
    score = _capped(graph, score, softcap)
    indices = [
        graph.call_function(aten.mul.Tensor, (place, 0)) if only_one else place
        for place, only_one in zip(places, single, strict=True)
    ]
    at = graph.call_function(aten.index.Tensor, (mask, indices))
    if is_bool:
        hidden = graph.call_function(aten.full_like.default, (score, float("-inf")))
        graph.output(graph.call_function(aten.where.self, (at, score, hidden)))
    else:
        graph.output(graph.call_function(aten.add.Tensor, (score, at)))
    return GraphModule(torch.nn.Module(), graph)


def _mask_mod(causal: bool) -> GraphModule:
    graph = Graph()
    b, _, q, k = (graph.placeholder(name) for name in ("b", "h", "q_idx", "kv_idx"))
    if causal:
        graph.output(graph.call_function(aten.ge.Tensor, (q, k)))
    else:
        graph.output(graph.call_function(aten.ones_like.default, (b,), {"dtype": torch.bool}))
    return GraphModule(torch.nn.Module(), graph)


def _block_mask(emitter: Emitter, call: AttentionCall, args: Operands) -> tuple[Any, ...]:
    """The op's block-mask tuple, with nodes where `BlockMask` holds tensors. Shared by all calls of equal lengths."""
    key = ("flex", call.is_causal, str(call.Sq), str(call.Sk), call.device, id(emitter.owner))
    if key not in emitter.shared:
        emitter.shared[key] = _make_block_mask(emitter, call, args)
    made: tuple[Any, ...] = emitter.shared[key]
    return made


def _make_block_mask(emitter: Emitter, call: AttentionCall, args: Operands) -> tuple[Any, ...]:
    causal = call.is_causal
    first = len(emitter.made)
    blocks = emitter.inline(causal_blocks if causal else one_block, args.q, args.k)
    lengths = (emitter.size(args.q, 2), emitter.size(args.k, 2)) if causal else (1, 1)
    mask_mod = emitter.submodule("attnpass_mask_mod", partial(_mask_mod, causal), causal)
    del emitter.made[first:]  # shared with later calls, so not this call's to undo
    marks: list[Any] = [None if node is None else torch.zeros(1, 1, 1, 1, dtype=torch.int32) for node in blocks]
    step = BLOCK if causal else NO_BLOCKS
    make: Callable[..., Any] = flex.BlockMask
    template = make((1, 1), *marks, BLOCK_SIZE=(step, step), mask_mod=flex.noop_mask)
    nodes = {id(mark): node for mark, node in zip(marks, blocks, strict=True) if mark is not None}
    entries = [nodes.get(id(entry), entry) for entry in template.as_tuple()]
    return (*lengths, *entries[2:-1], mask_mod)


def one_block(q: Tensor, k: Tensor) -> tuple[Tensor | None, ...]:
    """Blocks of no mask: one block holds everything, and is visited by everybody."""
    ones = torch.ones(1, 1, 1, dtype=torch.int32, device=q.device)
    zeros = torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=q.device)
    return ones, zeros, None, None, ones, zeros, None, None


def causal_blocks(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Blocks of the top-left causal mask in closed form, in the order of `BlockMask`'s constructor.

    For each row of blocks: how many are partly visible and which, how many are fully visible and which; then the same
    for each column, which the backward reads. ``create_block_mask`` gives the same sets after looking at every
    (q, k) pair; this looks at none. A block that reaches over the end of q or k counts as partly visible.

    Symbolic lengths get one empty block more: a size that may be 1 makes the tracer guard on whether it is.
    """
    Sq, Sk, device = q.shape[2], k.shape[2], q.device
    rows: Any = _blocks(Sq)
    cols: Any = _blocks(Sk)
    i, j = torch.arange(rows, device=device), torch.arange(cols, device=device)
    visible = torch.clamp(i + 1, max=(Sk + BLOCK - 1) // BLOCK)
    full = torch.where(i < Sq // BLOCK, torch.clamp(i, max=Sk // BLOCK), 0)
    kv = (visible - full, (full[:, None] + j) % cols, full, j + 0 * i[:, None])
    ragged_rows = (Sq + BLOCK - 1) // BLOCK
    below = torch.clamp(ragged_rows - j, min=0)
    full_below = torch.where(j < Sk // BLOCK, torch.clamp(Sq // BLOCK - (j + 1), min=0), 0)
    ragged_end = torch.where(full_below > 0, ragged_rows - 1, j + 1)  # the block of q that is not full stands last
    partial = torch.where(i == 0, j[:, None], torch.where(full_below[:, None] > 0, ragged_end[:, None], j[:, None] + i))
    q_side = (below - full_below, partial % rows, full_below, (j[:, None] + 1 + i) % rows)
    return tuple(x.to(torch.int32)[None, None] for x in (*kv, *q_side))


def _blocks(length: Size) -> Size:
    blocks = (length + BLOCK - 1) // BLOCK
    return blocks if isinstance(blocks, int) else blocks + 1


def _kernel_options(emitter: Emitter, call: AttentionCall, args: Operands) -> dict[str, Any]:
    """What ``flex_attention`` itself would pass, whatever this PyTorch version puts in there."""
    fill: Callable[..., Any] = flex._apply_kernel_options
    parameters = inspect.signature(fill).parameters
    given = [emitter.value(node) for node in (args.q, args.k, args.v)]
    rest = [None] * (len(parameters) - 5)
    with torch.set_grad_enabled(call.needs_grad):  # decides whether the log-sum-exp is kept for the backward
        return dict(fill(*given, False, None, *rest))
