"""What programs do between the product of q and k and the product with v."""

from __future__ import annotations

from tests.fuzz.scope import Scope, is_bool
from tests.fuzz.writes import write

LOWS = ("INF", "INF", "torch.finfo(s.dtype).min", "-1e9", "-1e4")


def score_step(s: Scope) -> None:
    """One step on the scores ``s``."""
    if not s.pure and s.chance(0.4):
        _in_place(s)
        return
    mask, c = _mask(s), s.one(("0.25", "D ** -0.5", "0.5", "2.0"))
    low = s.one(LOWS)
    usual = [
        f"s * {c}",
        "s / math.sqrt(D)",
        f"s.mul({c})",
        "s + bias",
        "bias + s",
        f"s.masked_fill(~{mask}, {low})",
        f"torch.where({mask}, s, {low})",
        f"s + torch.zeros({mask}.shape, dtype=s.dtype).masked_fill(~{mask}, {low})",
        f"s + (1.0 - {mask}.to(s.dtype)) * {'-1e4' if low == 'INF' else low}",
    ]
    odd = [
        "torch.tanh(s / 5.0) * 5.0",
        f"s.{s.one(('half', 'bfloat16', 'double', 'float'))}().to(q.dtype)",
        "s.float()",
        "s - s.amax(-1, keepdim=True)",
        "s - s.max(dim=-1, keepdim=True).values.detach()",
        "s - s.mean(-2, keepdim=True)",
        "s.transpose(-1, -2).contiguous().transpose(-1, -2)",
        "s.reshape(B * H, Sq, Sk).view(B, H, Sq, Sk)",
        "s.clamp(-4, 4)",
        "s.detach()" if s.chance(0.3) else "s.clone()",
        "s.relu()" if s.chance(0.3) else "s + 1",
        "s * torch.tensor(0.5)",
        "s.permute(0, 2, 1, 3).permute(0, 2, 1, 3)",
        "s.masked_fill(s < -3, -1e9)" if s.chance(0.3) else "s * 1",
        "s - 3.0",
        "s.flip(-1)" if s.chance(0.3) else "s.contiguous()",
    ]
    s.new(s.one(usual if s.chance(0.55) else odd if s.chance(0.5) else _forms(s, mask, low)), "s")


def _forms(s: Scope, mask: str, low: str) -> list[str]:
    """What is a factor of q or k, a product beside theirs, or a number that is no other."""
    by = ("q.mean(-1, keepdim=True).exp()", "torch.arange(1, H + 1, dtype=q.dtype)[:, None, None]", "q[:1, :, :1, :1]")
    n = s.one(("1", "2", "D"))
    return [
        f"s * {s.one((*by, 'k.mean(-1).sigmoid()[:, :, None]', 'bias'))}",
        f"s / ({s.one(by)} + 3)",
        f"s + q[..., :{n}] @ k[..., :{n}].mT",
        f"s + (q[..., :{n}] * 0.5) @ k[:, :1, :, :{n}].mT * 2",
        "s + torch.einsum('bhqd,bhkd->bhqk', q[..., 1:], k[..., 1:])",
        "s.clamp(min=torch.finfo(s.dtype).min)",
        f"torch.max(s, torch.tensor({s.one(('-1e30', 'torch.finfo(s.dtype).min', '-1.0'))}, dtype=s.dtype))",
        f"s + {mask}",
        f"s.masked_fill((pad == 0)[:, None, None], {s.one(('-1e4', '-2.0', '0.5'))})",
        f"s.masked_fill(~{mask}, {low}).masked_fill((pad == 0)[:, None, None], {low})",
    ]


def _mask(s: Scope) -> str:
    """A mask that is there already, or a new one."""
    if "m" in s.env and is_bool(s.env["m"]) and s.chance(0.7):
        return "m"
    return s.one(("bits", "torch.ones(Sq, Sk, dtype=torch.bool).tril()", "(pad != 0)[:, None, None]"))


