"""Random attention written by hand: with writes, with readers that look on, with SDPA beside it, with gradients."""

from __future__ import annotations

import random

import torch

from tests.fuzz.distract import distract
from tests.fuzz.judge import results
from tests.fuzz.masks import inputs
from tests.fuzz.operands import laid_out, prepared, repeated
from tests.fuzz.scope import ImpossibleError, Program, Scope, Sizes, is_bool
from tests.fuzz.scores import probabilities_step, score_step, softmaxed

EASY_MASKS = (
    "torch.ones(Sq, Sk, dtype=torch.bool).tril()",
    "torch.arange(Sk)[None] <= torch.arange(Sq)[:, None] + 1",
    "pad.bool()[:, None, None]",
    "(pad != 0)[:, None, None, :]",
    "bits",
    "torch.ones(Sq, Sk, dtype=torch.bool).tril() & pad.bool()[:, None, None]",
)


def chain_program(rng: random.Random, seed: int, pure: bool = False, grad: bool = False) -> Program:
    """One program; drawn again until the draws lead somewhere. ``pure``: it writes nothing."""
    while True:
        sizes = Sizes.draw(rng, grouped=True)
        dtype = rng.choice((torch.float32,) * 8 + (torch.bfloat16, torch.float16))
        given = inputs(rng, sizes, dtype)
        if rng.random() < 0.35:
            given = laid_out(rng, given)
        scope = Scope(rng, sizes, given, dtype, pure, grad)
        try:
            program = _drawn(scope, seed)
        except ImpossibleError:
            continue
        if not grad or _trains(program):
            return program


def _trains(program: Program) -> bool:
    """Does eager get through the backward? A value that it needs may have been overwritten."""
    try:
        results(program.function(), program, program.fresh())
    except RuntimeError:
        return False
    return True


def _drawn(s: Scope, seed: int) -> Program:
    returned: list[str] = []
    _header(s)
    for name in "qkv":
        prepared(s, name)
    repeated(s)
    distract(s, ("q", "k", "v"), returned)
    if s.chance(0.5):
        s.must(s.one(EASY_MASKS), "m")
    _product(s)
    for _ in range(s.one((0, 1, 1, 2, 2, 3, 4))):
        score_step(s)
        if s.chance(0.2):
            distract(s, ("s", "q", "k"), returned)
    softmaxed(s)
    if s.chance(0.3):
        probabilities_step(s)
    distract(s, ("p", "s", "v"), returned)
    _values(s)
    _after(s, returned)
    return s.finish(seed, ", ".join(["o", *returned]), s.chance(0.03))


def _header(s: Scope) -> None:
    """Names for the sizes, and q, k and v as (B, heads, length, D)."""
    B, H, Hkv, Sq, Sk, D = (getattr(s.sizes, name) for name in ("B", "H", "Hkv", "Sq", "Sk", "D"))
    if s.inputs["q"].shape == (B, H, Sq, D) and s.inputs["k"].shape == (B, Hkv, Sk, D):
        s.do("B, H, Sq, D = q.shape\nHkv, Sk = k.shape[1], k.shape[2]")
        return
    s.do(f"B, H, Hkv, Sq, Sk, D = {B}, {H}, {Hkv}, {Sq}, {Sk}, {D}")
    for name, heads, length in (("q", "H", "Sq"), ("k", "Hkv", "Sk"), ("v", "Hkv", "Sk")):
        s.must(f"{name}.view(B, {length}, {heads}, D).transpose(1, 2)", name)


def _product(s: Scope) -> None:
    """``s``: the scores (B, H, Sq, Sk)."""
    flat_q, flat_k = "q.reshape(B * H, Sq, D)", "k.reshape(B * H, Sk, D)"
    ways = [
        "q @ k.transpose(-1, -2)",
        "q @ k.mT",
        "torch.matmul(q, k.transpose(2, 3))",
        "q.matmul(k.permute(0, 1, 3, 2))",
        f"torch.bmm({flat_q}, {flat_k}.transpose(1, 2)).view(B, H, Sq, Sk)",
        f"torch.baddbmm(torch.zeros(B * H, Sq, Sk), {flat_q}, {flat_k}.mT, alpha=0.25).view(B, H, Sq, Sk)",
        "torch.einsum('bhqd,bhkd->bhqk', q, k)",
        "torch.einsum('bqhd,bkhd->bhqk', q.transpose(1, 2), k.transpose(1, 2))",
        "torch.einsum('...id,...jd->...ij', q, k)",
        "(k @ q.mT).mT",
        "(q * 0.5) @ k.mT",
        "q @ (k * 0.25).mT",
    ]
    if not s.pure and s.chance(0.15):
        s.must("torch.full((B, H, Sq, Sk), 7.0, dtype=q.dtype)", "s")
        if s.do("torch.matmul(q, k.mT, out=s)"):
            return
    s.must(s.one((*ways[:3], *ways)), "s")


def _values(s: Scope) -> None:
    """``o``: the output (B, H, Sq, D)."""
    s.new("p.to(v.dtype)", "p") if s.value("p").dtype != s.value("v").dtype else None
    ways = [
        "p @ v",
        "torch.matmul(p, v)",
        "torch.bmm(p.reshape(B * H, Sq, Sk), v.reshape(B * H, Sk, D)).view(B, H, Sq, D)",
        "torch.einsum('bhqk,bhkd->bhqd', p, v)",
        "torch.einsum('bhqk,bkhd->bqhd', p, v.transpose(1, 2)).transpose(1, 2)",
    ]
    if not s.pure and s.chance(0.12):
        s.must("torch.full((B, H, Sq, D), 7.0, dtype=q.dtype)", "o")
        if s.do("torch.matmul(p, v, out=o)"):
            s.must("o * 1", "o")
            return
    s.must(s.one((*ways[:2], *ways)), "o")


def _after(s: Scope, returned: list[str]) -> None:
    """What happens to the output, and to what it was made of, behind the attention."""
    if s.chance(0.3):
        s.new("o.transpose(1, 2).reshape(B, Sq, H * D)", "o")
    if s.chance(0.2):
        s.new(s.one(("o * 2", "o + 1", "o.float()", "o.clone()", "F.dropout(o, 0.0)", "o.relu()")), "o")
    if not s.pure:
        if s.chance(0.25):
            at = s.one(("o[..., 0] = 0", "o.mul_(2)", "o += 1", "o.add_(o)", "o[:, 1:].zero_()", "F.relu(o, True)"))
            s.do(at)
        if s.chance(0.15):
            s.do(s.one(("s.zero_()", "p.zero_()", "v = v.clone().zero_()", "m.fill_(True)", "k *= 2")))
    if s.chance(0.1):
        returned.append(s.one(("s", "p", "s.shape[-1] * o", "p.sum()", "s.amax(-1)")))
    if s.chance(0.15) and is_bool(s.env.get("m", torch.ones(()))):
        call = "F.scaled_dot_product_attention(q, k, v, attn_mask=m)"
        if s.new(call, "o2"):
            returned.append("o2")
