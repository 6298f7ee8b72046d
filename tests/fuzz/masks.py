"""Random programs that make a mask out of rules, data and arithmetic, write into it or not, and attend with it."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tests.fuzz.attend import attend
from tests.fuzz.rules import COMPARE, condition, rule
from tests.fuzz.scope import ImpossibleError, Program, Scope, Sizes, is_bool, is_float, is_int
from tests.fuzz.views import cast, index, viewed
from tests.fuzz.writes import write

LOWS = ("INF", "INF", "INF", "torch.finfo({}).min", "-1e9", "-1e4")


def inputs(rng: random.Random, sizes: Sizes, dtype: torch.dtype) -> dict[str, Tensor]:
    """q, k, v and the data that masks are made from."""
    B, H, Hkv, Sq, Sk, D = sizes.B, sizes.H, sizes.Hkv, sizes.Sq, sizes.Sk, sizes.D
    seeded = torch.Generator().manual_seed(rng.randrange(1 << 20))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=seeded).to(dtype)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=seeded)

    made = {"q": normal(B, H, Sq, D), "k": normal(B, Hkv, Sk, D), "v": normal(B, Hkv, Sk, D)}
    lengths = integers(Sk, B) + 1
    pad = (torch.arange(Sk) < lengths[:, None]).long()
    made["pad"] = pad if rng.random() < 0.6 else pad.flip(-1)
    made["lens"] = lengths
    made["ids"] = integers(3, B, max(Sq, Sk))
    made["bits"] = integers(3, B, 1, Sq, Sk) > 0
    made["bias"] = normal(*rng.choice(((1, H, Sq, Sk), (H, 1, Sk), (B, 1, Sq, Sk), (Sq, Sk), (Sk,))))
    return made


def mask_program(rng: random.Random, seed: int, pure: bool = False) -> Program:
    """One program; drawn again until the draws lead somewhere."""
    while True:
        sizes = Sizes.draw(rng)
        dtype = rng.choice((torch.float32,) * 8 + (torch.bfloat16, torch.float16))
        scope = Scope(rng, sizes, inputs(rng, sizes, dtype), dtype, pure)
        try:
            return _drawn(scope, seed)
        except ImpossibleError:
            continue


def _drawn(s: Scope, seed: int) -> Program:
    s.do("B, H, Sq, Sk = q.shape[0], q.shape[1], q.shape[2], k.shape[2]")
    condition(s, s.one((0, 1, 1, 2, 2, 3)))
    for _ in range(s.one((0, 0, 1, 2, 3, 5, 8))):
        step(s)
    mask = _fit_for_attention(s)
    if s.chance(0.3):
        other = s.must(rule(s))
        mask = s.new(s.one((f"{mask} & {other}", f"{other} | {mask}", f"{mask} & ~{other}"))) or mask
    if not s.pure and s.chance(0.4):
        write(s, mask)
    if s.chance(0.5):
        mask = additive(s, mask)
    if not s.pure and s.chance(0.4):
        write(s, mask)
    out = attend(s, mask)
    return s.finish(seed, out, s.chance(0.03))


def step(s: Scope) -> None:
    """One more line: a new value, or a write into one that is there."""
    if not s.pure and s.chance(0.45):
        write(s, s.some() if s.chance(0.95) else s.one(("pad", "bits", "ids", "bias")))
        return
    x = s.some()
    way = s.rng.randrange(8)
    if way < 2:
        s.new(viewed(s, x))
    elif way == 2:
        s.new(index(s, x))
    elif way == 3:
        s.new(cast(s, x))
    elif way == 4:
        s.new(arithmetic(s, x))
    elif way == 5:
        joined(s)
    else:
        condition(s, s.one((0, 1)))


def arithmetic(s: Scope, x: str) -> str:
    """An operation on numbers, where the types decide what comes out."""
    c, y = s.one((0, 1, 1, 2, 3, -1, 7, 100, 200, 255)), s.some()
    return s.one(
        (
            f"{x} + {c}",
            f"{x} - {c}",
            f"{c} - {x}",
            f"{x} * {c}",
            f"{x} // {max(c, 1)}",
            f"{x} % {max(c, 2)}",
            f"{x} {s.one(COMPARE)} {c}",
            f"{x} {s.one(COMPARE)} {float(c)}",
            f"{x} {s.one(COMPARE)} {y}",
            f"{x} {s.one(('+', '-', '*'))} {y}",
            f"-{x}",
            f"{x}.abs()",
            f"{x}.clamp({s.one((0, 1))}, {s.one((1, 2, 3))})",
            f"torch.{s.one(('minimum', 'maximum'))}({x}, {y})",
            f"{x}.cumsum({s.one((-1, -2))})",
            f"torch.diff({x}, dim=-1, prepend={x}[..., :1])",
            f"{x}.{s.one(('any', 'all'))}(-1, keepdim=True)",
            f"{x}.{s.one(('amax', 'amin'))}(-1, keepdim=True)",
            f"torch.zeros_like({x})",
            f"torch.ones_like({x}, dtype=torch.bool)",
            f"{x} / {max(c, 1)}",
            f"{x}.logical_not()",
        )
    )


def joined(s: Scope) -> str:
    """A choice between two values, or both side by side."""
    b, x, y = s.some(is_bool), s.some(), s.some()
    c = s.one(("0", "1", "0.0", "INF", "True", "-1e9"))
    return s.new(
        s.one(
            (
                f"torch.where({b}, {x}, {y})",
                f"torch.where({b}, {x}, {c})",
                f"torch.where({b}, {c}, {s.one(('0.0', '1.0', 'INF'))})",
                f"{x}.masked_fill({b}, {c})",
                f"torch.cat([{x}, {y}], {s.one((-1, -2, 0))})",
                f"torch.stack([{x}, {y}])[{s.one((0, 1))}]",
                f"{x}.type_as({y})",
                f"{x}.expand_as({y})",
            )
        )
    )


def _fit_for_attention(s: Scope) -> str:
    """The last tensor that broadcasts to the scores, as a bool mask that hides some keys but not most rows."""
    B, H, Sq, Sk = s.sizes.B, s.sizes.H, s.sizes.Sq, s.sizes.Sk

    def fits(x: Tensor) -> bool:
        shape = x.shape
        return 2 <= x.ndim <= 4 and all(n in (1, m) for n, m in zip(shape[::-1], (Sk, Sq, H, B), strict=False))

    mask = next((name for name in reversed(s.made) if fits(s.value(name)) and s.value(name).numel() > 1), "")
    if not mask:
        raise ImpossibleError("no mask")
    if is_int(s.value(mask)):
        mask = s.must(f"{mask} {s.one(('!= 0', '== 0', '> 0', '== 1'))}")
    elif is_float(s.value(mask)) and s.chance(0.8):
        mask = s.must(f"{mask} {s.one(('== 0', '> 0', '>= 0'))}")
    if is_bool(s.value(mask)):
        shown = s.value(mask).expand(B, H, Sq, Sk)
        if shown.float().mean() < 0.2 or shown.any(-1).float().mean() < 0.5:
            mask = s.must(s.one((f"~{mask}", f"{mask} | (torch.arange(Sk) < 2)")))
    return mask


def additive(s: Scope, mask: str) -> str:
    """A bool mask as 0 and a low number, in one of the ways that models write it; perhaps with a bias."""
    if is_float(s.value(mask)):
        return mask
    dtype = s.one((f"torch.{str(s.dtype)[6:]}",) * 3 + ("torch.float32", "torch.bfloat16", "q.dtype"))
    low = s.one(LOWS).format(s.one((dtype, dtype, "torch.float16")))
    ways = [
        f"torch.where({mask}, 0.0, {low})",
        f"torch.where({mask}, torch.tensor(0.0, dtype={dtype}), {low})",
        f"torch.zeros({mask}.shape, dtype={dtype}).masked_fill(~{mask}, {low})",
        f"(1.0 - {mask}.to({dtype})) * {'-1e9' if low == 'INF' else low}",
        f"(~{mask}).to({dtype}) * {'-1e4' if low == 'INF' else low}",
        f"torch.zeros_like({mask}, dtype={dtype}).masked_fill({mask}.logical_not(), {low})",
        f"torch.full({mask}.shape, {low}, dtype={dtype}).masked_fill({mask}, 0)",
    ]
    x = s.new(s.one(ways)) or mask
    if not s.pure and s.chance(0.3):
        x = s.new(f"torch.zeros({mask}.shape, dtype={dtype})") or x
        s.do(s.one((f"{x}.masked_fill_(~{mask}, {low})", f"{x}[~{mask}] = {low}", f"{x} += (~{mask}) * -1e4")))
    return (s.new(s.one((f"{x} + bias", f"bias + {x}"))) if s.chance(0.2) else "") or x
