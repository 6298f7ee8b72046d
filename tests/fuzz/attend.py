"""How a program uses its mask: handed to SDPA, or filled into, chosen over or added to scores written by hand."""

from __future__ import annotations

from tests.fuzz.scope import Scope, is_bool, is_float, is_int
from tests.fuzz.writes import write

SDPA = "F.scaled_dot_product_attention"
FILLS = ("INF", "INF", "INF", "torch.finfo(q.dtype).min", "-1e9", "-1e4", "-1e30")


def attend(s: Scope, mask: str) -> str:
    """Lines that attend with ``mask``; what to return."""
    out = _native(s, mask) if s.chance(0.5) else _by_hand(s, mask)
    returned = [out]
    if not s.pure:
        if s.chance(0.15):
            write(s, mask)
        if s.chance(0.1):
            s.do(f"{out}{s.one(('.mul_(2)', ' += q', '[..., 0] = 0', '.add_(1)'))}")
    if s.chance(0.08):
        returned.append(mask)
    if s.chance(0.08):
        returned.append(s.some())
    return ", ".join(returned)


def _native(s: Scope, mask: str) -> str:
    if is_int(s.value(mask)):
        mask = s.must(f"{mask} != 0")
    elif is_float(s.value(mask)) and s.value(mask).dtype != s.dtype:
        mask = s.must(f"{mask}.to(q.dtype)")
    scale = s.one(("", "", ", scale=0.5"))
    ways = (f"{SDPA}(q, k, v, {mask}{scale})", f"{SDPA}(q, k, v, attn_mask={mask}{scale})")
    out = s.new(s.one(ways), "out") or s.new(f"{SDPA}(q, k, v, {mask}.expand(B, 1, Sq, Sk))", "out")
    return out or s.must(f"{SDPA}(q, k, v, {mask}.expand(B, H, Sq, Sk))", "out")


def _by_hand(s: Scope, mask: str) -> str:
    s.must("(q @ k.transpose(-1, -2)) * 0.25", "s")
    _masked(s, mask)
    if s.value("s").shape != (s.sizes.B, s.sizes.H, s.sizes.Sq, s.sizes.Sk):
        s.must("s.expand(B, H, Sq, Sk)", "s")
    ways = ("s.softmax(-1)", "torch.softmax(s, dim=-1)", "F.softmax(s, -1)", "s.float().softmax(-1).to(q.dtype)")
    s.new(s.one((*ways, "F.softmax(s, dim=-1, dtype=torch.float32)")), "p")
    if not s.pure and s.chance(0.1):
        s.do(s.one(("p.masked_fill_(p < 0.05, 0)", "p.mul_(2)", "p[..., 0] = 0", "s.zero_()")))
    return s.must("p.to(v.dtype) @ v", "out")


def _masked(s: Scope, mask: str) -> None:
    if is_float(s.value(mask)):
        s.must(s.one((f"s + {mask}", f"{mask} + s", f"s.add({mask})")), "s")
        s.new("s.to(q.dtype)", "s")
        return
    low, test = s.one(FILLS), mask if is_bool(s.value(mask)) else f"({mask} != 0)"
    ways = [
        f"s.masked_fill(~{test}, {low})",
        f"s.masked_fill({test}.logical_not(), {low})",
        f"torch.where({test}, s, {low})",
        f"s.masked_fill({test} == 0, {low})",
        f"s.where({test}, torch.tensor({low.replace('INF', '-math.inf')}, dtype=q.dtype))",
        f"s + (1.0 - {test}.to(q.dtype)) * {'-1e4' if low == 'INF' else low}",
        f"s + torch.zeros({test}.shape, dtype=q.dtype).masked_fill(~{test}, {low})",
    ]
    if s.pure or s.chance(0.5):
        s.must(s.one(ways), "s")
        return
    hidden = f"(~{test}).expand(B, H, Sq, Sk)"
    lines = (
        f"s.masked_fill_(~{test}, {low})",
        f"s[{hidden}] = {low}",
        f"s += (~{test}) * -1e4",
        f"torch.where({test}, s, {low}, out=s)",
        f"s.view(B * H, Sq, Sk).masked_fill_({hidden}.reshape(B * H, Sq, Sk), {low})",
    )
    s.do(s.one(lines)) or s.must(ways[0], "s")
    if s.chance(0.3):
        write(s, mask)
