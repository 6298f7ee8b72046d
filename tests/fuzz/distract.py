"""What stands beside an attention and must neither change it nor be changed by it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.fuzz.scope import Scope


def distract(s: Scope, names: Sequence[str], returned: list[str]) -> None:
    """Perhaps a reader, an unused value, another call, or a write into a copy of one of ``names``."""
    if not s.chance(0.35):
        return
    x, z = s.one(names), f"d{len(s.lines)}"
    pure = [
        f"{x}.sum()",
        f"{x}.clone()",
        f"torch.zeros({x}.shape)",
        f"{x}.new_ones({x}.shape[-1])",
        f"{x}.mean(-1)",
        f"torch.zeros_like({x})",
        f"{x}.detach() * 2",
        f"{x}.view({x}.shape)",
        f"torch.ones({x}.size(-1)) * {x}.dim()",
        "F.scaled_dot_product_attention(q, k, v)",
        "F.scaled_dot_product_attention(q, k, v, is_causal=True)",
        "F.scaled_dot_product_attention(q * 0.5, k, v.clone(), scale=1.0)",
        "(q @ k.mT).softmax(-1) @ v",
    ]
    if not s.new(s.one(pure), z):
        return
    if not s.pure and s.chance(0.5):
        writes = (f"{z}.zero_()", f"{z}.mul_(2)", f"{z} += 1", f"{z}[..., 0] = 3", f"torch._foreach_add_([{z}], 1)")
        s.do(s.one(writes))
    if s.chance(0.5):
        returned.append(z)
    elif s.chance(0.15) and s.value(z).shape == s.value("q").shape:
        s.new(f"q + {z}", "q")
    elif s.grad and s.chance(0.2):
        s.do(f"with torch.no_grad():\n    {z} = {x} * 2")
