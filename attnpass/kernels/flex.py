"""flex: FlexAttention, emitted as its higher-order op, which Inductor compiles to a Triton (or C++) kernel.

The op's signature changes between PyTorch versions, so nothing of it is written down here: a `BlockMask` is built and
asked for its own ``as_tuple()``, and ``flex_attention``'s own function supplies the kernel options.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import flex_attention as flex
from torch.torch_version import TorchVersion

from attnpass.emit.emitter import Emitted, Emitter, Operands, aten
from attnpass.emit.fixed_layout import fixed, own_buffers
from attnpass.emit.layout import dense_rows
from attnpass.emit.mask_blocks import BLOCK, block_lists
from attnpass.emit.sinks import with_sinks
from attnpass.graph.symbolic import hint, known, known_equal, shown
from attnpass.index.expr import AXES, TRUE, Expr, Load, axis, number
from attnpass.index.logic import all_of
from attnpass.ir.call import AttentionCall
from attnpass.ir.limits import FLOATS, Code, Limits, Rejection
from attnpass.ir.mask import EmptyRows, MaskSpec, Term
from attnpass.ir.meaning import Meaning
from attnpass.kernels.flex_masks import Captured, captured, element_function
from attnpass.kernels.kernel import Kernel
from attnpass.machine.machine import Machine

NO_BLOCKS = 1 << 30  # FlexAttention's own block size for "one block holds everything"
WANTS_OWN_BUFFERS = TorchVersion(torch.__version__) < "2.10"  # its CPU kernel takes no q, k and v of one tensor
LN2 = math.log(2)  # its log-sum-exp has base 2
HOPPER = (9, 0)
# PyTorch's own tiles, 128 x 128 at head dim 64 and 128 x 64 at 128, spill registers where a mask reads data: on an H100
# (torch 2.11, S4096) causal & key_padding took 2.82 ms at head dim 64, and 0.81 ms so; 0.76 and 0.72 ms at 128; no mask
# became slower by more than 5 %. Head dims between the two run as 128. But where the partly visible blocks of a tensor
# are read, PyTorch's own is the faster at 128: 0.77 ms, 0.97 so (H200, causal, 2 x 32/8 x 4096).
HOPPER_TILE = {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4}
TILED_DIMS = range(64, 129)
DECODES = 128  # fewer queries go to another kernel of FlexAttention's, which has its own tiles


# The CPU's product of q and k stores its last columns, if they are fewer than CPU_COLUMNS and whole vectors, as if they
# were CPU_COLUMNS: into the next row. So where the head dim is below CPU_SMALL, and whole vectors too
# (`cpp_micro_gemm.py`; on PyTorch 2.13 with AVX2, 8 lanes: head dims 8 and 16, Sk % 16 == 8: off by 2, NaN, or right).
CPU_COLUMNS, CPU_SMALL = 16, 24


class Flex(Kernel):
    """FlexAttention. Causal blocks that hold no work are skipped; a mask tensor is read inside the kernel."""

    name = "flex"
    compiles = True
    title = "FlexAttention, compiled by Inductor"
    aliases = ("_native_flex", "flex_attention")
    expensive = (torch.ops.higher_order.flex_attention,)
    limits = Limits(
        devices=frozenset({"cuda", "cpu", "xpu"}),
        capabilities=("sm_80", "sm_121"),
        dtypes=FLOATS,
        head_dim_max=256,
        head_dim_min=16,
        value_dim_may_differ=True,
        gqa=True,
        terms=frozenset(Term),
        mask_tensor=True,
        mask_dtype_may_differ=True,
        table_grad=True,
        softcap=True,
        log_sum_exp=True,
    )

    def limits_for(self, machine: Machine) -> Limits:
        """A GPU's kernel multiplies tiles, of 16 at least; the CPU's takes any head dim (tried from 1 to 512)."""
        if machine.kind == "cpu":  # Inductor gives no log-sum-exp there
            return replace(self.limits, head_dim_min=1, head_dim_max=512, log_sum_exp=False)
        return self.limits

    def check(self, call: AttentionCall, machine: Machine) -> Iterator[Rejection]:
        if call.needs_grad and machine.kind == "cpu":
            yield Rejection(Code.BACKWARD, "needs_grad", True, "False, FlexAttention has no backward on the CPU")
        if call.bias_learns and machine.deterministic:
            wanted = "off where a bias learns, whose gradients are summed in no fixed order"
            yield Rejection(Code.DETERMINISTIC, "torch.use_deterministic_algorithms", "on", wanted)
        lanes = 8 if machine.name.startswith("AVX") else 4
        if machine.kind == "cpu" and _stores_too_far(call, lanes):
            wanted = f"a known multiple of {CPU_COLUMNS}, or known to be none of {lanes} (off by 2 else)"
            yield Rejection(Code.KNOWN_BUG, f"Sk at head_dim {shown(call.D)} on the CPU", shown(call.Sk), wanted)
        if call.context.nested_in:
            yield Rejection(Code.NESTED, "body of", " in ".join(call.context.nested_in), "the graph's top level")
        if machine.kind != "cpu" and call.dtype == torch.float32 and not known(call.D <= 128):
            yield Rejection(Code.HEAD_DIM, "head_dim", shown(call.D), "at most 128 in fp32 (shared memory)")

    def emit(self, emitter: Emitter, call: AttentionCall, args: Operands) -> Emitted:
        if call.device.type == "cpu":
            operands = [args.q, args.k, args.v]
            lying = own_buffers(emitter, operands) if WANTS_OWN_BUFFERS else [fixed(emitter, x) for x in operands]
            args = replace(args, q=lying[0], k=lying[1], v=lying[2])
        meaning = args.meaning or Meaning.of_rules(call.mask)
        if args.mask is not None and emitter.spec(args.mask).dtype == torch.bool:  # not proved, so counted
            # rows without keys are 0 here: what else they may give is put in behind the kernel
            meaning = Meaning(MaskSpec(), all_of((meaning.allowed, _as_loaded(emitter, args.mask))))
            args = replace(args, mask=None)
        mask = captured(emitter, call, args.q, args.k, meaning)
        score_mod, score_buffers = _score_mod(emitter, call, args, mask)
        block_mask, mask_buffers = _block_mask(emitter, call, args, mask)
        results = emitter(
            torch.ops.higher_order.flex_attention,
            args.q,
            args.k,
            args.v,
            score_mod,
            block_mask,
            args.scale,
            _kernel_options(emitter, call, args),
            score_buffers,
            mask_buffers,
        )
        out = emitter.item(results, 0)
        if call.lse is not None:
            return out, emitter(aten.mul.Scalar, emitter.item(results, 1), LN2)
        if args.sinks is not None:
            out = emitter.inline(_with_sinks, out, emitter.item(results, 1), args.sinks)
        return out

    def compile_options(self, call: AttentionCall) -> dict[str, Any]:
        """Inductor 2.13 fails on the CPU when it fuses pointwise arithmetic behind FlexAttention into its kernel."""
        return {"epilogue_fusion": False} if call.device.type == "cpu" else {}


def _with_sinks(out: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """``out`` with sinks; the op passes the gradient of the log-sum-exp on."""
    above: Tensor = lse * LN2 - sinks.to(lse.dtype).view(-1, 1)
    return with_sinks(out, above.unsqueeze(-1))


def _stores_too_far(call: AttentionCall, lanes: int) -> bool:
    small = not known(call.D >= CPU_SMALL) and not known(call.D % lanes != 0)
    return small and not known(call.Sk % CPU_COLUMNS == 0) and not known(call.Sk % lanes != 0)


def _as_loaded(emitter: Emitter, mask: Node) -> Expr:
    """A mask tensor of which nothing is known but its elements: dims of size 1 are read at 0.

    Its blocks are counted on the device: hidden ones are skipped, and of full ones no element is read.
    """
    shape = emitter.spec(mask).shape
    index = (number(0) if known_equal(size, 1) else axis(name) for name, size in zip(AXES, shape, strict=True))
    return Load(mask, tuple(index), torch.bool)


@dataclass(frozen=True, slots=True)
class Softcap:
    """``at * tanh(score / at)``; None leaves the scores.

    Attributes:
        at: the cap.
        half: of half precision? Then by the sigmoid, whose parts a GPU has. It is off by 1e-7 of the cap, which in fp32
            would show.
    """

    at: float | None
    half: bool

    def __call__(self, score: Tensor) -> Tensor:
        if self.at is None:
            return score
        if not self.half:
            return self.at * torch.tanh(score * (1 / self.at))
        return (2 * self.at) * torch.sigmoid(score * (2 / self.at)) - self.at


def _score_mod(emitter: Emitter, call: AttentionCall, args: Operands, mask: Captured) -> tuple[Node, tuple[Node, ...]]:
    """``score`` plus the bias, and 0 in a row that gives an average; or plus a bias that is no more than a tensor.

    The score is capped first, if there is a softcap.
    """
    cap = Softcap(call.softcap, call.dtype.itemsize == 2)
    if args.mask is not None:
        return _tensor_score(emitter, fixed(emitter, dense_rows(emitter, args.mask)), cap)
    if mask.bias is None and mask.empty is None:
        return emitter.submodule("attnpass_score_mod", partial(_plain_score, cap), "none", cap), ()
    exprs = [each for each in (mask.bias, mask.empty) if each is not None]

    def make(value: Callable[..., Tensor], score: Tensor) -> Tensor:
        score = cap(score)
        bias = None if mask.bias is None else value(mask.bias, torch.float32)
        if bias is not None:
            score = score + bias
        if mask.empty is None:
            return score
        same = 0.0 if bias is None else torch.where(bias == -torch.inf, bias, 0.0)  # -inf hides in such a row too
        if call.mask.empty is EmptyRows.ADDED and call.needs_grad:  # the sum passes gradients on
            same = same + (score - score.detach())
        return torch.where(value(mask.empty, torch.bool), same, score)

    name = "attnpass_score_mod" if cap.at is None else f"attnpass_score_mod_{cap.at}_{cap.half}".replace(".", "_")
    return element_function(emitter, call, args.q, args.k, name, True, make, *exprs)


def _tensor_score(emitter: Emitter, bias: Node, cap: Softcap) -> tuple[Node, tuple[Node, ...]]:
    """``score + bias[b, h, q, k]``; dims of size 1 are read at 0."""
    single = tuple(known_equal(size, 1) for size in emitter.spec(bias).shape)
    return emitter.submodule("attnpass_score_mod", partial(_biased_score, single, cap), single, cap), (bias,)


def _plain_score(cap: Softcap) -> GraphModule:
    graph = Graph()
    score, *_ = (graph.placeholder(name) for name in ("score", "b", "h", "q_idx", "kv_idx"))
    graph.output(_capped(graph, score, cap))
    return GraphModule(torch.nn.Module(), graph)


def _capped(graph: Graph, score: Node, cap: Softcap) -> Node:
    """`Softcap` in a graph."""
    if cap.at is None:
        return score
    inner = make_fx(cap)(torch.empty((), dtype=torch.float32))
    return cast(Node, graph.graph_copy(inner.graph, {next(iter(inner.graph.nodes)): score}))


def _biased_score(single: tuple[bool, ...], cap: Softcap) -> GraphModule:
    graph = Graph()
    score, *places, bias = (graph.placeholder(name) for name in ("score", "b", "h", "q_idx", "kv_idx", "bias"))
    score = _capped(graph, score, cap)
    indices = [
        graph.call_function(aten.mul.Tensor, (place, 0)) if only_one else place
        for place, only_one in zip(places, single, strict=True)
    ]
    at = graph.call_function(aten.index.Tensor, (bias, indices))
    graph.output(graph.call_function(aten.add.Tensor, (score, at)))
    return GraphModule(torch.nn.Module(), graph)


def _block_mask(
    emitter: Emitter, call: AttentionCall, args: Operands, mask: Captured
) -> tuple[tuple[Any, ...], tuple[Node, ...]]:
    """The op's block-mask tuple, with nodes where `BlockMask` holds tensors, and what its function captures.

    Shared by all calls of equal lengths and masks.
    """
    key = ("flex", mask.allowed, str(call.Sq), str(call.Sk), call.device, call.needs_grad, emitter.epoch)
    return emitter.once(key, lambda: _make_block_mask(emitter, call, args, mask))


def _make_block_mask(
    emitter: Emitter, call: AttentionCall, args: Operands, mask: Captured
) -> tuple[tuple[Any, ...], tuple[Node, ...]]:
    everything = mask.allowed == TRUE
    if everything:
        lists: Any = emitter.inline(one_block, args.q, args.k)
    else:
        lists = block_lists(emitter, call, args.q, args.k, mask.allowed)
    if not call.needs_grad:
        lists = [*lists[:4], None, None, None, None]

    def make(value: Callable[..., Tensor]) -> Tensor:
        return value(mask.allowed, torch.bool)

    mask_mod, buffers = element_function(emitter, call, args.q, args.k, "attnpass_mask_mod", False, make, mask.allowed)
    lengths = (1, 1) if everything else (emitter.size(args.q, 2), emitter.size(args.k, 2))
    marks: list[Any] = [None if node is None else torch.zeros(1, 1, 1, 1, dtype=torch.int32) for node in lists]
    step = NO_BLOCKS if everything else BLOCK
    build: Callable[..., Any] = flex.BlockMask
    template = build((1, 1), *marks, BLOCK_SIZE=(step, step), mask_mod=flex.noop_mask)
    nodes = {id(mark): node for mark, node in zip(marks, lists, strict=True) if mark is not None}
    entries = [nodes.get(id(entry), entry) for entry in template.as_tuple()]
    return (*lengths, *entries[2:-1], mask_mod), buffers


def one_block(q: Tensor, k: Tensor) -> tuple[Tensor | None, ...]:
    """Blocks of no mask: one block holds everything, and is visited by everybody."""
    ones = torch.ones(1, 1, 1, dtype=torch.int32, device=q.device)
    zeros = torch.zeros(1, 1, 1, 1, dtype=torch.int32, device=q.device)
    return ones, zeros, None, None, ones, zeros, None, None


def _kernel_options(emitter: Emitter, call: AttentionCall, args: Operands) -> dict[str, Any]:
    """What ``flex_attention`` itself would pass with our tiles, whatever this PyTorch version puts in there."""
    fill: Callable[..., Any] = flex._apply_kernel_options
    parameters = inspect.signature(fill).parameters
    given = [emitter.value(node) for node in (args.q, args.k, args.v)]
    rest = [None] * (len(parameters) - 5)
    with torch.set_grad_enabled(call.needs_grad):  # decides whether the log-sum-exp is kept for the backward
        return dict(fill(*given, args.sinks is not None or call.lse is not None, tiles(call) or None, *rest))


def tiles(call: AttentionCall) -> dict[str, Any]:
    """FlexAttention's ``kernel_options`` where its own tiles are not left as they are."""
    dims = range(64, 65) if call.mask.has(Term.TENSOR) else TILED_DIMS
    measured = call.dtype.itemsize == 2 and call.D in dims and (hint(call.Sq) or 0) >= DECODES
    return dict(HOPPER_TILE) if measured and _is_hopper(call.device) else {}


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability(device) == HOPPER
