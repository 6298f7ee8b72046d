"""Attention whose kernel the program names itself: ops of PyTorch and of libraries, and FlexAttention.

Where all that such an op computes is known, it is an attention call as any other, of which `AttentionCall.chosen` says
who computes it; the policy leaves it alone unless it asks for it. Where anything is not known, a near miss says what.

``F.scaled_dot_product_attention`` names no kernel, and is not meant.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from attnpass.find.chosen_ops import LIBRARIES, NAMED, WORDS, Named
from attnpass.find.sdpa import context_of
from attnpass.graph.operand import Operand, Step, spec_of
from attnpass.graph.ops import uniform
from attnpass.graph.reading import Reading
from attnpass.graph.regions import name_of_higher_order
from attnpass.graph.symbolic import known, known_equal
from attnpass.graph.tensor import TensorSpec
from attnpass.graph.values import attribute, module_path, source_of, tensor, unwrapped, value_of
from attnpass.ir.call import AttentionCall, Pattern
from attnpass.ir.mask import MaskSpec
from attnpass.ir.wiring import Wiring

aten = torch.ops.aten
FLEX = "flex_attention"


class NotKnownError(Exception):
    """What the op computes is not known as a whole; the message says what is not."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A call that was read.

    Attributes:
        call: what it means.
        node: the node that takes the output out of what the op gives.
        wiring: its operands.
        dead: the op, and what takes the rest out of it, which nobody reads.
        lse: the node that takes the log-sum-exp, if that is read.
    """

    call: AttentionCall
    node: Node
    wiring: Wiring[Node]
    dead: tuple[Node, ...]
    lse: Node | None = None


def chosen_by(node: Node) -> str:
    """Who computes attention at this node because the program says so, in words; "" if nobody does."""
    if node.op != "call_function":
        return ""
    if name_of_higher_order(node.target) == FLEX:
        return "FlexAttention"
    schema = _schema(node.target)
    if schema is None:
        return ""
    if schema.name in NAMED:
        return NAMED[schema.name].who
    space, _, name = schema.name.partition("::")
    if space == "aten":
        return "PyTorch's attention" if name.startswith("_scaled_dot_product_") and "backward" not in name else ""
    if "backward" in name or "bwd" in name or not any(word in name for word in WORDS):
        return ""
    return next((f"{who} ({schema.name})" for part, who in LIBRARIES.items() if part in space), "")


def read_chosen(gm: GraphModule, node: Node, reading: Reading, grad: bool | None) -> Chosen:
    """The call that a node of `chosen_by` is. Read only; adds no guard.

    Args:
        gm: the program.
        node: the op.
        reading: what the program computes.
        grad: do gradients flow, if that is known better than from the operands.

    Raises:
        NotKnownError: something that it computes is not known.
    """
    region = reading.regions[node]
    if region.autocast or region.functorch:
        raise NotKnownError("autocast or a transform is on around it")
    q, k, v, scale, causal, named = _flex(gm, node, reading) if _schema(node.target) is None else _op(node)
    steps = (Step(aten.transpose.int, (1, 2)),) if named.bshd else ()
    wiring = Wiring(Operand(q, steps), Operand(k, steps), Operand(v, steps), out=steps)
    out, lse = _outputs(node, wiring, reading, named)
    specs = [spec_of(operand) for operand in (wiring.q, wiring.k, wiring.v)]
    values = [value_of(each) for each in (q, k, v)]
    needs_grad = region.grad and (any(unwrapped(x).requires_grad for x in values) if grad is None else grad)
    _check(named, specs, causal, needs_grad)
    call = AttentionCall(
        q=specs[0],
        k=specs[1],
        v=specs[2],
        out=TensorSpec.of(value_of(out)),
        mask=MaskSpec.causal() if causal else MaskSpec(),
        scale=scale,
        lse=None if lse is None else TensorSpec.of(value_of(lse)),
        enable_gqa=not known_equal(specs[0].shape[1], specs[1].shape[1]),
        needs_grad=needs_grad,
        context=context_of(region, specs[0], values, ""),
        node=node.name,
        module=module_path(node.meta),
        source=source_of(node.meta),
        pattern=Pattern.CHOSEN,
        chosen=named.who,
    )
    return Chosen(call, out, wiring, (node, *(user for user in node.users if user not in (out, lse))), lse)


def _schema(target: Any) -> Any:
    if isinstance(target, OpOverloadPacket):
        target = getattr(target, "default", None)
    return target._schema if isinstance(target, OpOverload) and not target._schema.overload_name else None


def _op(node: Node) -> tuple[Node, Node, Node, float | None, bool, Named]:
    schema = _schema(node.target)
    named = NAMED.get(schema.name)
    if named is None:
        raise NotKnownError("what its arguments mean is not known")
    given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()} | given | dict(node.kwargs)
    q, k, v = (given.pop(name, None) for name in named.operands)
    causal, scale = given.pop(named.causal, None), given.pop(named.scale, None)
    for name, value in given.items():
        silent = named.silent.get(name, ())
        if isinstance(value, Node) or not any(value is each or (value == each and each is not None) for each in silent):
            shown = "a tensor or a size" if isinstance(value, Node) else value
            raise NotKnownError(f"{name} is {shown}")
    if not isinstance(causal, bool):
        raise NotKnownError(f"{named.causal} is decided at run time")
    return *_nodes(q, k, v), _scale(scale), causal, named


def _flex(gm: GraphModule, node: Node, reading: Reading) -> tuple[Node, Node, Node, float | None, bool, Named]:
    """FlexAttention without a score_mod and a block mask: one block that holds all keys, of which none is hidden."""
    if node.kwargs or len(node.args) < 9:
        raise NotKnownError("its arguments are not those that are known")
    q, k, v, score_mod, block_mask, scale, _options, *buffers = node.args
    owner = node.graph.owning_module or gm
    score = attribute(owner, str(score_mod.target)) if isinstance(score_mod, Node) else None
    if any(buffers) or not _is_score(score):
        raise NotKnownError("it has a score_mod")
    if not isinstance(block_mask, (tuple, list)) or len(block_mask) < 13:
        raise NotKnownError("its block mask is not as it is known")
    count, index, *full = block_mask[2:6]
    rows, columns, mask_mod = block_mask[-3:]
    seen = attribute(owner, str(mask_mod.target)) if isinstance(mask_mod, Node) else None
    sizes = [value_of(each).shape[2] for each in _nodes(q, k)]
    whole = all(known(size <= block) for size, block in zip(sizes, (rows, columns), strict=True))
    numbers = [_number(each, node, reading) for each in (count, index)]
    if not (whole and numbers == [1.0, 0.0] and full == [None, None] and _is_true(seen)):
        raise NotKnownError("it has a block mask")
    return *_nodes(q, k, v), _scale(scale), False, Named("FlexAttention", gqa=True)


def _number(held: Any, place: Node, reading: Reading) -> float | None:
    value = reading.value_at(held, place) if isinstance(held, Node) else None
    return None if value is None else uniform(value)


def _is_score(body: Any) -> bool:
    """Does a score_mod give the score as it is?"""
    inputs, ops, result = _taken_apart(body)
    return not ops and bool(inputs) and result is inputs[0]


def _is_true(body: Any) -> bool:
    """Is a mask_mod nothing but ``b.new_ones(...)``, as that of no mask is?"""
    _, ops, result = _taken_apart(body)
    return len(ops) == 1 and result is ops[0] and ops[0].op == "call_method" and ops[0].target == "new_ones"


def _taken_apart(body: Any) -> tuple[list[Node], list[Node], Any]:
    """The inputs, the ops and the result of the graph of a small function."""
    if not isinstance(body, GraphModule):
        return [], [], None
    inputs, nodes = body.graph.find_nodes(op="placeholder"), body.graph.nodes
    result: Any = body.graph.output_node().args[0]
    result = result[0] if isinstance(result, (tuple, list)) and len(result) == 1 else result
    return inputs, [node for node in nodes if node.op not in ("placeholder", "output")], result


def _nodes(*operands: Any) -> tuple[Any, ...]:
    if not all(isinstance(each, Node) and tensor(each) is not None for each in operands):
        raise NotKnownError("an operand is no tensor of the graph")
    return operands


def _scale(scale: Any) -> float | None:
    if scale is None:
        return None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not scale > 0:
        raise NotKnownError(f"the scale is {'decided at run time' if isinstance(scale, Node) else scale}")
    return float(scale)


def _outputs(node: Node, wiring: Wiring[Node], reading: Reading, named: Named) -> tuple[Node, Node | None]:
    """The nodes that take the output, and the log-sum-exp if that is read too.

    Nothing else of the op is read, and its operands are still the same where the output is taken.
    """
    takes = [user for user in node.users if user.users]
    taken = {user.args[1]: user for user in takes if user.target is operator.getitem}
    if len(taken) != len(takes) or set(taken) not in ({0}, {0, 1} if named.lse else {0}):
        raise NotKnownError("more than its output is read")
    out, lse = taken[0], taken.get(1)
    if out not in reading.places or reading.regions[out] != reading.regions[node]:
        raise NotKnownError("its output is taken at another place")
    if any(reading.value_at(each, node) is not reading.value_at(each, out) for each in wiring.nodes()):
        raise NotKnownError("an operand is written to before its output is taken")
    if lse is not None and (reading.written_behind(lse) or not reading.is_read_behind(lse, out)):
        raise NotKnownError("its log-sum-exp is written to, or read before its output is taken")
    return out, lse


def _check(named: Named, specs: list[TensorSpec], causal: bool, needs_grad: bool) -> None:
    q, k, v = specs
    if any(spec.ndim != 4 for spec in specs) or len({spec.dtype for spec in specs}) > 1 or q.dtype.itemsize < 2:
        raise NotKnownError("its operands are not 4-D tensors of one dtype, of 16 bits or more")
    if causal and not known_equal(q.shape[2], k.shape[2]):
        raise NotKnownError("it is causal, and Sq and Sk may differ")
    if not named.gqa and not (known_equal(q.shape[1], k.shape[1]) and known_equal(q.shape[1], v.shape[1])):
        raise NotKnownError("k and v have other heads than q")
    if needs_grad and not named.trains:
        raise NotKnownError("gradients flow through it, which its own op does not pass on")


__all__ = ["Chosen", "NotKnownError", "chosen_by", "read_chosen"]
