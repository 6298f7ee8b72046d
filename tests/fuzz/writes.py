"""Every way that PyTorch knows to change a tensor in place, and values taken before and after it."""

from __future__ import annotations

from tests.fuzz.scope import Scope, is_bool, is_float
from tests.fuzz.views import slots, view_of


def write(s: Scope, x: str) -> None:
    """Write into ``x``, into a view of it, or into what it is a view of; perhaps keep a value from before."""
    if not x:
        return
    if s.chance(0.15):
        s.new(_reads(s, x))
    if s.chance(0.3):
        x = s.new(view_of(s, x)) or x
    if s.chance(0.1):
        _loop(s, x)
        return
    done = s.do(in_place(s, x)) or s.do(in_place(s, x)) or s.do(assignment(s, x))
    if not done and s.chance(0.5):  # an expanded tensor takes no writes, its copy does
        x = s.new(f"{x}.clone()") or x
        s.do(in_place(s, x))


def _reads(s: Scope, x: str) -> str:
    """A value of before the write."""
    negated = f"~{x}" if is_bool(s.value(x)) else f"-{x}"
    return s.one((negated, f"{x}.clone()", f"{x} + 0", f"{x} != 0", f"{x}.contiguous()", f"{x}.to(torch.float32)"))


def _loop(s: Scope, x: str) -> None:
    """An unrolled loop of assignments, as windows are written by hand."""
    value = _constant(s, x)
    body = s.one(
        (
            f"{x}[..., i, :max(0, i - 2)] = {value}",
            f"{x}[..., i, i] = {value}",
            f"{x}[..., i : i + 2] = {value}",
            f"{x}.select(-1, i).fill_({value})",
            f"{x} |= torch.arange(Sk) == i" if is_bool(s.value(x)) else f"{x}[..., i] += 1",
            f"{x} ^= torch.arange(Sk) == i % Sk" if is_bool(s.value(x)) else f"{x} *= 1",
        )
    )
    times = s.one((2, 3, 4, 8, 12))
    s.do(f"for i in range({times}):\n    {body}") or s.do(f"for i in range(min(Sq, Sk)):\n    {body}")


def _constant(s: Scope, x: str) -> str:
    if is_bool(s.value(x)):
        return s.one(("True", "False", "0", "1"))
    return s.one(("INF", "0.0", "-1e9", "1.0", "0")) if is_float(s.value(x)) else s.one(("0", "1", "2", "-1", "200"))


def assignment(s: Scope, x: str) -> str:
    """``x[...] = something``."""
    at, value = slots(s, x), _constant(s, x)
    other, test = s.some(), s.some(is_bool)
    return s.one(
        (
            f"{x}[{at}] = {value}",
            f"{x}[{at}] = {value}",
            f"{x}[{at}] = {other}",
            f"{x}[{at}] = {x}[{at}].logical_not()",
            f"{x}[{at}] = torch.tensor({value.replace('INF', '-math.inf')})",
            f"{x}[{test or x}] = {value}",
            f"{x}[:] = {other}",
            f"{x}.__setitem__(({at.replace(':', 'slice(None)') if ':' not in at else '...'},), {value})",
            f"{x}[{at}] {s.one(('+', '*', '|', '&', '-'))}= {s.one((value, other))}",
            f"operator.setitem({x}, (..., {s.one((0, -1))}), {value})",
        )
    )


def in_place(s: Scope, x: str) -> str:
    """A call or a statement that changes ``x``."""
    families = (_named, _named, _logic, _by_index, _keyword, _hidden, assignment, assignment)
    return s.one(families)(s, x)


def _named(s: Scope, x: str) -> str:
    c, y, b = _constant(s, x), s.some(), s.some(is_bool)
    return s.one(
        (
            f"{x}.fill_({c})",
            f"{x}.masked_fill_({b}, {c})",
            f"{x}.masked_fill_(~{b}, {c})",
            f"{x}.copy_({y})",
            f"{x}.add_({s.one((c, y))})",
            f"{x}.mul_({s.one((c, y))})",
            f"{x}.sub_({s.one((c, y))})",
            f"{x}.zero_()",
            f"{x}.tril_({s.one((-1, 0, 1))})",
            f"{x}.triu_({s.one((-1, 0, 1))})",
            f"{x}.clamp_({s.one((0, 1))})",
            f"{x}.neg_()",
            f"{x}.fill_diagonal_({c})",
            f"{x}.cumsum_(-1)",
            f"{x}.{s.one(('eq_', 'ne_', 'lt_', 'ge_', 'le_', 'gt_'))}({s.one((c, y))})",
            f"torch.fill_({x}, {c})",
            f"torch.ops.aten.fill_({x}, {c})",
            f"torch.ops.aten.logical_not_.default({x})",
            f"torch.nn.init.constant_({x}, {c})",
            f"torch.nn.init.zeros_({x})",
        )
    )


