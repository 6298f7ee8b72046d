"""What programs do to q, k and v before they attend: layouts, scales, caches, rotations, and writes into copies."""

from __future__ import annotations

import random

from torch import Tensor

from tests.fuzz.scope import Scope


def laid_out(rng: random.Random, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v as (B, length, heads, D), or with the last two as one."""
    flat = rng.random() < 0.5
    turned = {name: given[name].transpose(1, 2).contiguous() for name in "qkv"}
    return {**given, **{name: x.flatten(2) if flat else x for name, x in turned.items()}}


def prepared(s: Scope, x: str) -> None:
    """Perhaps some steps on one operand."""
    length, heads = ("Sq", "H") if x == "q" else ("Sk", "Hkv")
    c = s.one(("0.25", "0.5", "D ** -0.5", "2.0", "(1 / D ** 0.5)"))
    for _ in range(s.one((0, 0, 0, 1, 1, 2))):
        ways = [
            f"{x} * {c}",
            f"{x}.contiguous()",
            f"{x}.clone()",
            f"{x} / 2",
            f"{x}.mul({c})",
            f"{x}.transpose(1, 2).contiguous().transpose(1, 2).contiguous()",
            f"{x} * 0.5 + torch.cat([-{x}[..., D // 2 :], {x}[..., : D // 2]], -1) * 0.5",
            f"{x}.reshape(B * {heads}, {length}, D).view(B, {heads}, {length}, D)",
            f"torch.cat([{x}[:, :, :2], {x}[:, :, 2:]], 2)",
            f"{x}.float().to({x}.dtype)",
            f"F.normalize({x}, dim=-1)",
            f"{x}.flip(2).flip(2)",
            f"{x} + 0.1",
        ]
        s.new(s.one(ways), x)
        if not s.pure and s.chance(0.5):
            written(s, x)
    if not s.pure and s.chance(0.08):
        _cached(s, x, length, heads)


def written(s: Scope, x: str) -> None:
    """A write into an operand; into the program's own input now and then."""
    if s.chance(0.7) and x in s.inputs and s.value(x).is_leaf:
        s.new(s.one((f"{x}.clone()", f"{x} * 0.5", f"{x}.contiguous()")), x)
    c = s.one(("0.25", "0.5", "2.0", "0"))
    s.do(
        s.one(
            (
                f"{x}.mul_({c})",
                f"{x} *= {c}",
                f"{x}.add_(1.0)",
                f"{x} += 0.5",
                f"{x} /= 2",
                f"{x}[:, :, 1:3] = 0.5",
                f"{x}[:, :, 0] = 0",
                f"{x}[..., 0] = 1",
                f"{x}[:, 0].zero_()",
                f"{x}.transpose(1, 2)[:, 0] = 0.5",
                f"{x}.view({x}.shape)[0] *= 2",
                f"{x}[..., : D // 2].neg_()",
                f"torch._foreach_mul_([{x}], 0.5)",
                f"F.relu({x}, True)",
                f"torch.mul({x}, 0.5, out={x})",
                f"{x}.copy_({x}.flip(2))",
                f"{x}.__imul__({c})",
                f"{x}.index_fill_(2, torch.tensor([1]), 0.5)",
                f"torch.ops.attnpass_fuzz.show({x})",
                f"{x}.masked_fill_({x} < -1, 0)",
            )
        )
    )


def _cached(s: Scope, x: str, length: str, heads: str) -> None:
    """A cache that is filled, read and perhaps filled further."""
    s.must(f"torch.zeros(B, {heads}, {length} + 3, D, dtype=q.dtype)", "c")
    fills = (
        f"c[:, :, :{length}] = {x}",
        f"c[:, :, :{length}].copy_({x})",
        f"c.index_copy_(2, torch.arange({length}), {x})",
        f"c.narrow(2, 0, {length}).copy_({x})",
        f"c.slice_scatter({x}, 2, 0, {length})",
    )
    s.do(s.one(fills))
    s.must(s.one((f"c[:, :, :{length}]", f"c[:, :, 1 : {length} + 1]")), x)
    if s.chance(0.5):
        s.do(s.one(("c[:, :, 1] = 0.5", "c.mul_(2)", "c[:, :, -1] = 1", "c.zero_()")))


def repeated(s: Scope) -> None:
    """k and v with as many heads as q."""
    if s.sizes.Hkv == s.sizes.H:
        return
    many = s.sizes.H // s.sizes.Hkv
    way = s.one(
        (
            f"{{0}}.repeat_interleave({many}, 1)",
            f"torch.repeat_interleave({{0}}, {many}, dim=1)",
            f"{{0}}[:, :, None].expand(B, Hkv, {many}, Sk, D).reshape(B, H, Sk, D)",
            f"{{0}}.unsqueeze(2).repeat(1, 1, {many}, 1, 1).flatten(1, 2)",
            f"{{0}}.repeat(1, {many}, 1, 1)",
            f"torch.cat([{{0}}] * {many}, 1)",
        )
    )
    for x in "kv":
        s.must(way.format(x), x)
        if not s.pure and s.chance(0.15):
            written(s, x)
