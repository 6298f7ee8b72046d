"""Indices, views and casts of whatever tensor is there, drawn by its shape."""

from __future__ import annotations

from tests.fuzz.scope import Scope

DTYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32")


def slots(s: Scope, x: str, may_grow: bool = True) -> str:
    """What may stand in brackets behind ``x``."""
    shape = s.value(x).shape
    kinds = ["slice", "slice", "full", "full", "int", "list", "tensor", "step"] + ["none"] * may_grow
    parts: list[str] = []
    dims = list(shape) if s.chance(0.5) else list(shape)[: s.rng.randint(0, len(shape))]
    tail = s.chance(0.4) and len(dims) < len(shape)
    if tail:
        dims = list(shape)[len(shape) - len(dims) :]
        parts.append("...")
    for n in dims:
        kind = s.one(kinds)
        if kind == "none":
            parts.append("None")
            kind = s.one(("full", "slice"))
        parts.append(_slot(s, kind, n))
    return ", ".join(parts) or "..."


def _slot(s: Scope, kind: str, n: int) -> str:
    start, end = s.rng.randint(-n, n - 1), s.rng.randint(1, n)
    if kind == "slice":
        return s.one((f"{start}:", f":{end}", f"{start % n}:{start % n + 2}", f"-{end}:", f"{end // 2}:{end}"))
    if kind == "int":
        return str(start)
    if kind == "list":
        return str([s.rng.randrange(n) for _ in range(s.one((1, 2, n)))])
    if kind == "tensor":
        return s.one((f"torch.arange({n})", f"torch.arange({end})", f"torch.tensor({start})"))
    if kind == "step":
        return s.one(("::2", "1::2", f":{end}:2"))
    return ":"


def index(s: Scope, x: str) -> str:
    """``x`` indexed."""
    return f"{x}[{slots(s, x)}]"


def view_of(s: Scope, x: str) -> str:
    """A view of ``x``: it shares the memory."""
    shape = s.value(x).shape
    n = shape[-1] if shape else 1
    ways = [
        f"{x}[..., {s.rng.randrange(n)}:]",
        f"{x}[..., :{s.rng.randint(1, n)}]",
        f"{x}.view({s.value(x).numel()})",
        f"{x}.transpose(-1, -2)",
        f"{x}.narrow(-1, {s.rng.randrange(n)}, 1)",
        f"{x}.unsqueeze({s.one((0, 1, -1))})",
        f"{x}.select(-1, {s.rng.randrange(n)})",
        f"{x}.diagonal(0, -2, -1)",
        f"{x}.detach()",
        f"{x}.expand_as({x})",
        f"{x}[...]",
        f"{x}.reshape(-1)",
        f"{x}.contiguous()",
        f"{x}.split({s.rng.randint(1, n)}, -1)[0]",
        f"{x}.chunk(2, -1)[{s.one((0, 1))}]",
        f"{x}.unbind(0)[0]",
        f"{x}.flatten()",
        f"{x}.to(torch.{s.one(DTYPES)})",
    ]
    return s.one(ways)


def viewed(s: Scope, x: str) -> str:
    """``x`` in another shape, order or size."""
    shape = list(s.value(x).shape)
    n, full = (shape[-1] if shape else 1), f"{x}.expand(B, H, Sq, Sk)"
    at, c = s.rng.randint(0, n), s.one((-3, -1, 1, 2))
    ways = [
        view_of(s, x),
        f"{full}.reshape(B * H, Sq, Sk).view(B, H, Sq, Sk)",
        f"{x}.transpose(-1, -2)",
        f"{x}.transpose(-1, -2).contiguous().mT",
        f"{x}.flip({s.one((-1, -2, 0))})",
        f"torch.roll({x}, {c}, {s.one((-1, -2))})",
        f"torch.cat([{x}[..., {at}:], {x}[..., :{at}]], -1)",
        f"torch.cat(({x}[..., :{at}], torch.zeros_like({x}[..., {at}:])), dim=-1)",
        f"F.pad({x}, ({s.one(('1, 0', '1, 2', '0, 3'))}), value={s.one((0, 1, True))})[..., :{n}]",
        f"F.pad({x}, (2, -2), value={s.one((0, 1))})",
        f"F.pad({x}.float(), (2, 0), '{s.one(('reflect', 'replicate', 'circular'))}')[..., :{n}]",
        f"{x}.repeat({', '.join(['1'] * (len(shape) - 1) + ['2'])})[..., :{n}]",
        f"{x}.repeat_interleave(2, -1)[..., :{n}]",
        f"{x}[..., :1].expand_as({x})",
        f"{x}.expand(B, H, Sq, Sk)[:, :1]",
        f"{x}.expand(B, {s.one(('1', 'H', '-1'))}, Sq, Sk)",
        f"{x}[None]",
        f"{x}[0]",
        f"{x}.squeeze()",
        f"{x}.squeeze({s.one((0, 1))})",
        f"{x}.permute({', '.join(map(str, range(len(shape))))})",
        f"{x}.movedim(0, -1)",
        f"{x}.tril({c})",
        f"torch.triu({x}, {c})",
        f"{x}.gather(-1, torch.arange({n}).flip(0).expand_as({x}))",
        f"{x}.index_select(-1, torch.arange({n} - 1, -1, -1))",
        f"torch.take_along_dim({x}, ({x}.int() * 0).long(), -1)",
        f"{x}.clone()",
        f"torch.ops.attnpass_fuzz.tril({x})",
    ]
    return s.one(ways)


def cast(s: Scope, x: str) -> str:
    """``x`` in another type."""
    dtype = s.one(DTYPES)
    name = {"uint8": "byte", "int8": "char", "int32": "int", "int64": "long", "float32": "float", "float16": "half"}
    return s.one(
        (
            f"{x}.to(torch.{dtype})",
            f"{x}.to(dtype=torch.{dtype})",
            f"{x}.type(torch.{dtype})",
            f"{x}.{name.get(dtype, dtype)}()",
            f"({x}.to(torch.{dtype}) {s.one(('+', '*', '-'))} {s.one((1, 2, 200))})",
            f"{x}.to(torch.{dtype}).to(torch.{s.one(DTYPES)})",
        )
    )