def _logic(s: Scope, x: str) -> str:
    y = s.some(is_bool) or x
    sign = s.one(("|", "&", "^"))
    word = {"|": "or", "&": "and", "^": "xor"}[sign]
    return s.one(
        (
            f"{x} {sign}= {y}",
            f"{x}.logical_{word}_({y})",
            f"{x}.bitwise_{word}_({y})",
            f"{x}.__i{word}__({y})",
            f"operator.i{word}({x}, {y})",
            f"operator.__i{word}__({x}, {y})",
            f"{x}.logical_not_()",
            f"{x}.bitwise_not_()",
            f"torch.Tensor.logical_{word}_({x}, {y})",
        )
    )


def _by_index(s: Scope, x: str) -> str:
    n, c, y = s.value(x).shape[-1] if s.value(x).ndim else 1, _constant(s, x), s.some()
    some = sorted(s.rng.sample(range(n), min(n, s.one((1, 2)))))
    dim = s.one((-1, -1, -2, 0))
    return s.one(
        (
            f"{x}.index_fill_({dim}, torch.tensor({some}), {c})",
            f"{x}.index_put_((torch.tensor([0]),), torch.tensor({c.replace('INF', '-math.inf')}, dtype={x}.dtype))",
            f"{x}.index_copy_({dim}, torch.tensor({some}), {x}.flip({dim}).index_select({dim}, torch.tensor({some})))",
            f"{x}.scatter_({dim}, torch.zeros_like({x}, dtype=torch.long), {c})",
            f"{x}.index_add_({dim}, torch.tensor({some}), {x}.index_select({dim}, torch.tensor({some})))",
            f"{x}.masked_scatter_({s.some(is_bool) or x}, {y})",
            f"{x}.put_(torch.tensor({some}), {x}.view(-1)[:{len(some)}])",
            f"torch.select({x}, -1, {some[0]}).fill_({c})",
            f"{x}.T[{some[0]}] = {c}",
        )
    )


def _keyword(s: Scope, x: str) -> str:
    """Results that are sent into ``x``."""
    y, z, b = s.some(), s.some(), s.some(is_bool)
    return s.one(
        (
            f"torch.logical_or({y}, {z}, out={x})",
            f"torch.logical_and({x}, {y}, out={x})",
            f"torch.logical_not({y}, out={x})",
            f"torch.add({y}, {z}, out={x})",
            f"torch.mul({x}, {s.one((y, 2))}, out={x})",
            f"torch.where({b}, {y}, {z}, out={x})",
            f"torch.le({y}, {z}, out={x})",
            f"torch.eq({y}, 0, out={x})",
            f"torch.tril({y}, out={x})",
            f"torch.cumsum({y}, -1, out={x})",
            f"torch.clamp({y}, 0, 1, out={x})",
            f"torch.ge({y}, 1, out={x}[...])",
        )
    )


def _hidden(s: Scope, x: str) -> str:
    """Writes that no name with an underscore at its end gives away."""
    c, y = _constant(s, x), s.some()
    return s.one(
        (
            f"F.relu({x}, True)",
            f"F.relu({x}, inplace=True)",
            f"F.threshold({x}, 0.5, 0.0, True)",
            f"F.hardtanh({x}, 0.0, 1.0, True)",
            f"F.leaky_relu({x}, 0.5, True)",
            f"F.elu({x}, 1.0, True)",
            f"F.dropout({x}, 0.0, True, True)",
            f"torch._foreach_add_([{x}], 1)",
            f"torch._foreach_mul_([{x}, {y}], 0)",
            f"torch._foreach_zero_([{x}])",
            f"torch._foreach_copy_([{x}], [{y}])",
            f"torch._foreach_neg_([{x}])",
            f"torch.ops.attnpass_fuzz.show({x})",
            f"torch.ops.attnpass_fuzz.twice({y}, {x})",
            f"{x}.__iadd__({s.one((c, y))})",
            f"{x}.__imul__({s.one((c, y))})",
            f"operator.iadd({x}, {c})",
            f"operator.imul({x}, {c})",
            f"{x} += {s.one((c, y))}",
            f"{x} *= {s.one((c, y))}",
            f"{x} -= {y}",
        )
    )
