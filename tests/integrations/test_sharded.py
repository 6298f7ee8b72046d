"""FSDP2 with selective checkpoints, as torchtitan composes them: the gradients of eager, attention computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import attnpass
from tests.helpers.compiled import kernels_used
from tests.integrations.page import run
from tests.test_distributed import LAYERS, WIDTH, Block

HEADING = {
    "partial": partial,
    "create_selective_checkpoint_contexts": create_selective_checkpoint_contexts,
    "checkpoint_wrapper": checkpoint_wrapper,
    "fully_shard": fully_shard,
    "attnpass": attnpass,
}


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_as_torchtitan_does_it() -> None:
    torch.manual_seed(0)
    plain, x = nn.Sequential(*(Block() for _ in range(LAYERS))), torch.randn(2, 24, WIDTH)
    model = copy.deepcopy(plain)
    run("FSDP2 and selective checkpoints", model=model, mesh=init_device_mesh("cpu", (1,)), **HEADING)
    plain(x).square().mean().backward()
    model(x).square().mean().backward()  # compiled here, where fake tensors are counted too
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU]) as ran:
        model(x).square().mean().backward()
    assert set(kernels_used()) == {"native_flash"}
    counts = {event.key: event.count for event in ran.key_averages()}
    assert counts["aten::_scaled_dot_product_flash_attention_for_cpu"] == LAYERS  # once each: the checkpoint kept it
    for mine, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.full_tensor(), wanted.grad, atol=1e-6, rtol=1e-4)
