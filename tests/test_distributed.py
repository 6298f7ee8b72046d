"""Models under DDP, FSDP and tensor parallelism: calls are found in what each leaves of a graph, and stay right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.compiled import kernels_used

OPTIONS = {"attnpass.kernel": "native_flash", "attnpass.compiler": "aot_eager"}
WIDTH, HEADS, LAYERS = 64, 4, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def data_parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model, bucket_cap_mb=1)


def fully_sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    for block in model.children():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Module) -> nn.Module:
    plan = {f"{i}.{name}": style() for i in range(LAYERS) for name, style in STYLES.items()}
    return parallelize_module(model, init_device_mesh("cpu", (1,)), plan)


STYLES = {"qkv": ColwiseParallel, "out": RowwiseParallel}


@pytest.mark.parametrize("wrapped", (data_parallel, fully_sharded, tensor_parallel))
def test_training_step(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(*(Block() for _ in range(LAYERS)))
    model, x = copy.deepcopy(plain), torch.randn(2, 24, WIDTH)
    torch.compile(wrapped(model), backend="attnpass", options=OPTIONS)(x).square().mean().backward()
    plain(x).square().mean().backward()
    assert set(kernels_used()) == {"native_flash"}
    for mine, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        gradient = mine.grad.full_tensor() if hasattr(mine.grad, "full_tensor") else mine.grad
        torch.testing.assert_close(gradient, wanted.grad, atol=1e-6, rtol=1e-4)