def _in_place(s: Scope) -> None:
    mask, low, c = _mask(s), s.one(LOWS), s.one(("0.25", "D ** -0.5", "0.5", "2.0"))
    if mask == "m" and s.chance(0.25):
        write(s, "m")
    if s.chance(0.1):
        s.must("torch.tensor([0.5], dtype=q.dtype)", "t")
        s.new("s * t", "s")
        s.do(s.one(("t.mul_(3.0)", "t.fill_(2)", "t += 1")))
        return
    s.do(
        s.one(
            (
                f"s.mul_({c})",
                f"s *= {c}",
                "s /= math.sqrt(D)",
                "s += bias",
                "s.add_(bias)",
                f"s.masked_fill_(~{mask}, {low})",
                f"s[:, {s.one(('1:', '::2', '-1:'))}] += torch.arange(Sk, dtype=s.dtype) * 0.1",
                "s[..., 1:, :-1] += bias[..., 1:, :-1]",
                f"s[..., 1:].masked_fill_(torch.ones(Sq, Sk - 1, dtype=torch.bool).triu(), {low})",
                f"s[(~{mask}).expand(B, H, Sq, Sk)] = {low}",
                f"s[..., 0] = {s.one(('0', 'INF', '1'))}",
                f"s[..., {s.one(('-1:', '1::2', ':2'))}] = {s.one(('-1e4', 'INF'))}",
                "s[:, 0] *= 0.5",
                f"torch.mul(s, {c}, out=s)",
                "torch.add(s, bias, out=s)",
                "s.sub_(s.amax(-1, keepdim=True))",
                "s.transpose(-1, -2)[..., 0] = 0",
                "s.view(B * H, Sq, Sk)[0] = 0",
                f"torch._foreach_mul_([s], {c})",
                f"s.__imul__({c})",
                "s.clamp_(-4, 4)",
                f"torch.where({mask}, s, {low}, out=s)",
                "s.tanh_()",
                f"s.diagonal(0, -2, -1).fill_({s.one(('0', '1'))})",
                "F.relu(s, True)" if s.chance(0.3) else "s.add_(1)",
                "torch.ops.attnpass_fuzz.twice(s * 0.5, s)",
            )
        )
    )


def softmaxed(s: Scope) -> None:
    """``p``: the probabilities."""
    usual = ("s.softmax(-1)", "torch.softmax(s, -1)", "F.softmax(s, dim=-1)", "s.softmax(3)", "s.softmax(dim=-1)")
    odd = (
        "F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)",
        "s.float().softmax(-1).type_as(q)",
        "torch.softmax(s - s.amax(-1, keepdim=True), -1)",
        "s.mT.softmax(-2).mT",
        "s.mT.contiguous().softmax(-2).transpose(-1, -2)",
        "s.log_softmax(-1).exp()",
        "(e := (s - s.amax(-1, keepdim=True)).exp()) / e.sum(-1, keepdim=True)",
        "(e := s.exp()) / e.sum(-1)[..., None]",
        "(s - s.logsumexp(-1, keepdim=True)).exp()",
        "(s - s.amax(-1, keepdim=True)).exp() / (s - s.amax(-1, keepdim=True)).exp().sum(-1, keepdim=True)",
        "s.softmax(-2)" if s.chance(0.3) else "s.softmax(-1)",
        "torch.ops.attnpass_fuzz.softmax(s, -1)" if not s.grad and s.chance(0.3) else "s.softmax(-1)",
        "torch.cat([s, torch.zeros(B, H, Sq, 1, dtype=s.dtype)], -1).softmax(-1)[..., :-1]",
        "s.softmax(-1, dtype=torch.float64).to(q.dtype)",
        "torch.nan_to_num(s.softmax(-1), 0.0)",
        "s.reshape(B * H, Sq, Sk).softmax(-1).view(B, H, Sq, Sk)",
        "torch._softmax(s, -1, False)",
    )
    if not s.pure and s.chance(0.05):
        s.must("torch.empty_like(s)", "p")
        if s.do("torch.softmax(s, -1, out=p)"):
            return
    s.must(s.one(usual if s.chance(0.6) else odd), "p")


def probabilities_step(s: Scope) -> None:
    """One step on the probabilities ``p``."""
    mask = _mask(s)
    steps = [
        "F.dropout(p, 0.0)",
        "F.dropout(p, 0.1, False)",
        "F.dropout(p, p=0.0, training=True)",
        "p.to(q.dtype)",
        "p.half().to(q.dtype)",
        f"p.masked_fill(~{mask}, 0.0)",
        f"p * {mask}.to(p.dtype)",
        "p * 2",
        "p.clone()",
        "p.contiguous()",
        "p.detach()" if s.chance(0.3) else "p * 1.0",
        "p / p.sum(-1, keepdim=True)",
        "torch.nan_to_num(p)",
        "torch.where(p.isnan(), 0.0, p)",
        f"p.masked_fill((pad == 0)[:, None, None], 0.0).masked_fill(~{mask}, 0.0)",
    ]
    writes = [
        "p.mul_(2)",
        "p[..., 0] = 0",
        f"p.masked_fill_(~{mask}, 0.0)",
        f"p *= {mask}",
        "p.view(-1)[:3] = 0",
        "F.dropout(p, 0.0, True, True)",
        "p[:, 0].zero_()",
        "p.add_(0.1)",
        "torch._foreach_mul_([p], 0.5)",
        "p.nan_to_num_(0.0)",
    ]
    if s.pure or s.chance(0.5):
        s.new(s.one(steps), "p")
    else:
        s.do(s.one(writes))
