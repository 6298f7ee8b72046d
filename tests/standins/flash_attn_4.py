"""flash-attn-4: `_flash_attn_fwd` and `_flash_attn_bwd` of ``flash_attn.cute.interface``, `flash_attn_func` for show.

Traps kept: always a tuple, qv as the fourth positional argument, an unbounded side of a window is None and one -1 is a
bound, causal is lost beside a mask function, bottom-right, head dims that are no multiple of 8, wrong gradients at most
head dims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.standins import module
from tests.standins.formula import attention, band, gradients, used

TRAINED = (32, 64, 96, 128, 192, 256)


def _seen(q: Tensor, k: Tensor, causal: bool, left: int | None, right: int | None) -> Tensor:
    if left is not None and right is not None and left < 0 and right < 0:
        left = right = None
    return band(q.shape[1], k.shape[1], left, 0 if causal else right)


class BlockSparseTensorsTorch(NamedTuple):
    """The lists of blocks, for each block of queries: how many, and which."""

    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor
    full_block_idx: Tensor
    block_size: tuple[int, int]


def _masked(
    q: Tensor, k: Tensor, mask_mod: Callable[..., Any], lists: BlockSparseTensorsTorch, tables: list[Tensor]
) -> Tensor:
    """(B, H, Sq, Sk): the function is asked in partly visible blocks only, and nothing outside both lists is seen.

    The function gets vectors of one number in the kernel, all places at once here. In the last block it is asked about
    keys behind the last one, too: that must be inside its tables.
    """
    assert lists.block_size == (128, 128)
    (B, Sq, H, _), Sk = q.shape, k.shape[1]
    sizes = (B, H, Sq, -(-Sk // 128) * 128)
    places = [torch.arange(n).view([1, *(-1 if i == j else 1 for j in range(4))]) for i, n in enumerate(sizes)]
    asked = mask_mod(*places, None, tables)[0].expand(sizes)[..., :Sk]
    partly, wholly = (
        _blocks(count, index, sizes)[..., :Sk] for count, index in ((lists[0], lists[1]), (lists[2], lists[3]))
    )
    return (asked & partly) | wholly


def _blocks(count: Tensor, index: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Which places lie in the listed blocks."""
    rows, across = -(-sizes[2] // 128), sizes[3] // 128
    assert count.dtype == index.dtype == torch.int32 and count.is_contiguous() and index.is_contiguous()
    assert count.shape[2:] == (rows,) and index.shape[2:] == (rows, across)
    listed = torch.zeros(*index.shape, dtype=torch.bool)
    for b, h, row in torch.cartesian_prod(*map(torch.arange, count.shape)).tolist():
        listed[b, h, row, index[b, h, row, : count[b, h, row]].long()] = True
    wide = listed.repeat_interleave(128, 2).repeat_interleave(128, 3)[:, :, : sizes[2]]
    return wide.expand(sizes)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    assert q.dtype in (torch.float16, torch.bfloat16) and q.dtype == k.dtype == v.dtype
    for size in (q.shape[-1], v.shape[-1]):
        assert 8 <= size <= 256 and size % 8 == 0, f"head dim {size} is not supported on SM90"
    assert q.shape[2] % k.shape[2] == 0 and q.shape[0] == k.shape[0] == v.shape[0]


def _autograd_around(q: Tensor, k: Tensor, v: Tensor, learnable_sink: Tensor | None = None) -> Any:
    raise AssertionError("an autograd function too many")


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int | None, int | None] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """What kernels from the Hub have; our own op calls what stands behind it."""
    sides = {"window_size_left": window_size[0], "window_size_right": window_size[1]}
    more: dict[str, Any] = {"learnable_sink": learnable_sink, "softcap": softcap, **sides}
    return _flash_attn_fwd(q, k, v, qv, None, softmax_scale, causal, **more)[:2]


def _flash_attn_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    qv: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    learnable_sink: Tensor | None = None,
    num_splits: int = 1,
    mask_mod: Callable[..., Any] | None = None,
    block_sparse_tensors: BlockSparseTensorsTorch | None = None,
    aux_tensors: list[Tensor] | None = None,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None, None, None, None]:
    assert qv is None and num_splits == 1
    _check(q, k, v)
    if learnable_sink is not None:
        assert learnable_sink.dtype == torch.bfloat16 and learnable_sink.shape == (q.shape[2],)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    seen = _seen(q, k, causal, window_size_left, window_size_right)
    if mask_mod is not None:  # causal and windows are lost beside it
        assert block_sparse_tensors is not None and aux_tensors is not None and q.shape[-1] <= 128
        seen = _masked(q, k, mask_mod, block_sparse_tensors, aux_tensors)
    if seqused_k is not None:
        assert not causal and window_size_left is None and window_size_right is None
        seen = used(seen, seqused_k, q.shape[0])
    out, lse = attention(q, k, v, scale, seen, softcap=softcap or 0.0, sinks=learnable_sink)
    return out, lse if return_lse else None, None, None, None


def _flash_attn_bwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    dout: Tensor,
    lse: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    softcap: float = 0.0,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    pack_gqa: bool = False,
    deterministic: bool = False,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
    dlse: Tensor | None = None,
    learnable_sink: Tensor | None = None,
) -> tuple[Tensor, ...]:
    _check(q, k, v)
    assert softmax_scale is not None and lse.dtype == torch.float32
    seen = _seen(q, k, causal, window_size_left, window_size_right)
    results = gradients(dout, q, k, v, softmax_scale, seen, (out, lse), softcap=softcap)
    buffers = [torch.empty_like(x) if b is None else b for b, x in zip((dq, dk, dv), (q, k, v), strict=True)]
    assert all(buffer.is_contiguous() for buffer in buffers)
    if q.shape[-1] not in TRAINED or q.shape[-1] != v.shape[-1]:
        results = tuple(grad + 1 for grad in results)  # type: ignore[assignment]
    return tuple(buffer.copy_(grad) for buffer, grad in zip(buffers, results, strict=True))


def _old_copy(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False) -> Any:
    raise AssertionError("the copy of flash_attn.cute that flash-attn 2 brings along was called")


def install(monkeypatch: pytest.MonkeyPatch, old_copy: bool = False) -> None:
    """Let ``import flash_attn.cute.interface`` find this, or the old copy that lies in flash-attn 2."""
    functions = {
        "flash_attn_func": _old_copy if old_copy else _autograd_around,
        "_flash_attn_fwd": _flash_attn_fwd,
        "_flash_attn_bwd": _flash_attn_bwd,
    }
    module(monkeypatch, "flash_attn.cute", __version__="0.0.0")
    module(monkeypatch, "flash_attn.cute.interface", **functions)
    module(monkeypatch, "flash_attn.cute.block_sparsity", BlockSparseTensorsTorch=BlockSparseTensorsTorch)
    module(monkeypatch, "flash_attn.cute.utils", scalar_to_ssa=lambda x, dtype: torch.as_tensor(x).to(dtype)[None])
    module(monkeypatch, "cutlass", Int32=torch.int32, const_expr=bool)
    module(monkeypatch, "cutlass.cute", jit=lambda function: function)
