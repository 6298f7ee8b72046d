"""Every block of the page has a test, and its first one does what is said of it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.helpers.compiled import kernels_used
from tests.integrations.page import run, sections
from tests.test_distributed import WIDTH, Block

NAMED = re.compile(r"""\b(?:run\(|sections\(\)\[)"([^"]+)"(?:(?:, |\]\[)(\d))?""")


def test_every_block_is_run() -> None:
    here = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    ran = {(heading, int(block or 0)) for heading, block in re.findall(NAMED, here)}
    assert ran == {(heading, i) for heading, blocks in sections().items() for i in range(len(blocks))}


def test_compiled_in_place() -> None:
    model = Block()
    names = list(model.state_dict())
    run("Trainers, pipelines and other frames", model=model)
    model(torch.randn(2, 5, WIDTH)).sum().backward()
    assert type(model) is Block and list(model.state_dict()) == names
    assert all(name.startswith("_orig_mod.") for name in torch.compile(model, backend="attnpass").state_dict())
    assert kernels_used() == ["native_flash"]
